"""A job's status and next action, for every combination of its records and its launcher's answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from ray_jobs.jobs import JobRecord
from ray_jobs.launch.launcher import Runner, RunnerState
from serving.fine_tuning import lifecycle
from serving.fine_tuning.lifecycle import CloseJob, StartRunner, StopRunner, decide, resumed, status_of
from serving.fine_tuning.records import MAX_LAUNCHES_KEPT, ApiJob, ClosedJob, HeldTime, Launch
from serving.fine_tuning.reported import CheckedRecord, checked, result_of

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
PAUSED_AT = NOW - timedelta(minutes=5)
RUNNERS: tuple[RunnerState, ...] = ("pending", "running", "ended", "unknown", "unreachable")

TABLE = {
    # job's record, newest launch:  pending    running    ended      unknown    unreachable
    ("none", "none"): "validating validating validating validating validating",
    ("queued", "none"): "validating validating validating validating validating",
    ("queued", "waiting"): "queued queued queued queued queued",
    ("running", "none"): "running running running running running",
    ("running", "waiting"): "queued queued queued queued queued",
    ("running", "begun"): "running running queued queued running",
    ("paused", "none"): "paused paused paused paused paused",
    ("paused", "waiting"): "paused paused paused paused paused",
    ("paused", "begun"): "paused paused paused paused paused",
    ("paused", "resumed"): "queued queued queued queued queued",
    ("succeeded", "none"): "succeeded succeeded succeeded succeeded succeeded",
    ("succeeded", "waiting"): "succeeded succeeded succeeded succeeded succeeded",
    ("succeeded", "begun"): "succeeded succeeded succeeded succeeded succeeded",
    ("failed", "none"): "failed failed failed failed failed",
    ("failed", "waiting"): "failed failed failed failed failed",
    ("failed", "begun"): "failed failed failed failed failed",
    ("cancelled", "none"): "cancelled cancelled cancelled cancelled cancelled",
    ("cancelled", "waiting"): "cancelled cancelled cancelled cancelled cancelled",
    ("cancelled", "begun"): "cancelled cancelled cancelled cancelled cancelled",
}
DUE = {
    # the next action, a while later: s(tart a new launch), start a(gain), x (stop), c(lose), - none
    ("none", "none"): "-----",
    ("queued", "none"): "sssss",
    ("queued", "waiting"): "--sa-",
    ("running", "none"): "sssss",
    ("running", "waiting"): "--sa-",
    ("running", "begun"): "--ss-",
    ("paused", "none"): "-----",
    ("paused", "waiting"): "xx---",
    ("paused", "begun"): "xx---",
    ("paused", "resumed"): "--sa-",
    ("succeeded", "none"): "ccccc",
    ("succeeded", "waiting"): "ccccc",
    ("succeeded", "begun"): "ccccc",
    ("failed", "none"): "ccccc",
    ("failed", "waiting"): "ccccc",
    ("failed", "begun"): "ccccc",
    ("cancelled", "none"): "ccccc",
    ("cancelled", "waiting"): "xxcc-",
    ("cancelled", "begun"): "xxcc-",
}
COMBINATIONS = [(*pair, state) for pair in TABLE for state in RUNNERS]


def job_of(status: str, *, attempt: int = 3) -> CheckedRecord | None:
    if status == "none":
        return None
    facts: dict[str, Any] = {"id": "j", "spec": {}, "created_at": NOW - timedelta(hours=1), "attempt": attempt}
    if status != "queued":
        facts["started_at"] = NOW - timedelta(minutes=50)
    if status in ("succeeded", "failed", "cancelled"):
        facts["finished_at"] = NOW - timedelta(minutes=1)
    if status == "cancelled":
        facts["cancelled_at"] = NOW - timedelta(minutes=1)
    if status == "failed":
        facts["error"] = "the loss is nan"
    if status == "paused":
        facts["paused_at"] = PAUSED_AT
    record = JobRecord(**facts)
    assert record.status == status
    return CheckedRecord(record)


def api_of(launch: str, *, attempt: int = 3, launches: int = 1, **facts: Any) -> ApiJob:
    before = attempt - 1 if launch == "begun" else attempt
    newest = Launch(
        number=launches,
        at=(NOW - timedelta(minutes=10)).timestamp(),
        attempt_before=before,
        resumes=PAUSED_AT.isoformat() if launch == "resumed" else None,
    )
    older = [newest.model_copy(update={"number": number, "resumes": None}) for number in range(1, launches)]
    return ApiJob(
        id="ftjob-1", team="a", key_id="k", created_at=0, model="m", training_file="file-1", validation_file=None,
        suffix=None, seed=1, metadata=None, integrations=None, method={}, hyperparameters={}, spec={}, job_id="j",
        launches=() if launch == "none" else (*older, newest), **facts,
    )  # fmt: skip


def test_the_tables_have_every_combination() -> None:
    jobs = {"none", "queued", "running", "paused", "succeeded", "failed", "cancelled"}
    assert {job for job, _ in TABLE} == jobs
    assert set(TABLE) == set(DUE)
    assert set(get_args(RunnerState)) == set(RUNNERS)
    # A job without an attempt has no runner that has begun; only a paused job is resumed.
    possible = {(job, launch) for job in jobs for launch in ("none", "waiting", "begun", "resumed")}
    impossible = {("none", "waiting"), ("none", "begun"), ("queued", "begun")}
    impossible |= {(job, "resumed") for job in jobs - {"paused"}}
    assert set(TABLE) == possible - impossible


@pytest.mark.parametrize(("job", "launch", "runner"), COMBINATIONS)
def test_status(job: str, launch: str, runner: RunnerState) -> None:
    wanted = TABLE[job, launch].split()[RUNNERS.index(runner)]
    reported = status_of(api_of(launch), job_of(job), Runner(runner))
    assert reported.status == {"validating": "validating_files"}.get(wanted, wanted)
    assert (reported.error is not None) == (wanted == "failed")


@pytest.mark.parametrize(("job", "launch", "runner"), COMBINATIONS)
def test_the_next_action(job: str, launch: str, runner: RunnerState) -> None:
    wanted = DUE[job, launch][RUNNERS.index(runner)]
    action = decide(api_of(launch), job_of(job), Runner(runner), NOW.timestamp())
    match action:
        case None:
            found = "-"
        case StartRunner(is_new=True):
            found = "s"
        case StartRunner():
            found = "a"
        case StopRunner():
            found = "x"
        case CloseJob():
            found = "c"
    assert found == wanted


@pytest.mark.parametrize(("job", "launch", "runner"), COMBINATIONS)
def test_a_closed_job_does_not_change(job: str, launch: str, runner: RunnerState) -> None:
    api = api_of(launch, closed=ClosedJob(status="succeeded", finished_at=1))
    assert status_of(api, job_of(job), Runner(runner)).status == "succeeded"
    assert decide(api, job_of(job), Runner(runner), NOW.timestamp()) is None


def test_a_runner_has_time_to_write_a_checkpoint_before_it_is_stopped() -> None:
    api, job = api_of("begun"), job_of("paused")
    paused_at = PAUSED_AT.timestamp()
    assert decide(api, job, Runner("running"), paused_at + lifecycle.STOP_GRACE_S - 1) is None
    assert isinstance(decide(api, job, Runner("running"), paused_at + lifecycle.STOP_GRACE_S), StopRunner)
    assert isinstance(decide(api_of("waiting"), job, Runner("pending"), paused_at), StopRunner)  # nothing to write


def test_lost_runners_are_relaunched_with_a_growing_delay_up_to_a_maximum() -> None:
    job = job_of("running")
    for launches in range(1, lifecycle.MAX_LAUNCHES):
        api = api_of("begun", launches=launches)
        assert api.launch is not None
        wait_s = lifecycle.relaunch_delay_s(launches)
        assert decide(api, job, Runner("ended"), api.launch.at + wait_s - 0.1) is None
        action = decide(api, job, Runner("ended", "evicted"), api.launch.at + wait_s)
        assert isinstance(action, StartRunner)
        assert action.launch.number == launches + 1
        assert action.launch.attempt_before == 3
        assert "evicted" in action.reason
    given_up = status_of(api_of("begun", launches=lifecycle.MAX_LAUNCHES), job, Runner("ended", "evicted"))
    assert given_up.status == "failed"
    assert given_up.error is not None
    assert given_up.error.code == "runner_lost"
    assert "evicted" in given_up.error.message
    waits = [lifecycle.relaunch_delay_s(n) for n in range(1, 10)]
    assert waits == sorted(waits)
    assert waits[0] == 5
    assert waits[-1] == 300


def test_a_cancelled_job_is_closed_although_its_launcher_stays_unreachable() -> None:
    api, job = api_of("waiting"), job_of("cancelled")
    assert job is not None
    assert job.cancelled_at is not None
    cancelled_at = job.cancelled_at.timestamp()
    end = cancelled_at + lifecycle.UNREACHABLE_PATIENCE_S
    assert decide(api, job, Runner("unreachable"), end - 1) is None
    assert isinstance(decide(api, job, Runner("unreachable"), end), CloseJob)


def test_a_preempted_job_is_queued_again_and_its_runner_is_not_lost() -> None:
    api, job = api_of("begun"), job_of("running")
    assert job is not None
    assert job.started_at is not None
    began = job.started_at.timestamp()
    waits = Runner("pending", "preempted by another job; waiting", interrupted_at=began + 60)
    assert status_of(api, job, Runner("running")).status == "running"
    assert status_of(api, job, waits).status == "queued"
    assert lifecycle.waits_for(api, job, waits) == waits.message
    assert decide(api, job, waits, NOW.timestamp()) is None  # the launcher resumes the same runner
    # The runner has machines again, but its next attempt has not begun: the record describes the previous one.
    again = Runner("running", interrupted_at=began + 60)
    assert status_of(api, job, again).status == "queued"
    assert lifecycle.waits_for(api, job, again) is None
    next_attempt = job.model_copy(update={"attempt": 4, "started_at": job.started_at + timedelta(seconds=90)})
    assert status_of(api, next_attempt, again).status == "running"
    assert lifecycle.launches_so_far(api) == 1


def test_a_preempted_job_that_is_stopped_has_nothing_to_write() -> None:
    for status in ("paused", "cancelled"):
        job = job_of(status)
        assert job is not None
        assert job.started_at is not None
        requested_at = job.paused_at or job.cancelled_at
        assert requested_at is not None
        waits = Runner("pending", interrupted_at=job.started_at.timestamp() + 1)
        assert not isinstance(decide(api_of("begun"), job, Runner("pending"), requested_at.timestamp()), StopRunner)
        assert isinstance(decide(api_of("begun"), job, waits, requested_at.timestamp()), StopRunner)


@pytest.mark.parametrize("launch", ["waiting", "begun"])
@pytest.mark.parametrize("state", ["pending", "ended"])
def test_a_runner_that_cannot_start_fails_its_job_at_once(launch: str, state: RunnerState) -> None:
    runner = Runner(state, "the image x cannot be pulled", hopeless=True)
    reported = status_of(api_of(launch), job_of("running"), runner)
    assert reported.status == "failed"
    assert reported.error is not None
    assert (reported.error.code, reported.error.message) == ("runner_failed", "the image x cannot be pulled")
    assert decide(api_of(launch), job_of("running"), runner, NOW.timestamp()) == CloseJob(reported)
    assert status_of(api_of(launch), job_of("succeeded"), runner).status == "succeeded"
    assert status_of(api_of(launch), job_of("paused"), runner).status == "paused"


@pytest.mark.parametrize(("job", "launch", "runner"), COMBINATIONS)
def test_only_a_queued_job_has_a_reason_for_waiting(job: str, launch: str, runner: RunnerState) -> None:
    found = Runner(runner, "waiting: for others")
    waits = lifecycle.waits_for(api_of(launch), job_of(job), found)
    queued = status_of(api_of(launch), job_of(job), found).status == "queued"
    assert waits == ("waiting: for others" if queued and runner == "pending" else None)


def test_a_resume_resets_the_count_of_lost_runners() -> None:
    paused = job_of("paused")
    assert paused is not None
    api = resumed(api_of("begun", launches=lifecycle.MAX_LAUNCHES), paused, NOW.timestamp())
    assert len(api.launches) == lifecycle.MAX_LAUNCHES + 1
    assert status_of(api, paused, Runner("ended")).status == "queued"
    assert resumed(api, paused, NOW.timestamp()) == api  # idempotent


def test_a_pause_after_a_resume_takes_effect() -> None:
    paused = job_of("paused")
    assert paused is not None
    api = resumed(api_of("begun"), paused, NOW.timestamp())
    again = paused.model_copy(update={"paused_at": NOW})
    assert status_of(api, paused, Runner("pending")).status == "queued"
    assert status_of(api, again, Runner("pending")).status == "paused"


def test_the_time_of_a_running_runner_is_recorded_at_changes_only() -> None:
    api, at = api_of("begun"), NOW.timestamp()
    assert lifecycle.metered(api, Runner("pending"), at) is api
    runs = lifecycle.metered(api, Runner("running"), at)
    assert runs.held == HeldTime(since=at)
    assert lifecycle.metered(runs, Runner("running"), at + 50) is runs
    assert lifecycle.metered(runs, Runner("unreachable"), at + 60) is runs, "it may still run"
    waits = lifecycle.metered(runs, Runner("pending", interrupted_at=at + 100), at + 100)
    assert waits.held == HeldTime(seconds=100.0)
    again = lifecycle.metered(waits, Runner("running"), at + 200)
    assert lifecycle.metered(again, Runner("ended"), at + 230).held == HeldTime(seconds=130.0)
    over = runs.model_copy(update={"ending": ClosedJob(status="failed", finished_at=1)})
    assert lifecycle.metered(over, Runner("ended"), at + 300) is over


def test_a_recorded_end_holds_whatever_the_jobs_record_says_later() -> None:
    end = ClosedJob(status="succeeded", finished_at=1)
    api = api_of("begun").model_copy(update={"ending": end})
    for status in ("none", "running", "failed", "cancelled"):
        job = job_of(status)
        assert status_of(api, job, Runner("running")).status == "succeeded"
        assert isinstance(decide(api, job, Runner("running"), NOW.timestamp()), CloseJob)


def test_implausible_facts_of_a_record_are_replaced() -> None:
    """Every fact that the endpoint uses comes from its own record, or is bounded by it."""
    now_s = NOW.timestamp()
    api = api_of("begun").model_copy(update={"created_at": int(now_s) - 600, "spec": {"name": "own"}, "job_id": "own"})
    lies = JobRecord(
        id="another", spec={"name": "another"}, created_at=NOW - timedelta(days=9999), attempt=1, error="x" * 10**6,
        started_at=NOW - timedelta(days=9999), finished_at=NOW + timedelta(days=9999), paused_at=NOW,
    )  # fmt: skip
    record = checked(lies, api, now_s)
    created_at = datetime.fromtimestamp(api.created_at, UTC)
    assert (record.id, record.spec, record.created_at) == ("own", {"name": "own"}, created_at)
    assert (record.started_at, record.finished_at, record.paused_at) == (created_at, created_at, NOW)
    assert record.error is not None
    assert len(record.error) == 2000


@pytest.mark.parametrize(
    ("result", "tokens", "steps"),
    [
        ({"trained_tokens": 50, "checkpoints": [{"step": 3, "valid_loss": 1.0}]}, 50, [3]),
        ({"trained_tokens": 10**12, "checkpoints": []}, 100, []),
        ({"trained_tokens": -5}, None, []),
        ({"trained_tokens": "many"}, None, []),
        ({"checkpoints": [{"step": -1}]}, None, []),
        ({"checkpoints": [{"step": 1}] * 1001}, None, []),
        ({"base": {"loss": "x"}}, None, []),
        ({"search": {"run": "1", "params": {}, "trials": 1, "page": "keys/secret.json"}}, None, []),
    ],
)
def test_a_result_is_bounded(result: dict[str, Any], tokens: int | None, steps: list[int]) -> None:
    job = job_of("succeeded")
    assert job is not None
    api = api_of("begun").model_copy(update={"most_tokens": 100})
    found = result_of(api, CheckedRecord(job.model_copy(update={"result": result})))
    assert (found.trained_tokens, [checkpoint.step for checkpoint in found.checkpoints]) == (tokens, steps)
    assert found.search is None


def test_a_record_keeps_a_bounded_number_of_launches() -> None:
    api = api_of("begun").model_copy(update={"launches": ()})
    for number in range(1, 201):
        api = api.with_launch(Launch(number=number, at=float(number), attempt_before=0, resumes=str(number // 7)))
        assert api.launched == number
        assert lifecycle.launches_so_far(api) == (number if number < 7 else number % 7 + 1)
    assert len(api.launches) == MAX_LAUNCHES_KEPT
    assert (api.launches[0].number, api.launches[1].number) == (1, 200 - MAX_LAUNCHES_KEPT + 2)
