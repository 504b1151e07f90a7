"""Usage of teams: tokens read and generated, and time spent training.

Owns `usage/{team}/{YYYY-MM-DD}/{writer}-{n:06d}.json` (UTC days). An object is written once, under a name chosen before
the first try, so that replicas do not conflict and a write repeated after a lost answer is not counted twice. Objects
are summed up into `day.json` beside them (`roll_up_all`), which names them. A team's usage is the sum of both; training
is also booked in the team's month (`spent`). Knows no prices and no limits, nor who counts
(`serving.observability.usage_ledger` counts requests).

    write(store, "blue", day, "replica-1f3a", 7, [row])
    for total in group(read(store, "blue", since, until), "model"): …
"""

from __future__ import annotations

import re
from collections import Counter
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


class _Summary(_Object, frozen=True):
    """The sum of a day's objects. An earlier version reads it as one more object."""

    counted: dict[str, list[tuple[int, int]]] = {}
    """Writer → ranges of the numbers of the objects that are summed up."""


_OBJECTS = Documents(PREFIX, _Object, "a usage object")
_SUMMARIES = Documents(PREFIX, _Summary, "a usage summary")
_SUMMARY = "day"


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
    """CPUs × seconds of training without GPUs."""


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
    """The training runs of the month of a day: by the name of their object, and summed up by day and model."""
    days = [found for found in store.list_dirs(f"{PREFIX}{_checked(team)}/") if found.startswith(f"{day:%Y-%m}-")]
    folders = [f"{team}/{found}" for found in days]
    names = [name for folder in folders for name in _names(store, folder) if not _REQUESTS.search(_OBJECTS.key(name))]
    objects = _OBJECTS.read_some(store, names)
    summaries = _SUMMARIES.read_some(store, [f"{folder}/{_SUMMARY}" for folder in folders])
    rows: dict[str, list[UsageRow]] = {
        name.rpartition("/")[2]: list(each.rows)
        for name, each in objects.items()
        if not _is_in(summaries.get(f"{name.rpartition('/')[0]}/{_SUMMARY}"), name)
    }
    for summary in summaries.values():
        for row in summary.rows:
            rows.setdefault(f"{row.day.isoformat()}/{row.model}", []).append(row)
    return {name: used for name, own in rows.items() if (used := _trained(own)) is not None}


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
    days = [
        f"{name}/{day}"
        for name in teams
        for day in store.list_dirs(f"{PREFIX}{name}/")
        if since.isoformat() <= day <= until.isoformat()
    ]
    return added(row for _, rows in rows_of(store, days) for row in rows)


def rows_of(
    store: Store, days: Sequence[str], is_wanted: Callable[[str], bool] = lambda writer: True
) -> list[tuple[str, tuple[UsageRow, ...]]]:
    """The rows of `{team}/{date}` folders with their writers, of the wanted ones; "" for a sum of several writers.

    Reads several objects at a time, and the summary last: an object that was summed up meanwhile is in it.
    """
    names = [name for day in days for name in _names(store, day) if is_wanted(_split(name)[0])]
    objects = _OBJECTS.read_some(store, names)
    summaries = _SUMMARIES.read_some(store, [f"{day}/{_SUMMARY}" for day in days])
    found = [
        (_split(name)[0], each.rows)
        for name, each in objects.items()
        if not _is_in(summaries.get(f"{name.rpartition('/')[0]}/{_SUMMARY}"), name)
    ]
    summed = [(_writer_of(summary, row), (row,)) for summary in summaries.values() for row in summary.rows]
    return found + [(writer, rows) for writer, rows in summed if is_wanted(writer)]


def roll_up(store: Store, team: str, day: str, *, least: int = 1) -> int:
    """Sum up a day's objects into one, if there are at least so many, and delete them. Returns their number.

    Any number of processes may do it at once, and be killed: an object's name is in the summary once its rows are, so
    no row counts twice while both exist, nor when a writer repeats a write after that.
    """
    folder = f"{_checked(team)}/{day}"
    names = _names(store, folder)
    if len(names) < least:
        return 0
    objects = _OBJECTS.read_some(store, names)

    def change(old: _Summary | None) -> _Summary:
        new = {name: each.rows for name, each in objects.items() if not _is_in(old, name)}
        counted = {writer: list(ranges) for writer, ranges in (old.counted if old else {}).items()}
        for name in sorted(new):
            writer, number = _split(name)
            counted[writer] = _with_number(counted.get(writer, []), number)
        rows = [*(old.rows if old else ()), *(row for name in sorted(new) for row in new[name])]
        return _Summary(rows=tuple(added(rows)), counted=counted)

    _SUMMARIES.update(store, f"{folder}/{_SUMMARY}", change)
    store.delete([_OBJECTS.key(name) for name in objects])
    return len(objects)


def roll_up_all(store: Store, today: date, *, since: date = date.min, least_today: int = 50) -> int:
    """Sum up every team's objects from `since` on: those of past days, and of today from `least_today` objects on.

    Costs one listing per 1,000 objects of a team. Returns the number of objects that were summed up.
    """
    done = 0
    for team in store.list_dirs(PREFIX):
        counts: Counter[str] = Counter()
        for info in store.list(f"{PREFIX}{team}/", after=f"{PREFIX}{team}/{since.isoformat()}"):
            day, _, name = info.key.removeprefix(f"{PREFIX}{team}/").partition("/")
            counts[day] += name != f"{_SUMMARY}.json"
        for day, count in counts.items():
            if count:
                done += roll_up(store, team, day, least=1 if day < today.isoformat() else least_today)
    return done


def _names(store: Store, folder: str) -> list[str]:
    keys = [info.key for info in store.list(f"{PREFIX}{folder}/")]
    names = [key.removeprefix(PREFIX).removesuffix(".json") for key in keys if key.endswith(".json")]
    return [name for name in names if not name.endswith(f"/{_SUMMARY}")]


def _writer_of(summary: _Summary, row: UsageRow) -> str:
    """The job whose run a training row of a summary is: the row has the API's id, with which the job's id begins."""
    own = (writer for writer in summary.counted if row.kind == "training" and f"{writer}-".startswith(f"{row.model}-"))
    return next(own, "")


def _split(name: str) -> tuple[str, int | None]:
    """Writer and number of an object's name; the number None: not written by `write`."""
    writer, _, number = name.rpartition("/")[2].rpartition("-")
    return (writer, int(number)) if writer and number.isdecimal() else (name.rpartition("/")[2], None)


def _is_in(summary: _Summary | None, name: str) -> bool:
    """Whether a summary has an object's rows."""
    writer, number = _split(name)
    ranges = [] if summary is None else summary.counted.get(writer, [])
    return any(number is None or first <= number <= last for first, last in ranges)


def _with_number(ranges: list[tuple[int, int]], number: int | None) -> list[tuple[int, int]]:
    """Ranges with one more number; neighbouring ranges are joined. Pure."""
    number = 0 if number is None else number
    joined: list[tuple[int, int]] = []
    for first, last in sorted([*ranges, (number, number)]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined


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
