"""Monthly budgets of teams in money, one document per team, `budgets/{team}.json`, and what they allow.

Owns that document, the estimate of a job and the decision. Does not know where prices come from (`cluster.prices`) nor
what was used (`spent`). Months are in UTC; a job counts in the month of its end, until then as its estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ray_jobs.errors import BudgetError, SpecError
from ray_jobs.spec import NAME_RULE, JobSpec, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tenancy import spent, usage
from ray_jobs.tenancy.prices import Prices
from ray_jobs.tenancy.spent import Month, Reserved, Used

WARN_AT = 0.8
"""Share of a budget from which users are warned."""
ORPHAN_AFTER_S = 120.0
"""Age at which a reservation whose job does not exist is left from an interrupted create."""


class Budget(BaseModel):
    """A team's budget."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    per_month: float = Field(gt=0, le=1e12, allow_inf_nan=False)
    """Amount a calendar month (UTC), in the currency of the prices."""
    set_at: AwareDatetime | None = None


_BUDGETS = Documents("budgets/", Budget, "a budget")

read_all = _BUDGETS.read_all


@dataclass(frozen=True)
class Estimate:
    """What a job is likely to use."""

    used: Used | None
    """None: not known."""
    basis: str
    """What it follows from, or why it is not known."""


@dataclass(frozen=True)
class BudgetStanding:
    """A team's budget and its month."""

    team: str
    per_month: float
    booked: float
    """Cost of the trainings that ended this month."""
    reserved: float
    """Estimated cost of the open jobs."""

    @property
    def share(self) -> float:
        """Part of the budget that is booked or reserved."""
        return (self.booked + self.reserved) / self.per_month

    def as_text(self) -> str:
        parts = f"{self.booked:,.2f} booked and {self.reserved:,.2f} reserved for open jobs"
        return f"team {self.team} has used {self.share:.0%} of its budget of {self.per_month:,.2f} this month ({parts})"

    @property
    def level(self) -> Literal["ok", "warning", "exceeded"]:
        return "exceeded" if self.share >= 1 else "warning" if self.share >= WARN_AT else "ok"

    def require(self, cost: float | None, basis: str) -> None:
        """Raise BudgetError unless the month has room for a job of this cost. None: not known; then for any job."""
        after = self.booked + self.reserved + (cost or 0.0)
        if after < self.per_month or (cost and after <= self.per_month):
            return
        job = f"about {cost:,.2f} ({basis})" if cost is not None else f"not known ({basis})"
        raise BudgetError(
            f"{self.as_text()}, and the job's cost is {job}: wait for the next month or for open jobs, make the job "
            f"smaller, or let the operator raise the budget (kitae budget set {self.team} --per-month AMOUNT)"
        )


def set_budget(store: Store, team: str, per_month: float) -> Budget:
    """Set a team's budget. Raises SpecError for a name that no team can have."""
    return _BUDGETS.update(store, _checked(team), lambda old: Budget(per_month=per_month, set_at=store.now()))


def clear(store: Store, team: str) -> None:
    """Remove a team's budget. Raises SpecError if it has none."""
    if read(store, team) is None:
        raise SpecError(f"team {team} has no budget; `kitae budget show` lists those that have one")
    store.delete(_BUDGETS.key(team))


def read(store: Store, team: str) -> Budget | None:
    """A team's budget; None: it has none."""
    return _BUDGETS.read(store, _checked(team))


def standing(store: Store, team: str, budget: Budget, prices: Prices | None, now: datetime) -> BudgetStanding:
    """A team's budget in the month of `now`. Raises BudgetError without prices."""
    day = now.astimezone(UTC).date()
    month = spent.read(store, team, day, earlier=lambda: usage.trainings(store, team, day))
    return _standing(team, budget, _required(prices, team), month)


def estimate_of(store: Store, spec: JobSpec, team: str, tokens: int | None, now: datetime) -> Estimate:
    """Estimate a job's hours: from its search's budget, else from its tokens at the team's own speed.

    `tokens`: those that one training reads; None: not known.
    """
    if spec.search is not None and (hours := _search_hours(spec)) is not None:
        return Estimate(_used(spec, hours * 3600), "the budget of its search")
    if tokens is None:
        return Estimate(None, "its tokens are not counted yet")
    months = [_month(store, team, day) for day in _this_and_last_month(now)]
    runs = [run for month in months for run in month.runs.values() if run.tokens and run.worker_seconds]
    if not runs:
        return Estimate(None, "the team has no training of this or the last month to estimate from")
    seconds_a_token = sum(run.worker_seconds for run in runs) / sum(run.tokens for run in runs)
    whose = f"{tokens:,} tokens at the speed of the team's {len(runs)} latest trainings"
    basis = whose if spec.search is None else f"one training of its search, which has no budget: {whose}"
    return Estimate(_used(spec, tokens * seconds_a_token), basis)


def reserve(
    store: Store,
    team: str,
    job: str,
    estimate: Estimate,
    prices: Prices | None,
    now: datetime,
    *,
    is_open: Callable[[str], bool],
) -> BudgetStanding | None:
    """Reserve a new job's estimate in its team's budget; None: the team has none. Raises BudgetError.

    `is_open`: whether a job exists and has not ended.
    """
    budget = read(store, team)
    if budget is None:
        return None
    known, day = _required(prices, team), now.astimezone(UTC).date()
    cost = None if estimate.used is None else known.cost(estimate.used)

    def counts(other: str, made: Reserved) -> bool:
        return now.timestamp() - made.at < ORPHAN_AFTER_S or is_open(other)

    month = spent.reserve(
        store,
        team,
        day,
        job,
        Reserved(at=now.timestamp(), estimate=estimate.used or Used()),
        allow=lambda month: _standing(team, budget, known, month).require(cost, estimate.basis),
        is_open=counts,
        earlier=lambda: usage.trainings(store, team, day),
    )
    return _standing(team, budget, known, month)


def check(store: Store, team: str, estimate: Estimate, prices: Prices | None, now: datetime) -> BudgetStanding | None:
    """Check a new job against its team's budget, without a reservation; None: the team has none. Raises BudgetError."""
    budget = read(store, team)
    if budget is None:
        return None
    found = standing(store, team, budget, prices, now)
    found.require(None if estimate.used is None or prices is None else prices.cost(estimate.used), estimate.basis)
    return found


def _standing(team: str, budget: Budget, prices: Prices, month: Month) -> BudgetStanding:
    return BudgetStanding(team, budget.per_month, prices.cost(month.booked), prices.cost(month.reserved))


def _required(prices: Prices | None, team: str) -> Prices:
    if prices is None:
        raise BudgetError(
            f"the budget of team {team} cannot be checked without prices: set price_per_hour of the flavors in the "
            "file of KITAE_CLUSTER, or KITAE_PRICES without a cluster"
        )
    return prices


def _search_hours(spec: JobSpec) -> float | None:
    """Most hours of one worker that a search may take by its budget. None: it has none of time or money."""
    assert spec.search is not None
    budget, workers = spec.search.budget, spec.compute.workers
    money = budget.money / budget.price_per_hour if budget.money and budget.price_per_hour else None
    wall = None if budget.hours is None else budget.hours * workers
    found = [hours for hours in (budget.gpu_hours, money, wall) if hours is not None]
    return min(found) if found else None


def _used(spec: JobSpec, worker_seconds: float) -> Used:
    compute = spec.compute
    gpu_seconds = worker_seconds * compute.gpus_per_worker
    cpu_seconds = 0.0 if gpu_seconds else worker_seconds * compute.cpus_per_worker
    return Used(gpu_seconds=gpu_seconds, cpu_seconds=cpu_seconds, worker_seconds=worker_seconds)


def _month(store: Store, team: str, day: date) -> Month:
    return spent.read(store, team, day, earlier=lambda: usage.trainings(store, team, day))


def _this_and_last_month(now: datetime) -> tuple[date, date]:
    today = now.astimezone(UTC).date()
    first = today.replace(day=1)
    return today, first.replace(year=first.year - (first.month == 1), month=(first.month - 2) % 12 + 1)


def _checked(team: str) -> str:
    if not is_name(team):
        raise SpecError(f"{team!r} cannot be a team's name: {NAME_RULE}")
    return team
