"""Usage of teams: tokens read and generated, and time spent training.

Owns `usage/{team}/{YYYY-MM-DD}/{writer}-{n:06d}.json` (UTC days). An object is written once, under a name chosen before
the first try, so that replicas do not conflict and a write repeated after a lost answer is not counted twice. A team's
usage is the sum of these objects; training is also booked in the team's month (`spent`). Knows no prices and no
limits, nor who counts (`serving.observability.usage_ledger` counts requests).

    write(store, "blue", day, "replica-1f3a", 7, [row])
    for total in group(read(store, "blue", since, until), "model"): …
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, Field

from ray_jobs.errors import ConflictError, SpecError
from ray_jobs.spec import NAME_RULE, Name, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tenancy import spent
from ray_jobs.tenancy.spent import Used

By = Literal["team", "key", "model", "day"]

PREFIX = "usage/"
_WRITER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_REQUESTS = re.compile(r"/api-[0-9a-f]{16}-\d+\.json$")
"""Objects of the processes that count requests: they hold no training."""


class UsageRow(BaseModel, frozen=True):
    """Usage of one model by one key on one day."""

    day: date
    team: Name
    key_id: str
    model: str
    """The registered name, not the spelling in the request."""
    kind: Literal["inference", "training"]
    requests: int = Field(0, ge=0)
    """Inference: requests. Training: runs."""
    prompt_tokens: int = Field(0, ge=0)
    """Inference: tokens read. Training: tokens trained on."""
    completion_tokens: int = Field(0, ge=0)
    worker_seconds: float = Field(0.0, ge=0)
    """Training processes × seconds."""
    gpu_seconds: float = Field(0.0, ge=0)
    """GPUs × seconds."""
    own_cpu_seconds: float = Field(0.0, ge=0)
    """CPUs × seconds of training without GPUs; 0 in rows from before it was counted."""

    @property
    def cpu_seconds(self) -> float:
        """CPUs × seconds of training without GPUs; at least one CPU a process."""
        return 0.0 if self.gpu_seconds else self.own_cpu_seconds or self.worker_seconds

    @property
    def identity(self) -> tuple[date, str, str, str, str]:
        """Rows with the same identity are added up."""
        return self.day, self.team, self.key_id, self.model, self.kind

    def plus(self, other: UsageRow) -> UsageRow:
        """The sum of both; the identity is this row's."""
        return self.model_copy(update={name: getattr(self, name) + getattr(other, name) for name in _SUMMED})


class _Object(BaseModel, frozen=True):
    """One object of the ledger."""

    rows: tuple[UsageRow, ...]


_OBJECTS = Documents(PREFIX, _Object, "a usage object")


class Total(BaseModel, frozen=True):
    """Usage of a team, key, model or day, of both kinds."""

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    training_runs: int = 0
    trained_tokens: int = 0
    worker_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of training without GPUs."""


_SUMMED = ("requests", "prompt_tokens", "completion_tokens", "worker_seconds", "gpu_seconds", "own_cpu_seconds")
_NAME_OF: dict[By, Callable[[UsageRow], str]] = {
    "team": lambda row: row.team,
    "key": lambda row: f"{row.team}/{row.key_id}",
    "model": lambda row: row.model,
    "day": lambda row: row.day.isoformat(),
}


def write(store: Store, team: str, day: date, writer: str, number: int, rows: Sequence[UsageRow]) -> bool:
    """Write a team's rows of a day. False: the object exists, so these rows are counted already.

    `writer` and `number` must name these rows and no others, in every try: for training they are the job's id and the
    number of its run, and `day` is that of the recorded end, so that every replica that sees the end may write it.
    """
    if not _WRITER.fullmatch(writer):
        raise ValueError(f"{writer!r} cannot be part of a key")
    name = f"{_checked(team)}/{day.isoformat()}/{writer}-{number:06d}"
    try:
        _OBJECTS.create(store, name, _Object(rows=tuple(rows)))
        is_new = True
    except ConflictError:
        is_new = False
    if used := _trained(rows):  # also if the object exists: its writer may have died in between
        run = f"{writer}-{number:06d}"
        spent.book(store, team, day, run, used, earlier=lambda: trainings(store, team, day))
    return is_new


def trainings(store: Store, team: str, day: date) -> dict[str, Used]:
    """The training runs of the month of a day, by the name of their object. Lists all objects of the month."""
    month = f"{PREFIX}{_checked(team)}/"
    days = [found for found in store.list_dirs(month) if found.startswith(f"{day:%Y-%m}-")]
    keys = [info.key for found in days for info in store.list(f"{month}{found}/") if not _REQUESTS.search(info.key)]
    runs = ((key, _trained(rows)) for key, rows in rows_at(store, keys).items())
    return {key.rpartition("/")[2].removesuffix(".json"): used for key, used in runs if used is not None}


def _trained(rows: Iterable[UsageRow]) -> Used | None:
    """The training in these rows; None without any."""
    found = [row for row in rows if row.kind == "training"]
    return (
        Used(
            gpu_seconds=sum(row.gpu_seconds for row in found),
            cpu_seconds=sum(row.cpu_seconds for row in found),
            worker_seconds=sum(row.worker_seconds for row in found),
            tokens=sum(row.prompt_tokens for row in found),
        )
        if found
        else None
    )


def read(store: Store, team: str | None, since: date, until: date) -> list[UsageRow]:
    """Usage of a team (None: every team) from `since` to `until`, both included, added up by `identity`.

    Objects that cannot be read are left out and reported to `store.unreadable`.
    """
    teams = [_checked(team)] if team is not None else store.list_dirs(PREFIX)
    keys = [
        info.key
        for name in teams
        for day in store.list_dirs(f"{PREFIX}{name}/")
        if since.isoformat() <= day <= until.isoformat()
        for info in store.list(f"{PREFIX}{name}/{day}/")
    ]
    return added(row for rows in rows_at(store, keys).values() for row in rows)


def rows_at(store: Store, keys: Sequence[str]) -> dict[str, tuple[UsageRow, ...]]:
    """The rows of each readable object by its key, in the keys' order; reads several at a time."""
    names = {key.removeprefix(PREFIX).removesuffix(".json"): key for key in keys}
    return {names[name]: found.rows for name, found in _OBJECTS.read_some(store, names).items()}


def added(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """One row per identity, sorted."""
    sums: dict[tuple[Any, ...], UsageRow] = {}
    for row in rows:
        known = sums.get(row.identity)
        sums[row.identity] = row if known is None else known.plus(row)
    return [sums[identity] for identity in sorted(sums)]


def group(rows: Iterable[UsageRow], by: By) -> list[Total]:
    """A total per name, sorted by name."""
    parts: dict[str, list[UsageRow]] = {}
    for row in rows:
        parts.setdefault(_NAME_OF[by](row), []).append(row)
    return [total(name, parts[name]) for name in sorted(parts)]


def total(name: str, rows: Sequence[UsageRow]) -> Total:
    """The sum of the rows."""
    inference = [row for row in rows if row.kind == "inference"]
    trained = [row for row in rows if row.kind == "training"]
    return Total(
        name=name,
        requests=sum(row.requests for row in inference),
        prompt_tokens=sum(row.prompt_tokens for row in inference),
        completion_tokens=sum(row.completion_tokens for row in inference),
        training_runs=sum(row.requests for row in trained),
        trained_tokens=sum(row.prompt_tokens for row in trained),
        worker_seconds=sum(row.worker_seconds for row in rows),
        gpu_seconds=sum(row.gpu_seconds for row in rows),
        cpu_seconds=sum(row.cpu_seconds for row in rows),
    )


def _checked(team: str) -> str:
    if not is_name(team):
        raise SpecError(f"{team!r} cannot be a team's name: {NAME_RULE}")
    return team
