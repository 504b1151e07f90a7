"""What a team keeps: refuses a file or an upload beyond the team's limits.

Counts contents from two listings, one request per 1,000 objects, so that no count can differ from what is stored. Two
uploads at once that together exceed a limit may both be refused; a limit is never exceeded.
"""

from __future__ import annotations

from ray_jobs.storage import Store
from ray_jobs.tenancy.team_limits import TeamLimits
from serving.http.errors import ApiError


def require_room(store: Store, team: str, limits: TeamLimits, size_bytes: int, *, own: str | None = None) -> None:
    """Raise ApiError 429 if a file of this size would exceed a limit. `own`: its id, which is not counted twice."""
    names, stored_bytes = set[str](), 0
    for folder in (f"files/{team}/", f"uploads/{team}/"):
        for info in store.list(folder):
            name = info.key.removeprefix(folder).partition("/")[0]
            if name != own:
                names.add(name)
                stored_bytes += info.size_bytes
    if len(names) >= limits.files:
        message = f"team {team} has {len(names)} files, and may have {limits.files}: delete some"
        raise _exceeded(message, "files_exceeded")
    if stored_bytes + size_bytes > limits.file_bytes:
        message = (
            f"team {team} has {stored_bytes} bytes in files; with these {size_bytes} it would exceed its limit of "
            f"{limits.file_bytes}: delete some"
        )
        raise _exceeded(message, "file_bytes_exceeded")


def _exceeded(message: str, code: str) -> ApiError:
    return ApiError(429, message, param="file", code=code, headers={"x-should-retry": "false"})
