"""The registry: versions of models with their lineage, aliases that point at them, and model cards.

Owns the claims of version numbers, registration, lookup and deletion. A version is a committed tree of the store and
never changes. Does not know how a model is trained or served.

    version = registry.register(store, "greeter", directory, lineage=lineage, lineage_digest=digest)
    registry.set_alias(store, "greeter", "champion", version.version)
    registry.get(store, "greeter")  # the champion

    models/{name}/{version}/…            the tree: safetensors, configuration, tokenizer, README.md, manifest.json last
    models/{name}/claims/{version}.json  the claim of a number; kept after a deletion, so that no number is used twice
    aliases/{name}/{alias}.json          {"version": "3", "previous": "2"}
"""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import Any

from ray_jobs.digests import canonical_json
from ray_jobs.errors import ConflictError, ObjectNotFound, RegistryError, suggestion
from ray_jobs.registry.card import write_card
from ray_jobs.registry.files import check_files
from ray_jobs.registry.model import Lineage, ModelKind, ModelVersion, key_of, lineage_json, lineage_of, version_of
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS

CHAMPION = "champion"
"""The alias that a bare name resolves to."""

_MANIFEST = re.compile(r"models/(?P<name>[^/]+)/(?P<number>\d+)/manifest\.json")
_READS_AT_ONCE = 8
_MOST_CLAIMS_TRIED = 1000


def register(store: Store, name: str, directory: Path, *, lineage: Lineage, lineage_digest: str) -> ModelVersion:
    """Make a directory of weights a version of model `name`; write its model card README.md into the directory first.

    The same `lineage_digest` is the same version, however often and by how many processes it is registered; an
    interrupted registration resumes under its number. Raises RegistryError if a file must not be published.
    """
    _check_name(name, "a model's name")
    check_files(directory)
    if unusable := [f"{key} is {value}" for key, value in lineage.metrics.items() if not math.isfinite(value)]:
        raise RegistryError(f"{name!r} cannot be registered: a metric must be a finite number", details=unusable)
    number, lineage = _claim(store, name, lineage, lineage_digest)
    key = key_of(name, number)
    if (existing := store.read_manifest(key)) is not None:
        return version_of(name, number, existing.meta)
    adapter = (directory / "adapter_config.json").is_file()
    kind: ModelKind = "adapter" if adapter else "full" if TASKS[lineage.spec.task].generates else "predictor"
    meta = {"kind": kind, "lineage": lineage_json(lineage), "lineage_digest": lineage_digest}
    version = version_of(name, number, meta)
    write_card(directory, version)
    try:
        store.commit(key, store.upload_tree(directory, key), meta)
    except ConflictError:
        # Another process registered the same lineage first.
        existing = store.read_manifest(key)
        if existing is None or existing.meta.get("lineage_digest") != lineage_digest:
            raise
        return version_of(name, number, existing.meta)
    return version


def versions(store: Store, name: str) -> list[ModelVersion]:
    """Every version of a model, oldest first; empty for an unknown model."""
    if not is_name(name):  # some stores merge slashes: `greeter/` would be greeter
        return []
    listed = ((_MANIFEST.fullmatch(info.key), info.etag) for info in store.list(f"models/{name}"))
    etags = {int(match["number"]): etag for match, etag in listed if match is not None}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = pool.map(lambda number: _read(store, name, str(number), etags[number]), sorted(etags))
        return [version for version in read if version is not None]


def names(store: Store) -> list[str]:
    """Every model with a version."""
    matches = (_MANIFEST.fullmatch(info.key) for info in store.list("models"))
    return sorted({match["name"] for match in matches if match is not None})


def get(store: Store, ref: str) -> ModelVersion:
    """The version of `name`, `name@3` or `name@alias`; a bare name is its champion, else its newest version.

    Raises RegistryError with the nearest names, or with the model's versions and aliases.
    """
    name, at, label = ref.partition("@")
    if at and not label:
        raise RegistryError(f"{ref!r} names no version: write {name}@3, {name}@{CHAMPION} or {name}")
    if not is_name(name):
        raise _unknown(store, name)
    pointed = aliases(store, name)
    wanted = pointed.get(label or CHAMPION, label)
    if wanted.isdigit():
        manifest = store.read_manifest(key_of(name, wanted))
        if manifest is not None:
            return version_of(name, wanted, manifest.meta)
    found = versions(store, name)
    if not found:
        raise _unknown(store, name)
    if not wanted:
        return found[-1]
    known = ", ".join([*(version.version for version in found), *sorted(pointed)])
    gone = f" (version {wanted} is deleted)" if wanted != label else ""
    raise RegistryError(f"model {name!r} has no {label or CHAMPION!r}{gone}; it has: {known}")


def _unknown(store: Store, name: str) -> RegistryError:
    return RegistryError(f"no model {name!r} in {store.uri('models')}; {suggestion(name, names(store))}")


def aliases(store: Store, name: str) -> dict[str, str]:
    """Alias → version, of one model."""
    return {alias: document["version"] for alias, document in store.documents(f"aliases/{name}").items()}


@dataclass(frozen=True)
class Alias:
    """The version that an alias points at, and the previous one."""

    version: str
    previous: str | None
    """None: not set before."""


def read_alias(store: Store, name: str, alias: str) -> Alias | None:
    """One alias; None if it is not set."""
    try:
        document = store.get_json(f"aliases/{name}/{alias}.json")
    except ObjectNotFound:
        return None
    return Alias(document["version"], document.get("previous"))


def set_alias(store: Store, name: str, alias: str, version: str, *, expected: str | EllipsisType | None = ...) -> None:
    """Point an alias at a version that exists.

    `expected` (a version; None: not set) is a condition: ConflictError if the alias points elsewhere, so that one of
    two concurrent decisions wins.
    """
    _check_name(alias, "an alias")
    if alias.isdigit():
        raise RegistryError(f"an alias cannot be a number: {name}@{alias} would be version {alias}")
    if not version.isdigit():
        raise RegistryError(f"{version!r} is not a version number of {name!r}: an alias points at a number, such as 3")
    get(store, f"{name}@{version}")

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        now = None if old is None else old["version"]
        if expected is not ... and now != expected:
            raise ConflictError(f"{name}@{alias} is {now or 'not set'}, not {expected or 'unset'}: decide again")
        if now == version and old is not None:
            return old
        return {"version": version, "previous": now, "set_at": datetime.now(UTC).isoformat(timespec="seconds")}

    store.update_json(f"aliases/{name}/{alias}.json", change)


def delete_alias(store: Store, name: str, alias: str) -> None:
    """Remove an alias; no error if it is not set."""
    store.delete(f"aliases/{name}/{alias}.json")


def delete_version(store: Store, name: str, version: str) -> None:
    """Delete a version's weights permanently; its number is not reused. RegistryError while an alias points at it."""
    found = get(store, f"{name}@{version}")
    pointing = sorted(alias for alias, target in aliases(store, name).items() if target == found.version)
    if pointing:
        raise RegistryError(
            f"{name}@{found.version} is the target of {', '.join(pointing)}: point the alias at another version first"
        )
    store.update_json(_claim_key(name, found.version), lambda old: {**(old or {}), "deleted": True})
    store.delete_tree(found.key)


def _claim(store: Store, name: str, lineage: Lineage, lineage_digest: str) -> tuple[str, Lineage]:
    """The number claimed for this lineage, and the lineage as first claimed (with its `created_at`)."""
    claims = {int(number): claim for number, claim in store.documents(f"models/{name}/claims").items()}
    # In the form in which it is read back, so that every process writes the same model card, byte for byte.
    mine = json.loads(canonical_json({"lineage_digest": lineage_digest, "lineage": lineage_json(lineage)}))
    first = max(claims, default=0) + 1
    for number in [*sorted(claims), *range(first, first + _MOST_CLAIMS_TRIED)]:
        claim = claims.get(number) or _claimed(store, _claim_key(name, str(number)), mine)
        if claim.get("lineage_digest") == lineage_digest and not claim.get("deleted"):
            return str(number), lineage_of(claim["lineage"])
    raise ConflictError(f"no version number of {name!r} could be claimed in {_MOST_CLAIMS_TRIED} tries; try again")


def _claimed(store: Store, key: str, mine: dict[str, Any]) -> dict[str, Any]:
    """The claim at the key: this one, if no other process was first."""
    try:
        store.put_json(key, mine, if_absent=True)
    except ConflictError:
        claim: dict[str, Any] = store.get_json(key)
        return claim
    return mine


@lru_cache(maxsize=4096)  # a committed manifest never changes, and the endpoint reads it every few seconds
def _read(store: Store, name: str, number: str, etag: str) -> ModelVersion | None:
    manifest = store.read_manifest(key_of(name, number))
    return None if manifest is None else version_of(name, number, manifest.meta)


def _claim_key(name: str, number: str) -> str:
    return f"models/{name}/claims/{number}.json"


def _check_name(name: str, what: str) -> None:
    if not is_name(name):
        raise RegistryError(f"{name!r} cannot be {what}: {NAME_RULE}")
