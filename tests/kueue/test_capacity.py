"""Quotas of a ClusterQueue, and requests that no quota could admit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster.kinds import Object
from ray_jobs.cluster.quantities import parse
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import RequestTooLarge, UnknownQueue
from ray_jobs.kueue import capacity
from ray_jobs.kueue.capacity import Quota
from ray_jobs.launch import rayjob_manifest
from ray_jobs.launch.launcher import Needs
from tests.cluster.builders import SETTINGS, cluster_queue

SETTING = ClusterSettings.model_validate(SETTINGS)


def gpus(name: str, *queues: Object, cohorts: tuple[Object, ...] = ()) -> Quota:
    return next(q for q in capacity.quotas(name, queues, cohorts) if q.resource == "nvidia.com/gpu")


def using(queue: Object, amount: int) -> Object:
    resources = [{"name": "nvidia.com/gpu", "total": str(amount)}]
    return {**queue, "status": {"flavorsReservation": [{"name": "h100", "resources": resources}]}}


@pytest.mark.parametrize(
    ("own", "others", "largest", "borrowable", "lent"),
    [
        (cluster_queue("a", cohort=None), (), 8, 0, 0),
        (cluster_queue("a"), (cluster_queue("b"),), 16, 8, 0),
        (cluster_queue("a"), (cluster_queue("b", lending=2),), 10, 2, 0),
        (cluster_queue("a", borrowing=1), (cluster_queue("b", lending=2),), 9, 1, 0),
        (cluster_queue("a"), (using(cluster_queue("b", lending=2), 7),), 10, 1, 0),  # into what it would lend
        (using(cluster_queue("a"), 9), (cluster_queue("b", lending=2),), 10, 1, 0),
        (cluster_queue("a"), (using(cluster_queue("b", gpus=4), 7),), 12, 0, 3),
        (cluster_queue("a"), (cluster_queue("b", cohort="other"),), 8, 0, 0),
    ],
)
def test_what_a_queue_may_use_borrow_and_has_lent(
    own: Object, others: tuple[Object, ...], largest: int, borrowable: int, lent: int
) -> None:
    quota = gpus("a", own, *others)
    assert quota.largest == largest
    assert quota.borrowable == borrowable
    assert quota.lent == lent


def test_a_cohorts_own_quota_counts_and_a_parent_hides_the_limit() -> None:
    queue = cluster_queue("a")
    groups = queue["spec"]["resourceGroups"]
    cohort: Object = {"metadata": {"name": "kitae"}, "spec": {"resourceGroups": groups}}
    assert gpus("a", queue, cohorts=(cohort,)).largest == 16
    nested = {**cohort, "spec": {**cohort["spec"], "parentName": "company"}}
    assert gpus("a", queue, cohorts=(nested,)).largest is None
    needs = Needs("j", "0" * 16, "blue", 0, 1000, 4.0, 1)
    capacity.check("blue", rayjob_manifest.requests(SETTING, needs), capacity.quotas("a", [queue], [nested]))
    with pytest.raises(UnknownQueue, match="existing: a"):
        capacity.quotas("b", [queue])


@given(
    st.integers(1, 30), st.integers(0, 1), st.integers(1, 40), st.integers(0, 16), st.integers(0, 16),
    st.none() | st.integers(0, 9),
)  # fmt: skip
def test_exactly_the_requests_that_fit_an_empty_cluster_pass_the_check(
    workers: int, per_worker: int, cpu: int, own: int, other: int, borrowing: int | None
) -> None:
    queues = [cluster_queue("a", gpus=own, cpu="64", borrowing=borrowing), cluster_queue("b", gpus=other, cpu="64")]
    needs = Needs("j", "0" * 16, "blue", 0, workers, float(cpu), per_worker)
    requested = rayjob_manifest.requests(SETTING, needs)
    wanted = {
        name: sum((pods.count * pods.requests.get(name, Decimal(0)) for pods in requested), Decimal(0))
        for name in ("cpu", "memory", "nvidia.com/gpu")
    }
    limits = {
        "cpu": Decimal(128),
        "memory": parse("512Gi"),
        "nvidia.com/gpu": Decimal(own + (other if borrowing is None else min(other, borrowing))),
    }
    fits = all(amount <= limits[name] for name, amount in wanted.items())
    try:
        capacity.check("blue", requested, capacity.quotas("a", queues))
    except RequestTooLarge:
        assert not fits
    else:
        assert fits  # with one flavor only the sums matter
