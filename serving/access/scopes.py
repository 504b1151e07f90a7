"""What the scopes of a key allow. Pure. Knows paths, no routes."""

from __future__ import annotations

from collections.abc import Collection

from ray_jobs.tenancy.api_keys import Scope

_INFERENCE = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"})
_RESPONSES = "/v1/responses"
"""Also reading and deleting: a client continues and removes what it made, by ids that it alone has."""
_FOR_OPERATOR = "/v1/fine_tuning/checkpoints/"
_BATCHES = "/v1/batches"
"""A batch calls models."""
_FOR_ALL = ("/v1/models", "/openapi.json")
"""Every key may look up what it can call."""


def needed(method: str, path: str) -> tuple[Scope, ...]:
    """The scopes of which a request needs one; empty: every key may send it. `admin` allows everything."""
    is_batch = path == _BATCHES or path.startswith(f"{_BATCHES}/")
    if path.startswith(_RESPONSES) or (path in _INFERENCE and method != "GET") or (is_batch and method != "GET"):
        return ("inference",)
    if is_batch:
        return ("read", "inference", "fine-tuning")
    if path.startswith(_FOR_OPERATOR):
        return ("admin",)
    if method == "GET":
        return () if path.startswith(_FOR_ALL) else ("read", "fine-tuning")
    return ("fine-tuning",)


def allow(scopes: Collection[Scope], method: str, path: str) -> bool:
    """Whether a key with these scopes may send a request."""
    wanted = needed(method, path)
    return not wanted or "admin" in scopes or any(scope in scopes for scope in wanted)
