"""The registry: versions of models with their lineage, aliases that point at them, and model cards.

Owns the claims of version numbers, registration, lookup and deletion. A version is a committed tree of the store and
never changes. Does not know how a model is trained or served.

    version = registry.register(workspace, "greeter", directory, lineage=lineage, lineage_digest=digest)
    registry.set_alias(workspace, "greeter", "champion", version.version)
    registry.get(registry.workspace_of(store, "greeter"), "greeter")  # the champion

    models/{name}/{version}/…            the tree: safetensors, configuration, tokenizer, README.md, manifest.json last
    models/{name}/claims/{version}.json  the claim of a number; kept after a deletion, so that no number is used twice
    aliases/{name}/{alias}.json          {"version": "3", "previous": "2"}
    owners/{name}.json                   the team that the name belongs to (`owners`)

A model is in its team's workspace. A job's pods may write anything there; what cannot be read is skipped. Readers of
other teams find a name's workspace by its owner, so that a version under another team's name does not exist for them.
"""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ray_jobs.digests import canonical_json
from ray_jobs.errors import ConflictError, CorruptObject, RegistryError, suggestion
from ray_jobs.registry import catalogue, owners
from ray_jobs.registry.card import write_card
from ray_jobs.registry.files import check_files
from ray_jobs.registry.gated import newest, require_gated_for_alias
from ray_jobs.registry.model import Lineage, ModelKind, ModelVersion, key_of, lineage_json, lineage_of, version_of
from ray_jobs.registry.owners import Claim
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.workspace import teams
from ray_jobs.tasks import TASKS

CHAMPION = "champion"
"""The alias that a bare name resolves to."""

_MANIFEST = re.compile(r"models/(?P<name>[^/]+)/(?P<number>[0-9]{1,9})/manifest\.json")
_READS_AT_ONCE = 8
_MOST_CLAIMS_TRIED = 1000
_VERSION_KIND = "model version"
_GO_WITH_THE_LAST_VERSION = ("shares", "traffic")
"""Documents by name that grant access to a model: a later model of the name starts without them."""

Number = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Alias(BaseModel, frozen=True):
    """The version that an alias points at, and the previous one."""

    version: Number
    previous: Number | None = None
    """None: not set before."""
    set_at: str | None = None


class _NumberClaim(BaseModel, frozen=True):
    """The registration that a version number belongs to."""

    lineage_digest: str | None = None
    lineage: dict[str, Any] | None = None
    deleted: bool = False


def owner(store: Store, name: str) -> str | None:
    """The team that a name belongs to; None: it is free."""
    return owners.claimed_by(store, name)


def workspace_of(store: Store, name: str) -> Workspace:
    """The workspace of the team that a model's name belongs to. Raises RegistryError for an unknown name."""
    name = name.partition("@")[0]
    team = owner(store, name)
    if team is None:
        known = [each for team in teams(store) for each in names(Workspace(store, team))]
        raise RegistryError(f"no model {name!r} in {store.root.uri()}; {suggestion(name, known)}")
    return Workspace(store, team)


def require_owner(store: Workspace, name: str) -> None:
    """Raise RegistryError if the name belongs to another team or to a base; a free name is accepted."""
    found = owners.find(store, name)
    if catalogue.find(store, name) is not None or (found is not None and found.of == "base"):
        raise RegistryError(f"the model name {name!r} is that of a base model: choose another name")
    if found is not None and found.team != store.team:
        raise _not_owner(name, found.team, store.team)


def claim_name(store: Workspace, name: str) -> None:
    """Claim a model's name for the team, once. Raises RegistryError as `require_owner`, ConflictError while it cannot
    be decided."""
    require_owner(store, name)
    if (found := owners.claim(store, name, Claim(team=store.team))).team != store.team:
        raise _not_owner(name, found.team, store.team)  # another team was faster


def require_base_owner(store: Workspace, name: str) -> None:
    """Raise RegistryError if a base model that the team brought itself cannot be served under this name."""
    found = owners.find(store, name)
    if found is not None and (found.team != store.team or found.of != "base"):
        raise RegistryError(
            f"the base model would be served as {name!r}, a name of team {found.team!r}: rename its directory, or add "
            "it to the catalogue, whose bases all teams share (`kitae bases add`)"
        )


def claim_base(store: Workspace, name: str) -> None:
    """Claim the name of a base model that the team brought itself. Raises RegistryError as `require_base_owner`."""
    require_base_owner(store, name)
    owners.claim(store, name, Claim(team=store.team, of="base"))
    require_base_owner(store, name)  # another team may have been faster


def _not_owner(name: str, found: str | None, team: str) -> RegistryError:
    return RegistryError(f"the model name {name!r} belongs to team {found!r}, not to {team!r}: choose another name")


def register(store: Workspace, name: str, directory: Path, *, lineage: Lineage, lineage_digest: str) -> ModelVersion:
    """Make a directory of weights a version of model `name`; write its model card README.md into the directory first.

    The same `lineage_digest` is the same version, however often and by how many processes it is registered; an
    interrupted registration resumes under its number. Raises RegistryError if a file must not be published, or if the
    name belongs to another team.
    """
    _check_name(name, "a model's name")
    check_files(directory)
    if unusable := [f"{key} is {value}" for key, value in lineage.metrics.items() if not math.isfinite(value)]:
        raise RegistryError(f"{name!r} cannot be registered: a metric must be a finite number", details=unusable)
    claim_name(store, name)
    number, lineage = _claim(store, name, lineage, lineage_digest)
    key = key_of(name, number)
    if (existing := store.read_manifest(key)) is not None:
        return version_of(store.team, name, number, existing.meta)
    adapter = (directory / "adapter_config.json").is_file()
    kind: ModelKind = "adapter" if adapter else "full" if TASKS[lineage.spec.task].generates else "predictor"
    meta = {"kind": kind, "lineage": lineage_json(lineage), "lineage_digest": lineage_digest}
    version = version_of(store.team, name, number, meta)
    write_card(directory, version)
    try:
        store.commit(key, store.upload_tree(directory, key), meta)
    except ConflictError:
        # Another process registered the same lineage first.
        existing = store.read_manifest(key)
        if existing is None or existing.meta.get("lineage_digest") != lineage_digest:
            raise
        return version_of(store.team, name, number, existing.meta)
    return version


def versions(store: Workspace, name: str) -> list[ModelVersion]:
    """Every readable version of a model, oldest first; empty for an unknown model."""
    if not is_name(name):  # some stores merge slashes: `greeter/` would be greeter
        return []
    listed = ((_MANIFEST.fullmatch(info.key), info.etag) for info in store.list(f"models/{name}"))
    etags = {int(match["number"]): etag for match, etag in listed if match is not None}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = pool.map(lambda number: _find(store, name, str(number), etags[number]), sorted(etags))
        return [version for version in read if version is not None]


def names(store: Workspace) -> list[str]:
    """Every model of the team with a version."""
    matches = (_MANIFEST.fullmatch(info.key) for info in store.list("models"))
    return sorted({match["name"] for match in matches if match is not None})


def get(store: Workspace, ref: str) -> ModelVersion:
    """The version of `name`, `name@3` or `name@alias`; a bare name is its champion, else its newest gated version.

    Raises RegistryError with the nearest names, or with the model's versions and aliases; CorruptObject for an alias
    that cannot be read.
    """
    name, at, label = ref.partition("@")
    if at and not label:
        raise RegistryError(f"{ref!r} names no version: write {name}@3, {name}@{CHAMPION} or {name}")
    if not is_name(name):
        raise _unknown(store, name)
    pointed = aliases(store, name)
    if _is_unreadable(store, name, label or CHAMPION):
        raise CorruptObject(f"the alias {name}@{label or CHAMPION} cannot be read: point it at a version again")
    wanted = pointed.get(label or CHAMPION, label)
    if _is_number(wanted):
        exact = _find(store, name, wanted)
        if exact is not None:
            return exact
    found = versions(store, name)
    if not found:
        raise _unknown(store, name)
    if not wanted and (meant := newest(found)) is not None:
        return meant
    known = ", ".join([*(version.version for version in found), *sorted(pointed)])
    gone = f" (version {wanted} is deleted)" if wanted != label else ""
    raise RegistryError(f"model {name!r} has no {label or CHAMPION!r}{gone}; it has: {known}")


def _unknown(store: Workspace, name: str) -> RegistryError:
    return RegistryError(f"no model {name!r} in {store.uri('models')}; {suggestion(name, names(store))}")


def aliases(store: Workspace, name: str) -> dict[str, str]:
    """Alias → version, of one model."""
    return {alias: found.version for alias, found in _aliases(name).read_all(store).items()}


def read_alias(store: Workspace, name: str, alias: str) -> Alias | None:
    """One alias; None if it is not set. Raises CorruptObject."""
    return _aliases(name).read(store, alias)


def set_alias(
    store: Workspace,
    name: str,
    alias: str,
    version: str,
    *,
    expected: str | EllipsisType | None = ...,
    ungated: bool = False,
) -> None:
    """Point an alias at a version that exists and passed the gate.

    `ungated`: as `gated.require_gated`.

    `expected` (a version; None: not set) is a condition: ConflictError if the alias points elsewhere, so that one of
    two concurrent decisions wins.
    """
    _check_name(alias, "an alias")
    if alias.isdigit():
        raise RegistryError(f"an alias cannot be a number: {name}@{alias} would be version {alias}")
    if not version.isdigit():
        raise RegistryError(f"{version!r} is not a version number of {name!r}: an alias points at a number, such as 3")
    require_owner(store, name)
    require_gated_for_alias(get(store, f"{name}@{version}"), alias, ungated=ungated)

    def change(old: Alias | None) -> Alias:
        now = None if old is None else old.version
        if expected is not ... and now != expected:
            raise ConflictError(f"{name}@{alias} is {now or 'not set'}, not {expected or 'unset'}: decide again")
        if now == version and old is not None:
            return old
        return Alias(version=version, previous=now, set_at=store.now().isoformat(timespec="seconds"))

    if _aliases(name).find(store, alias) is None and _is_unreadable(store, name, alias):
        store.delete(_aliases(name).key(alias))
    _aliases(name).update(store, alias, change)


def delete_alias(store: Workspace, name: str, alias: str) -> None:
    """Remove an alias; no error if it is not set."""
    store.delete(_aliases(name).key(alias))


def delete_version(store: Workspace, name: str, version: str) -> None:
    """Delete a version's weights permanently; its number is not reused. RegistryError while an alias points at it.

    Shares and traffic rules go with the last version; the name stays its owner's.
    """
    found = get(store, f"{name}@{version}")
    pointing = sorted(alias for alias, target in aliases(store, name).items() if target == found.version)
    if pointing:
        raise RegistryError(
            f"{name}@{found.version} is the target of {', '.join(pointing)}: point the alias at another version first"
        )
    deleted = {"deleted": True}
    _number_claims(name).update(store, found.version, lambda old: (old or _NumberClaim()).model_copy(update=deleted))
    last = [version.version for version in versions(store, name)] == [found.version]
    store.delete_tree(found.key)
    if last:
        store.delete([f"{kind}/{name}.json" for kind in _GO_WITH_THE_LAST_VERSION])


def _claim(store: Workspace, name: str, lineage: Lineage, lineage_digest: str) -> tuple[str, Lineage]:
    """The number claimed for this lineage, and the lineage as first claimed (with its `created_at`)."""
    claimed = [int(number) for number in _number_claims(name).names(store) if _is_number(number)]
    claims = _number_claims(name).read_some(store, map(str, sorted(claimed)))
    taken = [*claimed, *(int(number) for number in store.list_dirs(f"models/{name}/") if _is_number(number))]
    # In the form in which it is read back, so that every process writes the same model card, byte for byte.
    mine = _NumberClaim(lineage_digest=lineage_digest, lineage=json.loads(canonical_json(lineage_json(lineage))))
    first = max(taken, default=0) + 1
    # A deleted number below another one is not used again either way.
    over = [number for number, claim in claims.items() if claim.deleted and int(number) < first - 1]
    store.delete([_number_claims(name).key(number) for number in over])
    for number in [*claims, *map(str, range(first, first + _MOST_CLAIMS_TRIED))]:
        claim = claims.get(number) or _claimed(store, name, number, mine)
        if claim is None or claim.lineage is None or claim.deleted:
            continue
        if claim.lineage_digest == lineage_digest:
            return number, lineage_of(claim.lineage)
    raise ConflictError(f"no version number of {name!r} could be claimed in {_MOST_CLAIMS_TRIED} tries; try again")


def _claimed(store: Workspace, name: str, number: str, mine: _NumberClaim) -> _NumberClaim | None:
    """The claim of a number: this one, if no other process was first. None: it cannot be read."""
    try:
        _number_claims(name).create(store, number, mine)
    except ConflictError:
        return _number_claims(name).find(store, number)
    return mine


def _find(store: Workspace, name: str, number: str, etag: str = "") -> ModelVersion | None:
    """One version; None if it does not exist or cannot be read, which is reported. `etag`: as listed."""
    try:
        found = _read(store, name, number, etag) if etag else _read_now(store, name, number)
    except CorruptObject as error:
        store.unreadable.report(_VERSION_KIND, store.path(key_of(name, number)), error.message)
        return None
    store.unreadable.clear(_VERSION_KIND, [store.path(key_of(name, number))])
    return found


@lru_cache(maxsize=4096)  # a committed manifest never changes, and the endpoint reads it every few seconds
def _read(store: Workspace, name: str, number: str, etag: str) -> ModelVersion | None:
    return _read_now(store, name, number)


def _read_now(store: Workspace, name: str, number: str) -> ModelVersion | None:
    manifest = store.read_manifest(key_of(name, number))
    return None if manifest is None else version_of(store.team, name, number, manifest.meta)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _aliases(name: str) -> Documents[Alias]:
    return Documents(f"aliases/{name}/", Alias, "an alias", lambda alias, _: None if is_name(alias) else NAME_RULE)


def _is_unreadable(store: Workspace, name: str, alias: str) -> bool:
    return store.path(_aliases(name).key(alias)) in store.unreadable.keys(_aliases(name).kind)


def _number_claims(name: str) -> Documents[_NumberClaim]:
    return Documents(f"models/{name}/claims/", _NumberClaim, "a claim of a version number")


def _check_name(name: str, what: str) -> None:
    if not is_name(name):
        raise RegistryError(f"{name!r} cannot be {what}: {NAME_RULE}")
