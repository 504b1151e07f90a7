"""What the endpoint is told by its environment, read once where a process begins.

Owns names, defaults and checks of the variables. Knows nothing of what they are used for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.errors import SpecError

_MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Settings:
    """Of the process that takes requests."""

    api_key: str | None
    """The operator's bearer key, which may everything. None: no key is asked for (KITAE_AUTH=off)."""
    max_body_bytes: int = 4 * 2**20
    """A larger request is answered 413, but for uploads."""
    max_file_bytes: int = 512 * 2**20
    """Largest file of one upload."""
    max_ongoing_requests: int = 1000
    """Requests one ingress process works on at once; the next is answered 429."""
    metrics_open: bool = False
    """Whether /metrics is answered without a key."""
    key_ttl_s: float = 5.0
    """How long API keys are believed before the store is asked again: how late a revocation may act."""
    route_ttl_s: float = 2.0
    """How long records and aliases are believed before the store is asked again."""
    usage_every_s: float = 10.0
    """How often what was used is written down: so much of it is lost with a process that is killed."""
    keep_deployments: bool = False
    """Whether this process sees to it that Serve runs what is recorded (`ray_jobs.deploy.keep`)."""
    job_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sections of a job file that every job made through the API begins with."""

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Settings:
        """Of KITAE_API_KEY, KITAE_AUTH, KITAE_MAX_BODY_BYTES, KITAE_MAX_FILE_BYTES, KITAE_MAX_ONGOING_REQUESTS,
        KITAE_METRICS_OPEN, KITAE_KEEP_DEPLOYMENTS and KITAE_JOB_DEFAULTS. SpecError where one of them is unusable."""
        return cls(
            api_key=_api_key(environment) if _switch(environment, "KITAE_AUTH", default=True) else None,
            max_body_bytes=_bytes(environment, "KITAE_MAX_BODY_BYTES", cls.max_body_bytes),
            max_file_bytes=_bytes(environment, "KITAE_MAX_FILE_BYTES", cls.max_file_bytes),
            max_ongoing_requests=_count(environment, "KITAE_MAX_ONGOING_REQUESTS", cls.max_ongoing_requests),
            metrics_open=_switch(environment, "KITAE_METRICS_OPEN", default=cls.metrics_open),
            keep_deployments=_switch(environment, "KITAE_KEEP_DEPLOYMENTS", default=cls.keep_deployments),
            job_defaults=_sections(environment, "KITAE_JOB_DEFAULTS"),
        )


def _api_key(environment: Mapping[str, str]) -> str:
    key = environment.get("KITAE_API_KEY") or ""
    if len(key) < _MIN_KEY_CHARACTERS:
        raise SpecError(
            f"KITAE_API_KEY has {len(key)} characters and needs at least {_MIN_KEY_CHARACTERS}: set it in the "
            "environment of Ray's nodes, or KITAE_AUTH=off where nobody else reaches the endpoint"
        )
    return key


def _sections(environment: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        found = json.loads(environment.get(name) or "{}")
    except ValueError as error:
        raise SpecError(f"{name} is not JSON: {error}") from error
    known = ("training", "compute", "evaluation", "serving", "data")
    if not isinstance(found, dict) or (unknown := sorted(set(found) - set(known))):
        what = f"has {', '.join(unknown)}" if isinstance(found, dict) else "is no object"
        raise SpecError(f"{name} {what}; it may have the sections {', '.join(known)} of a job file")
    return found


def _switch(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environment.get(name) or ("on" if default else "off")
    if text not in ("on", "off"):
        raise SpecError(f"{name} is {text!r}; it must be on or off")
    return text == "on"


def _bytes(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1024:
        raise SpecError(f"{name} is {text!r}; it must be a number of bytes, at least 1024")
    return int(text)


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise SpecError(f"{name} is {text!r}; it must be a number, at least 1")
    return int(text)
