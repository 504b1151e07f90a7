"""A finished request: what the metrics, the request log and the usage ledger count.

Contains no body, prompt, path or key. Does not know who counts it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

OTHER = "other"
"""Label of values without one of their own: unknown paths and methods, and models beyond the maximum."""


@dataclass(frozen=True)
class FinishedRequest:
    """Measurements and identity of a request that has ended."""

    request_id: str
    method: str
    route: str
    """The route's template, such as `/v1/files/{file_id}`; `other` if no route matches."""
    status: int
    complete: bool
    """Whether the whole response was sent; False for a stream that broke off."""
    duration_s: float
    first_chunk_s: float | None
    """Seconds until the first chunk of a stream. None: the response was not a stream."""
    response_bytes: int
    team: str | None
    key_id: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None

    def to_log_line(self, at: datetime) -> str:
        """Return the request's line of the log; unknown fields are omitted."""
        fields: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": "error" if self.status >= 500 else "info",
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(1000 * self.duration_s, 1),
            "complete": self.complete,
            "team": self.team,
            "key_id": self.key_id,
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)
