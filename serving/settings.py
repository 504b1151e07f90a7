"""What the endpoint is told by its environment, read once where a process begins.

Owns names, defaults and checks of the variables. Knows nothing of what they are used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.errors import SpecError

_MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Settings:
    """Of the process that takes requests."""

    api_key: str | None
    """The bearer key every request must carry. None: no key is asked for (KITAE_AUTH=off)."""
    max_body_bytes: int = 4 * 2**20
    """A larger request is answered 413."""
    max_ongoing_requests: int = 1000
    """Connections one ingress process works on at once."""
    route_ttl_s: float = 2.0
    """How long records and aliases are believed before the store is asked again."""

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Settings:
        """Of KITAE_API_KEY, KITAE_AUTH and KITAE_MAX_BODY_BYTES. SpecError where one of them is unusable."""
        return cls(api_key=_api_key(environment), max_body_bytes=_max_body_bytes(environment))


def _api_key(environment: Mapping[str, str]) -> str | None:
    mode = environment.get("KITAE_AUTH") or "on"
    if mode == "off":
        return None
    if mode != "on":
        raise SpecError(f"KITAE_AUTH is {mode!r}; it must be on or off")
    key = environment.get("KITAE_API_KEY") or ""
    if len(key) < _MIN_KEY_CHARACTERS:
        raise SpecError(
            f"KITAE_API_KEY has {len(key)} characters and needs at least {_MIN_KEY_CHARACTERS}: set it in the "
            "environment of Ray's nodes, or KITAE_AUTH=off where nobody else reaches the endpoint"
        )
    return key


def _max_body_bytes(environment: Mapping[str, str]) -> int:
    text = environment.get("KITAE_MAX_BODY_BYTES") or str(Settings.max_body_bytes)
    if not text.isdecimal() or int(text) < 1024:
        raise SpecError(f"KITAE_MAX_BODY_BYTES is {text!r}; it must be a number of bytes, at least 1024")
    return int(text)
