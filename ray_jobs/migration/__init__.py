"""Moves a store of Kitae 0.2 or earlier to the present layout, in which a team's keys have the team in them.

Owns the layout's number in `layout.json`, and which team an earlier key belongs to. Copies first, writes the number,
and deletes the earlier keys only on request, so that an interrupted move resumes and a finished one can be undone by
running the earlier version.

    moved = migration.plan(store)  # reads only
    migration.run(store, moved)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.errors import ConflictError, CorruptObject, ObjectNotFound, StoreAccessDenied, StoreError
from ray_jobs.registry import catalogue, owners
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.owners import Claim
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Store
from ray_jobs.storage.workspace import TEAM_KINDS

LAYOUT = 2
MARK = "layout.json"
_COPIES_AT_ONCE = 8

# Keys of layout 1. In layout 2 each is one level deeper.
_EARLIER = re.compile(
    r"(?P<kind>jobs)/(?P<job>[^/]+)/job\.json"
    r"|(?P<kind_>datasets|bases)/(?P<digest>[^/]+)/manifest\.json"
    r"|models/(?P<model>[^/]+)/(\d{1,9}/manifest|claims/\d{1,9})\.json"
    r"|aliases/(?P<alias>[^/]+)/[^/]+\.json"
    r"|deployments/(?P<deployment>[^/]+)\.json"
)

Copy = tuple[str, str]
"""Earlier key and present key."""


@dataclass
class Plan:
    """What a move does."""

    copies: list[Copy] = field(default_factory=list)
    claims: dict[str, Claim] = field(default_factory=dict)
    """Owners of names from before names had owners."""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Documents whose content changes, by their present key."""
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the engines of catalogue bases, from the deployment records that they had."""
    left: list[str] = field(default_factory=list)
    """Prefixes that belong to no job, model or base, and stay."""

    def describe(self) -> list[str]:
        """The move as lines of text."""
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for _, target in self.copies:
            kind, team = target.split("/")[:2]
            counts[kind, "" if kind == catalogue.BASES else f" of team {team}"] += 1
        lines = [f"{kind}/: {count} object(s){team}" for (kind, team), count in sorted(counts.items())]
        lines += [f"owners/{name}.json: team {claim.team}" for name, claim in sorted(self.claims.items())]
        return lines + [f"stays, belongs to nothing: {prefix}" for prefix in self.left]


def require_layout(store: Store) -> None:
    """Raise StoreError if the store has an earlier layout; mark an empty store with the present one."""
    number = read_layout(store)
    if number == LAYOUT:
        return
    if number is not None and number > LAYOUT:
        raise StoreError(
            f"{store.root.uri()} has layout {number}, and this version of Kitae reads {LAYOUT}: use a newer one"
        )
    if _has_earlier(store):
        raise StoreError(
            f"{store.root.uri()} has the layout of an earlier version: stop the endpoint and all jobs, then "
            "`kitae store migrate` (docs/upgrade.md)"
        )
    with suppress(ConflictError, StoreAccessDenied):  # a team's credentials may not write it
        store.root.put_json(MARK, {"layout": LAYOUT}, if_absent=True)


def read_layout(store: Store) -> int | None:
    """The layout's number; None: the store is empty or has an earlier layout."""
    try:
        return int(store.root.get_json(MARK)["layout"])
    except ObjectNotFound:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObject(f"{store.root.uri(MARK)} does not name a layout") from error


def plan(store: Store) -> Plan:
    """What has to be moved. Writes nothing."""
    store, found = store.root, Plan()
    teams_of_names = _owners(store, found)
    teams_of_digests: dict[str, set[str]] = defaultdict(set)
    for job in _folders(store, "jobs", "job.json"):
        team = _team_of(_document(store, f"jobs/{job}/job.json").get("spec"))
        _move(found, store, f"jobs/{job}", f"jobs/{team}/{job}")
        for info in store.list(f"jobs/{job}/stages"):
            stage = _document(store, info.key)
            if stage.get("name") in ("base", "dataset"):
                teams_of_digests[str((stage.get("outputs") or {}).get("digest"))].add(team)
    for name, (team, digests) in teams_of_names.items():
        for kind in ("models", "aliases"):
            _move(found, store, f"{kind}/{name}", f"{kind}/{team}/{name}")
        for digest in digests:
            teams_of_digests[digest].add(team)
    entries = catalogue.entries(store)
    found.engines = {entry.name: _engine(entry, {}) for entry in entries}
    in_catalogue = {entry.digest: entry.name for entry in entries}
    for kind in ("datasets", "bases"):
        for digest in _folders(store, kind, "manifest.json"):
            targets = [f"{kind}/{team}/{digest}" for team in sorted(teams_of_digests[digest])]
            if kind == "bases" and digest in in_catalogue:
                targets.append(f"{catalogue.BASES}/{digest}")
            for target in targets:
                _move(found, store, f"{kind}/{digest}", target)
            if not targets:
                found.left.append(f"{kind}/{digest}/")
    _deployments(store, found, {name: team for name, (team, _) in teams_of_names.items()}, in_catalogue)
    return found


def run(store: Store, found: Plan, progress: Callable[[int, int], None] | None = None) -> None:
    """Copy everything and mark the store with the present layout. Idempotent. Raises StoreError."""
    store, total = store.root, len(found.copies)

    def copy(pair: Copy) -> None:
        store.copy(*pair)

    # What makes a tree or a job visible comes last.
    ordered = sorted(found.copies, key=lambda pair: pair[1].endswith(("/manifest.json", "/job.json")))
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(copy, ordered), 1):
            if progress is not None:
                progress(done, total)
    for name, claim in found.claims.items():
        owners.claim(store, name, claim)
    for key, document in found.documents.items():
        store.put_json(key, document)
    for name, changes in found.engines.items():
        catalogue.set_engine(store, name, changes)
    store.put_json(MARK, {"layout": LAYOUT})


def earlier_keys(store: Store) -> list[str]:
    """The keys of the earlier layout that a finished move has left."""
    store = store.root
    roots = {_root_of(info.key) for kind in TEAM_KINDS for info in store.list(kind) if _EARLIER.fullmatch(info.key)}
    return [info.key for kind in TEAM_KINDS for info in store.list(kind) if _root_of(info.key) in roots]


def _has_earlier(store: Store) -> bool:
    return any(_EARLIER.fullmatch(info.key) for kind in TEAM_KINDS for info in store.root.list(kind))


def _root_of(key: str) -> str:
    return "/".join(key.split("/")[:2])


def _folders(store: Store, kind: str, marked_by: str) -> list[str]:
    """The folders of a kind in the earlier layout: those that hold the file itself."""
    return [name for name in store.list_dirs(kind) if store.exists(f"{kind}/{name}/{marked_by}")]


def _move(found: Plan, store: Store, prefix: str, target: str) -> None:
    for info in store.list(prefix):
        if not info.key.endswith("/"):  # some stores list folders
            found.copies.append((info.key, target + info.key.removeprefix(prefix)))


def _owners(store: Store, found: Plan) -> dict[str, tuple[str, set[str]]]:
    """By model: its team, and the digests of its datasets and bases. Adds the claims of names that have none."""
    names: dict[str, tuple[str, set[str]]] = {}
    for name in store.list_dirs("models"):
        keys = [info.key for info in store.list(f"models/{name}") if _EARLIER.fullmatch(info.key)]
        if not keys:
            continue
        manifests = sorted(
            (key for key in keys if key.endswith("/manifest.json")), key=lambda key: int(key.split("/")[2])
        )
        lineages = [(_document(store, key).get("meta") or {}).get("lineage") or {} for key in manifests]
        team = owners.claimed_by(store, name)
        if team is None:
            team = _team_of((lineages[0] if lineages else {}).get("spec"))
            found.claims[name] = Claim(team=team)
        digests = {str(lineage.get(field)) for lineage in lineages for field in ("dataset_digest", "base_digest")}
        names[name] = (team, digests)
    return names


def _deployments(store: Store, found: Plan, teams: dict[str, str], in_catalogue: dict[str, str]) -> None:
    """Deployment records: to the owner of the name, with the digest of an adapter's base. The engine of a base in the
    catalogue has its options there; any other base goes to the team of an adapter on it."""
    keys = [info.key for info in store.list("deployments") if _EARLIER.fullmatch(info.key)]
    records = {key.split("/")[1].removesuffix(".json"): _document(store, key) for key in keys}
    bases = {name: str(record.get("key")).rpartition("/")[2] for name, record in records.items() if _is_base(record)}
    for name, record in records.items():
        if _is_base(record) and in_catalogue.get(bases[name]) == name:
            if (entry := catalogue.find(store, name)) is not None:
                found.engines[name] = _engine(entry, record)
            continue
        team = teams.get(name)
        if _is_base(record):
            team = next(
                (teams[each] for each, other in records.items() if other.get("base") == name and each in teams), None
            )
            if team is not None:
                found.claims.setdefault(name, Claim(team=team, of="base"))
        if team is None:
            found.left.append(f"deployments/{name}.json")
            continue
        on_base = {"base_digest": bases.get(record["base"])} if record.get("base") else {}
        found.documents[f"deployments/{team}/{name}.json"] = {**record, "team": team, **on_base}


def _engine(entry: CatalogueEntry, record: dict[str, Any]) -> dict[str, Any]:
    """The options of a base's engine: the entry's, and what its deployment record had more of."""
    had = {**(record.get("serving") or {}), "max_lora_rank": record.get("max_lora_rank")}
    now = {**entry.serving.model_dump(), "max_lora_rank": entry.max_lora_rank}
    engine = {name: max(value, had.get(name) or value) for name, value in now.items() if value is not None}
    longest = entry.max_tokens or engine["max_model_len"]
    return {
        **engine,
        "max_model_len": min(engine["max_model_len"], longest),
        "precision": record.get("precision", "auto"),
    }


def _is_base(record: dict[str, Any]) -> bool:
    return record.get("kind") == "base"


def _team_of(spec: Any) -> str:
    return str((spec if isinstance(spec, dict) else {}).get("team") or DEFAULT_TEAM)


def _document(store: Store, key: str) -> dict[str, Any]:
    """A document; empty if it cannot be read: it moves as it is."""
    try:
        found = store.get_json(key)
    except CorruptObject:
        return {}
    return found if isinstance(found, dict) else {}
