"""What is said of a runner by what KubeRay and Kueue say of it; what a queue could ever admit; when it may start."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster.client import Object
from ray_jobs.cluster.quantities import cpus, parse, shown
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import RequestTooLarge, UnknownQueue
from ray_jobs.kueue import capacity
from ray_jobs.kueue.capacity import Quota
from ray_jobs.launch import rayjob, runner_state
from ray_jobs.launch.launcher import Needs, RunnerState
from ray_jobs.launch.runner_state import Running, View, roughly, runner_of, start_in_s
from tests.cluster.builders import SETTINGS, cluster_queue

SETTING = ClusterSettings.model_validate(SETTINGS)
AT = "2026-11-24T12:00:00Z"
AT_S = runner_state.seconds(AT)


def rayjob_of(phase: str = "", **status: Any) -> Object:
    return {
        "metadata": {"name": "ftjob-a-1", "labels": {"kitae.dev/team": "blue"}},
        "status": {"jobDeploymentStatus": phase, **status},
    }


def workload_of(*told: tuple[str, str, str, str], **facts: Any) -> Object:
    """Its conditions: (type, status, reason, message)."""
    found = [
        {"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": AT}
        for name, status, reason, message in told
    ]
    requests = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    template = {"spec": {"containers": [{"resources": {"requests": requests}}]}}
    spec = {"podSets": [{"name": "workers", "count": 2, "template": template}], **facts.pop("spec", {})}
    return {"metadata": {"namespace": "kitae-blue"}, "spec": spec, "status": {"conditions": found, **facts}}


ADMITTED = ("Admitted", "True", "Admitted", "")
PENDING = ("QuotaReserved", "False", "Pending", "couldn't assign flavors to pod set workers")
EVICTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload")


@pytest.mark.parametrize(
    ("phase", "status", "workload", "state", "message"),
    [
        ("", {}, None, "pending", "waiting: Kueue has not looked at it yet"),
        ("Suspended", {}, workload_of(PENDING), "pending", "waiting: couldn't assign flavors to pod set workers"),
        ("", {}, workload_of(ADMITTED), "pending", "starting"),
        ("Initializing", {}, workload_of(ADMITTED), "pending", "starting"),
        ("Retrying", {"failed": 2}, workload_of(ADMITTED), "pending", "starting again after 2 failed start(s)"),
        ("Running", {"jobStatus": "PENDING"}, workload_of(ADMITTED), "pending", ""),
        ("Running", {"jobStatus": "RUNNING"}, workload_of(ADMITTED), "running", ""),
        ("Running", {"jobStatus": "RUNNING"}, None, "running", ""),
        ("Suspending", {}, workload_of(EVICTED), "pending", "preempted: another job goes first; waiting"),
        ("Complete", {"jobStatus": "SUCCEEDED"}, workload_of(ADMITTED), "ended", "Complete"),
        ("Failed", {"reason": "AppFailed", "message": "exit 1"}, None, "ended", "AppFailed: exit 1"),
        ("ANewPhase", {}, workload_of(ADMITTED), "pending", "starting"),
    ],
)
def test_what_is_said_of_a_runner(
    phase: str, status: dict[str, Any], workload: Object | None, state: RunnerState, message: str
) -> None:
    found = runner_of(View(rayjob_of(phase, **status), workload, now_s=AT_S), SETTING)
    assert (found.state, found.message) == (state, message)
    assert not found.hopeless
    assert (found.interrupted_at == AT_S) == (workload is not None and "Evicted" in str(workload))


@pytest.mark.parametrize("reason", sorted(runner_state._EVICTIONS))
def test_every_reason_of_an_eviction_has_words(reason: str) -> None:
    workload = workload_of(("Evicted", "True", reason, ""), PENDING)
    message = runner_of(View(rayjob_of("Suspended"), workload), SETTING).message
    assert message.startswith(f"{runner_state._EVICTIONS[reason]}; waiting")
    unknown = runner_of(View(rayjob_of("Suspended"), workload_of(("Evicted", "True", "Moon", ""))), SETTING)
    assert unknown.message == "stopped by Kueue (Moon); waiting"


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (workload_of(("QuotaReserved", "False", "Inadmissible", "ClusterQueue kitae-blue is inactive")), "is inactive"),
        (workload_of(PENDING, spec={"active": False}), "its Workload is deactivated"),
        (
            workload_of(
                ("QuotaReserved", "True", "QuotaReserved", ""),
                admissionChecks=[{"name": "nodes", "state": "Pending", "message": "no machines yet"}],
            ),
            "has its quota, and waits for nodes: no machines yet",
        ),
    ],
)
def test_reasons_that_are_not_about_quota(workload: Object, words: str) -> None:
    assert words in runner_of(View(rayjob_of("Suspended"), workload), SETTING).message


@pytest.mark.parametrize(
    ("container", "pod", "words"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "not found"}}, {}, "the image i cannot be pulled"),
        ({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}, {}, 'secret "s"'),
        ({"running": {}}, {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}, "no node has room"),
    ],
)
def test_why_an_admitted_runner_does_not_start(container: Object, pod: Object, words: str) -> None:
    status: Object = {"containerStatuses": [{"image": "i", "state": container}], "conditions": [pod] if pod else []}
    pods = [{"metadata": {"creationTimestamp": AT}, "status": status}]
    late = AT_S + runner_state.IMAGE_PATIENCE_S
    for now_s in (AT_S, late):
        view = View(rayjob_of("Initializing"), workload_of(ADMITTED), pods, now_s=now_s)
        found = runner_of(view, SETTING)
        assert words in found.message
        assert found.message.startswith("cannot start: ")
        assert found.hopeless == (now_s == late and "PodScheduled" not in str(pod))


# ---- how long -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(10, "5 min"), (600, "10 min"), (2400, "40 min"), (5400, "90 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_a_guess_is_no_more_exact_than_it_is(seconds: float, words: str) -> None:
    assert roughly(seconds) == words


def test_a_start_is_guessed_from_what_ends_before_it() -> None:
    hour, one = 3600.0, {"gpu": 4.0}
    running = [Running(0.0, one), Running(1800.0, one)]
    assert start_in_s([], one, running, {"gpu": 0.0}, hour, 2400.0) == 1200.0
    assert start_in_s([one], one, running, {"gpu": 0.0}, hour, 2400.0) == 3000.0  # the second to end is for it
    assert start_in_s([one, one], one, running, {"gpu": 0.0}, hour, 2400.0) == 1200.0 + hour
    assert start_in_s([], one, running, {"gpu": 4.0}, hour, 2400.0) == 0.0
    assert start_in_s([], one, [Running(0.0, one)], {"gpu": 0.0}, hour, 9000.0) == hour / 2  # longer than usual
    assert start_in_s([], one, running, {"gpu": 0.0}, None, 0.0) is None
    assert start_in_s([], {"gpu": 9.0}, running, {"gpu": 0.0}, hour, 0.0) is None  # others must end as well


# ---- what fits ------------------------------------------------------------------------------------------------


def gpus(name: str, *queues: Object, cohorts: tuple[Object, ...] = ()) -> Quota:
    return next(q for q in capacity.quotas(name, queues, cohorts) if q.resource == "nvidia.com/gpu")


def using(queue: Object, amount: int) -> Object:
    resources = [{"name": "nvidia.com/gpu", "total": str(amount)}]
    return {**queue, "status": {"flavorsReservation": [{"name": "h100", "resources": resources}]}}


@pytest.mark.parametrize(
    ("own", "others", "largest", "borrowable_now", "lent"),
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
def test_what_a_queue_has_may_borrow_and_has_lent(
    own: Object, others: tuple[Object, ...], largest: int, borrowable_now: int, lent: int
) -> None:
    quota = gpus("a", own, *others)
    assert quota.largest == largest
    assert quota.borrowable_now == borrowable_now
    assert quota.lent_now == lent


def test_a_cohort_may_have_quota_of_its_own_and_a_parent_hides_the_limit() -> None:
    queue = cluster_queue("a")
    groups = queue["spec"]["resourceGroups"]
    cohort: Object = {"metadata": {"name": "kitae"}, "spec": {"resourceGroups": groups}}
    assert gpus("a", queue, cohorts=(cohort,)).largest == 16
    nested = {**cohort, "spec": {**cohort["spec"], "parentName": "company"}}
    assert gpus("a", queue, cohorts=(nested,)).largest is None
    needs = Needs("j", "0" * 16, "blue", 0, 1000, 4.0, 1)
    capacity.check(SETTING, "blue", rayjob.requests(SETTING, needs), capacity.quotas("a", [queue], [nested]))
    with pytest.raises(UnknownQueue, match="there are: a"):
        capacity.quotas("b", [queue])


@given(
    st.integers(1, 30), st.integers(0, 1), st.integers(1, 40), st.integers(0, 16), st.integers(0, 16),
    st.none() | st.integers(0, 9),
)  # fmt: skip
def test_what_fits_an_empty_cluster_is_never_refused_and_what_never_fits_always_is(
    workers: int, per_worker: int, cpu: int, own: int, other: int, borrowing: int | None
) -> None:
    queues = [cluster_queue("a", gpus=own, cpu="64", borrowing=borrowing), cluster_queue("b", gpus=other, cpu="64")]
    needs = Needs("j", "0" * 16, "blue", 0, workers, float(cpu), per_worker)
    asks = rayjob.requests(SETTING, needs)
    wanted = {
        name: sum((count * each.get(name, Decimal(0)) for _, count, each in asks), Decimal(0))
        for name in ("cpu", "memory", "nvidia.com/gpu")
    }
    limits = {
        "cpu": Decimal(128),
        "memory": parse("512Gi"),
        "nvidia.com/gpu": Decimal(own + (other if borrowing is None else min(other, borrowing))),
    }
    fits = all(amount <= limits[name] for name, amount in wanted.items())
    try:
        capacity.check(SETTING, "blue", asks, capacity.quotas("a", queues))
    except RequestTooLarge:
        assert not fits
    else:
        assert fits  # with one flavor the sums are all there is


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), ("500m", Decimal("0.5")), ("16Gi", 16 * 2**30), ("1k", 1000), (8, 8), ("1.5", Decimal("1.5"))],
)
def test_quantities(text: str | int, number: Decimal) -> None:
    assert parse(text) == number


@pytest.mark.parametrize("text", ["", "four", "4 Gi", "4Xi", "Gi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        parse(text)


def test_quantities_are_written_as_kubernetes_and_people_do() -> None:
    assert (cpus(4.0), cpus(0.5), cpus(1.25)) == ("4", "500m", "1250m")
    assert (shown("memory", parse("64Gi")), shown("cpu", parse("1500m"))) == ("64 GiB", "1.5")
