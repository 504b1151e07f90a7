"""Finished requests for tests."""

from __future__ import annotations

from typing import Any

from serving.observability.metrics import FinishedRequest


def finished(**changes: Any) -> FinishedRequest:
    """A chat request of team blue that was answered."""
    fields: dict[str, Any] = {
        "request_id": "r",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "complete": True,
        "duration_s": 0.5,
        "first_chunk_s": None,
        "response_bytes": 10,
        "team": "blue",
        "key_id": "k1",
        "model": "m",
        "prompt_tokens": 3,
        "completion_tokens": 1,
    }
    return FinishedRequest(**(fields | changes))
