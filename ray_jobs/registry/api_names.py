"""API names of models: `ftjob-{id}[@ckpt-step-N]` in the registry, `ft:{base}:{team}:{suffix}:{id}[:ckpt-step-N]` in
the HTTP API.

Owns the translation. Pure. Only the id and the checkpoint of an API name are significant; base, team and suffix are for
people, so a name built with another suffix finds the same model.
"""

from __future__ import annotations

import re

from ray_jobs.registry.model import ModelVersion

JOB_PREFIX = "ftjob-"
"""Prefix of the registry names of models made through the API."""

CHECKPOINT_ALIAS = re.compile(r"ckpt-step-\d+")

_API_NAME = re.compile(
    r"ft:[^:]*:[^:]*:[^:]*:(?P<id>[a-z0-9]([a-z0-9._-]{0,40}[a-z0-9])?)(:(?P<checkpoint>ckpt-step-\d+))?"
)


def has_api_name(name: str) -> bool:
    """True if the model with this registry name has another API name."""
    return name.startswith(JOB_PREFIX)


def api_name(version: ModelVersion, *, checkpoint: str | None = None) -> str:
    """The API name of a version; the registry name for a model that was not made through the API.

    `checkpoint`: its alias `ckpt-step-N`, for a version that is not the job's result.
    """
    if not has_api_name(version.name):
        return version.name
    return tuned_name(version.name, version.base_name, version.team, version.lineage.spec.suffix, checkpoint)


def tuned_name(name: str, base: str, team: str, suffix: str | None, checkpoint: str | None = None) -> str:
    """The API name from its parts; `name` is the registry name."""
    # Other characters would end the suffix's field in the name, or need escaping in a path.
    plain_suffix = re.sub(r"[^A-Za-z0-9._-]+", "-", suffix or "")
    parts = ["ft", base, team, plain_suffix, name.removeprefix(JOB_PREFIX)]
    return ":".join([*parts, checkpoint] if checkpoint else parts)


def registry_ref(name: str) -> str:
    """The registry's `name` or `name@alias` for an API name; any other name is returned unchanged."""
    found = _API_NAME.fullmatch(name)
    if found is None:
        return name
    checkpoint = found["checkpoint"]
    return JOB_PREFIX + found["id"] + (f"@{checkpoint}" if checkpoint else "")
