"""A team's monthly budget when a job is created through the API: the estimate, the refusal, and what it answers.

Decides nothing (`ray_jobs.tenancy.budgets`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ray_jobs import jobs
from ray_jobs.data.report import RowReport
from ray_jobs.errors import BudgetError
from ray_jobs.storage import Store
from ray_jobs.tenancy import budgets, spent
from ray_jobs.tenancy.budgets import BudgetStanding, Estimate
from ray_jobs.tenancy.prices import Prices
from serving.fine_tuning import records
from serving.fine_tuning.records import ApiJob
from serving.http.errors import ApiError


@contextmanager
def reserved(
    store: Store, api: ApiJob, rows: RowReport | None, prices: Prices | None, now_s: float
) -> Iterator[BudgetStanding | None]:
    """Reserve the estimate of a job while the block creates it, and until it ends; not if the block raises.

    Raises ApiError 429 if the budget of the team has no room, 503 if it cannot be checked.
    """
    if budgets.read(store, api.team) is None:
        yield None
        return
    now = _time(now_s)

    def is_open(job: str) -> bool:
        found = records.find(store, api.team, job)
        return found is not None and found.closed is None

    with _refusals(prices):
        estimate = _estimate(store, api, rows, now)
        standing = budgets.reserve(store, api.team, api.id, estimate, prices, now, is_open=is_open)
    try:
        yield standing
    except BaseException:
        spent.release(store, api.team, now.date(), api.id)
        raise


def check(
    store: Store, api: ApiJob, rows: RowReport | None, prices: Prices | None, now_s: float
) -> dict[str, object] | None:
    """Check a job that is not created, as `reserved` does. Returns its part of a plan; None: the team has no budget."""
    if budgets.read(store, api.team) is None:
        return None
    with _refusals(prices):
        estimate = _estimate(store, api, rows, _time(now_s))
        standing = budgets.check(store, api.team, estimate, prices, _time(now_s))
    if standing is None:
        return None
    cost = None if estimate.used is None or prices is None else round(prices.cost(estimate.used), 4)
    shown = {"per_month": standing.per_month, "booked": standing.booked, "reserved": standing.reserved}
    return {**shown, "state": standing.level, "job": cost, "job_basis": estimate.basis}


def warn(store: Store, api: ApiJob, standing: BudgetStanding | None) -> None:
    """Add an event to a job whose team has used most of its budget."""
    if standing is not None and standing.level != "ok":
        jobs.note(api.workspace(store), api.job_id, "warning", standing.as_text())


@contextmanager
def _refusals(prices: Prices | None) -> Iterator[None]:
    try:
        yield
    except BudgetError as error:
        if prices is None:
            message = "the budget of the team cannot be checked, since the endpoint has no prices: ask its operator"
            raise ApiError(503, message, code="budget_unavailable", headers={"Retry-After": "60"}) from error
        headers = {"x-should-retry": "false"}
        raise ApiError(429, error.message, code="insufficient_quota", headers=headers) from error


def _estimate(store: Store, api: ApiJob, rows: RowReport | None, now: datetime) -> Estimate:
    spec = api.job_spec()
    tokens = None if rows is None or rows.tokens is None else rows.tokens * spec.training.epochs
    return budgets.estimate_of(store, spec, api.team, tokens, now)


def _time(now_s: float) -> datetime:
    return datetime.fromtimestamp(now_s, UTC)
