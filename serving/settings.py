"""Settings of the endpoint, read from environment variables once at an entry point.

Owns the variables' names, defaults and validation. Does not know what they are used for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ray_jobs.cluster import prices
from ray_jobs.errors import SpecError
from ray_jobs.tenancy.api_keys import Limits
from ray_jobs.tenancy.prices import Prices
from ray_jobs.tenancy.team_limits import TeamLimits, TeamQuotas

_MIN_KEY_CHARACTERS = 16
_KEY_LIMITS = Limits(concurrent_requests=256)
_ORIGIN = re.compile(r"https?://[^/\s*?#@,]+")


@dataclass(frozen=True)
class EndpointSettings:
    """Settings of an ingress process."""

    api_key: str | None
    """The operator's bearer key, with access to everything. None: no authentication (KITAE_AUTH=off)."""
    max_body_bytes: int = 4 * 2**20
    """Largest request body except uploads; a larger one is answered 413."""
    max_file_bytes: int = 512 * 2**20
    """Largest file of one upload."""
    max_ongoing_requests: int = 1000
    """Concurrent requests of one ingress process; further ones are answered 429."""
    key_limits: Limits = _KEY_LIMITS
    """Limits of the keys that have none of their own, in JSON as `{"tokens_per_minute": 100000}`."""
    team_quotas: TeamQuotas = field(default_factory=TeamQuotas)
    """What a team may keep and have open, in JSON as `{"files": 10000, "teams": {"blue": {"open_jobs": 5000}}}`."""
    refusals_per_s: float = 10.0
    """Rate at which a key that is refused often is refused further, in one ingress process."""
    metrics_open: bool = False
    """Whether /metrics needs no key."""
    key_ttl_s: float = 5.0
    """Seconds that API keys are cached, and so the latest time at which a revocation takes effect."""
    route_ttl_s: float = 2.0
    """Seconds that deployment records and aliases are cached."""
    usage_every_s: float = 10.0
    """Seconds between writes of the usage ledger, and so the usage that a killed process loses."""
    answers_kept_days: int = 30
    """Days for which stored chat completions and responses are kept; 0: none is stored."""
    reconcile_deployments: bool = False
    """Whether this process reconciles Serve's applications with the deployment records."""
    job_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sections of a job file used as defaults for every job created through the API."""

    prices: Prices | None = None
    """Prices that the teams' budgets count with."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may call the endpoint, such as https://chat.example.com; `*`: any."""
    offers_wandb: bool = False
    """Whether a request may name Weights & Biases in `integrations`. Its job then uses the key in the jobs'
    environment."""

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> EndpointSettings:
        """Read KITAE_API_KEY, KITAE_AUTH, KITAE_MAX_BODY_BYTES, KITAE_MAX_FILE_BYTES, KITAE_MAX_ONGOING_REQUESTS,
        KITAE_KEY_LIMITS, KITAE_TEAM_LIMITS, KITAE_METRICS_OPEN, KITAE_KEEP_DEPLOYMENTS, KITAE_JOB_DEFAULTS,
        KITAE_CORS_ORIGINS, KITAE_WANDB, KITAE_ANSWERS_KEPT_DAYS, and prices from KITAE_CLUSTER or KITAE_PRICES.

        Raises SpecError for an invalid value."""
        return cls(
            api_key=_api_key(environment) if _switch(environment, "KITAE_AUTH", default=True) else None,
            max_body_bytes=_number(environment, "KITAE_MAX_BODY_BYTES", cls.max_body_bytes, 1024, " of bytes"),
            max_file_bytes=_number(environment, "KITAE_MAX_FILE_BYTES", cls.max_file_bytes, 1024, " of bytes"),
            max_ongoing_requests=_number(environment, "KITAE_MAX_ONGOING_REQUESTS", cls.max_ongoing_requests, 1),
            key_limits=_key_limits(environment),
            team_quotas=_team_quotas(environment),
            answers_kept_days=_number(
                environment, "KITAE_ANSWERS_KEPT_DAYS", cls.answers_kept_days, 0, " of days, 0 to store nothing"
            ),
            metrics_open=_switch(environment, "KITAE_METRICS_OPEN", default=cls.metrics_open),
            reconcile_deployments=_switch(environment, "KITAE_KEEP_DEPLOYMENTS", default=cls.reconcile_deployments),
            job_defaults=_sections(environment, "KITAE_JOB_DEFAULTS"),
            prices=prices.from_environment(environment),
            cors_origins=_origins(environment, "KITAE_CORS_ORIGINS"),
            offers_wandb=_switch(environment, "KITAE_WANDB", default=cls.offers_wandb),
        )


def _api_key(environment: Mapping[str, str]) -> str:
    key = environment.get("KITAE_API_KEY") or ""
    if len(key) < _MIN_KEY_CHARACTERS:
        raise SpecError(
            f"KITAE_API_KEY has {len(key)} characters and needs at least {_MIN_KEY_CHARACTERS}: set it in the "
            "environment of Ray's nodes, or KITAE_AUTH=off if the endpoint is not reachable by others"
        )
    return key


def _key_limits(environment: Mapping[str, str]) -> Limits:
    try:
        given = Limits.model_validate_json(environment.get("KITAE_KEY_LIMITS") or "{}")
    except ValidationError as error:
        known = ", ".join(Limits.model_fields)
        what = ", ".join(".".join(map(str, found["loc"])) or "not JSON" for found in error.errors())
        raise SpecError(f"KITAE_KEY_LIMITS is invalid ({what}); it is a JSON object with any of {known}") from error
    return given.or_else(_KEY_LIMITS)


def _team_quotas(environment: Mapping[str, str]) -> TeamQuotas:
    try:
        found = TeamQuotas.model_validate_json(environment.get("KITAE_TEAM_LIMITS") or "{}")
        for team in found.teams:
            found.of(team)
    except ValidationError as error:
        known = ", ".join(TeamLimits.model_fields)
        what = ", ".join(".".join(map(str, each["loc"])) or "not JSON" for each in error.errors())
        message = (
            f"KITAE_TEAM_LIMITS is invalid ({what}); it is a JSON object with any of {known} as whole numbers from 1"
        )
        raise SpecError(f"{message}, and `teams` with the same of single teams") from error
    return found


def _sections(environment: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        found = json.loads(environment.get(name) or "{}")
    except ValueError as error:
        raise SpecError(f"{name} is not JSON: {error}") from error
    known = ("training", "compute", "evaluation", "serving", "data", "tracking")
    if not isinstance(found, dict) or (unknown := sorted(set(found) - set(known))):
        what = f"has {', '.join(unknown)}" if isinstance(found, dict) else "is not an object"
        raise SpecError(f"{name} {what}; it may have the sections {', '.join(known)} of a job file")
    return found


def _origins(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    found = tuple(text.strip() for text in (environment.get(name) or "").split(",") if text.strip())
    for text in found:
        if text != "*" and not _ORIGIN.fullmatch(text):
            raise SpecError(f"{name} has {text!r}; it must be `*` or origins such as https://chat.example.com")
    return found


def _switch(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environment.get(name) or ("on" if default else "off")
    if text not in ("on", "off"):
        raise SpecError(f"{name} is {text!r}; it must be on or off")
    return text == "on"


def _number(environment: Mapping[str, str], name: str, default: int, least: int, unit: str = "") -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise SpecError(f"{name} is {text!r}; it must be a number{unit}, at least {least}")
    return int(text)
