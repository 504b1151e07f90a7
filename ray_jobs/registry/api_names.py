"""Two names of one model: `ftjob-{id}[@ckpt-step-N]` here, `ft:{base}:{team}:{suffix}:{id}[:ckpt-step-N]` on the wire.

Owns the translation. Pure. On the wire only the id and the checkpoint count; base, team and suffix are decoration for
people, so a name that was built with another suffix still finds its model.
"""

from __future__ import annotations

import re

from ray_jobs.registry.model import ModelVersion

JOB_PREFIX = "ftjob-"
"""What the registry names of models made through the API begin with."""
DEFAULT_TEAM = "default"
"""The team of what nobody else owns."""

CHECKPOINT_ALIAS = re.compile(r"ckpt-step-\d+")

_WIRE = re.compile(
    r"ft:[^:]*:[^:]*:[^:]*:(?P<id>[a-z0-9]([a-z0-9._-]{0,40}[a-z0-9])?)(:(?P<checkpoint>ckpt-step-\d+))?"
)


def owner(version: ModelVersion) -> str:
    """The team a version belongs to."""
    return version.lineage.spec.team or DEFAULT_TEAM


def has_wire_name(name: str) -> bool:
    """Whether a registry name is one that clients know under another."""
    return name.startswith(JOB_PREFIX)


def wire_name(version: ModelVersion, *, checkpoint: str | None = None, suffix: str | None = None) -> str:
    """What clients call a version. `checkpoint` is its alias `ckpt-step-N`, for one that is not the job's result;
    `suffix` None: that of its job. A model that was not made through the API has its registry name."""
    if not has_wire_name(version.name):
        return version.name
    if suffix is None:
        suffix = version.lineage.spec.suffix
    return tuned_name(version.name, version.base_name, owner(version), suffix, checkpoint)


def tuned_name(name: str, base: str, team: str, suffix: str | None, checkpoint: str | None = None) -> str:
    """The same from its parts; `name` is the registry's."""
    parts = ["ft", base, team, plain(suffix or ""), name.removeprefix(JOB_PREFIX)]
    return ":".join([*parts, checkpoint] if checkpoint else parts)


def registry_ref(name: str) -> str:
    """The registry's `name` or `name@alias` for a wire name; any other name is returned as it is."""
    found = _WIRE.fullmatch(name)
    if found is None:
        return name
    checkpoint = found["checkpoint"]
    return JOB_PREFIX + found["id"] + (f"@{checkpoint}" if checkpoint else "")


def plain(suffix: str) -> str:
    """A suffix as it stands in a name: without what would end the field, or would have to be escaped in a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", suffix)
