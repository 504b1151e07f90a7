"""What a team's trainings of a month used, in one document, so that a budget is checked by one read.

    spent/{team}/{YYYY-MM}.json   by month of the end (UTC): each finished run, and each open job's reservation

Owns these documents. A run is booked under the name of its object in the usage ledger, so booking it again changes
nothing. Knows no prices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from datetime import date

from pydantic import BaseModel, Field

from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class Used(BaseModel, frozen=True):
    """Hours of one or several runs."""

    gpu_seconds: float = Field(0.0, ge=0)
    cpu_seconds: float = Field(0.0, ge=0)
    """CPUs × seconds of training without GPUs."""
    worker_seconds: float = Field(0.0, ge=0)
    tokens: int = Field(0, ge=0)
    """Trained on."""

    def plus(self, other: Used) -> Used:
        return Used(**{name: getattr(self, name) + getattr(other, name) for name in Used.model_fields})


class Reserved(BaseModel, frozen=True):
    """The estimated hours of a job that has not ended."""

    at: float
    """Unix seconds."""
    estimate: Used


class Month(BaseModel, frozen=True):
    """A team's trainings of a month."""

    runs: dict[str, Used] = {}
    open: dict[str, Reserved] = {}
    """By job."""

    @property
    def booked(self) -> Used:
        """What finished runs used."""
        return _sum(self.runs.values())

    @property
    def reserved(self) -> Used:
        """What open jobs are estimated to use."""
        return _sum(each.estimate for each in self.open.values())


_MONTHS = Documents("spent/", Month, "what a month's trainings used")
Runs = Mapping[str, Used]


def read(store: Store, team: str, day: date, *, earlier: Callable[[], Runs]) -> Month:
    """The month of a day. `earlier`: its runs in the ledger, for a month that was begun by a version without this."""
    return _MONTHS.read(store, _name(team, day)) or Month(runs=dict(earlier()))


def book(store: Store, team: str, day: date, name: str, used: Used, *, earlier: Callable[[], Runs]) -> None:
    """Add a finished run to the month of its end."""
    begun = _begun(store, team, day, earlier)
    _MONTHS.update(
        store,
        _name(team, day),
        lambda old: (old or begun).model_copy(update={"runs": {**(old or begun).runs, name: used}}),
    )


def reserve(
    store: Store,
    team: str,
    day: date,
    job: str,
    reservation: Reserved,
    *,
    allow: Callable[[Month], None],
    is_open: Callable[[str, Reserved], bool],
    earlier: Callable[[], Runs],
) -> Month:
    """Reserve the estimate of a job that is being created, by a conditional write; of two jobs one sees the other.

    `allow`: raises if the month without the job leaves no room. `is_open`: whether a reservation is still a job's.
    """
    begun = _begun(store, team, day, earlier)

    def change(old: Month | None) -> Month:
        month = old or begun
        kept = {name: each for name, each in month.open.items() if name != job and is_open(name, each)}
        month = month.model_copy(update={"open": kept})
        allow(month)
        return month.model_copy(update={"open": {**kept, job: reservation}})

    return _MONTHS.update(store, _name(team, day), change)


def release(store: Store, team: str, day: date, job: str) -> None:
    """End the reservation of a job that was created on this day; no error without one."""
    month = _MONTHS.read(store, _name(team, day))
    if month is None or job not in month.open:
        return

    def change(old: Month | None) -> Month:
        month = old or Month()
        return month.model_copy(update={"open": {name: each for name, each in month.open.items() if name != job}})

    _MONTHS.update(store, _name(team, day), change)


def _begun(store: Store, team: str, day: date, earlier: Callable[[], Runs]) -> Month:
    """A month's first document."""
    return Month() if store.exists(_MONTHS.key(_name(team, day))) else Month(runs=dict(earlier()))


def _sum(parts: Iterable[Used]) -> Used:
    return functools.reduce(Used.plus, parts, Used())


def _name(team: str, day: date) -> str:
    return f"{team}/{day:%Y-%m}"
