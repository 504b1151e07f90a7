"""Checkpoint requests before a job loses its machines, and the events about repeated work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs import jobs, pipeline
from ray_jobs.__main__ import cli
from ray_jobs.errors import JobError, TrainingError
from ray_jobs.jobs import Job, checkpoint_request
from ray_jobs.jobs.checkpoint_request import CheckpointRequest
from ray_jobs.pipeline import sources
from ray_jobs.storage import Workspace
from ray_jobs.training.control import TrainingControl
from ray_jobs.training.metrics import TrainingMetrics, repeated_work
from tests.builders import make_spec


@pytest.fixture
def job(store: Workspace) -> Job:
    return jobs.start_attempt(store, make_spec())


# ---- the request -----------------------------------------------------------------------------------------------


class Clock:
    """The module `time`, as a test moves it; `due` are calls by the time from which they are made."""

    def __init__(self, now_s: float = 0.0, due: dict[float, Callable[[], Any]] | None = None) -> None:
        self.now_s = now_s
        self._due = dict(due or {})

    def time(self) -> float:
        return self.now_s

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for at_s in [at_s for at_s in self._due if at_s <= self.now_s]:
            self._due.pop(at_s)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(now_s=100.0)
    monkeypatch.setattr(checkpoint_request, "time", clock)
    monkeypatch.setattr(Workspace, "now_s", lambda store: clock.now_s)
    return clock


def test_pods_that_ask_together_share_a_request(store: Workspace, job: Job, clock: Clock) -> None:
    first = checkpoint_request.request(store, job.id)
    assert first == CheckpointRequest(number=1, attempt=1, at=100.0)
    clock.now_s = 130.0
    assert checkpoint_request.request(store, job.id) == first  # not answered yet
    checkpoint_request.answer(store, job.id, 1, step=7)
    answered = checkpoint_request.current(store, job.id)
    assert answered is not None
    assert answered.step == 7
    assert answered.committed_at is not None
    clock.now_s = answered.committed_at + 9
    assert checkpoint_request.request(store, job.id) == answered
    clock.now_s = answered.committed_at + 11
    assert checkpoint_request.request(store, job.id).number == 2


def test_another_attempt_has_a_request_of_its_own(store: Workspace, job: Job, clock: Clock) -> None:
    checkpoint_request.request(store, job.id)
    jobs.start_attempt(store, make_spec())
    second = checkpoint_request.request(store, job.id)
    assert (second.number, second.attempt) == (2, 2)
    checkpoint_request.answer(store, job.id, 1, step=7)  # for the earlier request: too late
    assert checkpoint_request.current(store, job.id) == second
    assert checkpoint_request.was_requested(store, job.id, 2)
    assert not checkpoint_request.was_requested(store, job.id, 1)
    clock.now_s += checkpoint_request.COUNTS_S + 1
    assert not checkpoint_request.was_requested(store, job.id, 2)


def waited(store: Workspace, job_id: str, wait_s: float, due: dict[float, Callable[[], Any]]) -> tuple[Any, float]:
    """The outcome of waiting and its duration, with the calls `due` made after so many seconds."""
    clock = Clock(due=due)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_request, "time", clock)
        return checkpoint_request.wait(store, job_id, 1, wait_s), clock.now_s


def test_wait_ends_with_a_checkpoint_or_once_none_can_come(store: Workspace, job: Job) -> None:
    checkpoint_request.request(store, job.id)
    acknowledged = {2.0: lambda: checkpoint_request.acknowledge(store, job.id, 1)}
    assert waited(store, job.id, 90.0, {}) == (("not training", None), checkpoint_request.ACKNOWLEDGED_WITHIN_S)
    assert waited(store, job.id, 5.0, {}) == (("too late", None), 5.0)
    assert waited(store, job.id, 60.0, acknowledged) == (("too late", None), 60.0)
    answers = {**acknowledged, 40.0: lambda: checkpoint_request.answer(store, job.id, 1, step=9)}
    assert waited(store, job.id, 90.0, answers) == (("committed", 9), 40.0)


def test_wait_ends_for_a_job_that_does_not_run(store: Workspace, job: Job) -> None:
    checkpoint_request.request(store, job.id)
    paused = {3.0: lambda: jobs.request_pause(store, job.id)}
    assert waited(store, job.id, 90.0, paused) == (("not running", None), 3.0)
    with pytest.raises(JobError, match="no job"):
        checkpoint_request.request(store, "unknown")


@pytest.mark.usefixtures("store_environment")
def test_notice_takes_a_job_id_or_a_job_file(store: Workspace, job: Job, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.record.spec), encoding="utf-8")
    for name in (job.id, str(tmp_path / "job.yaml")):
        late = CliRunner().invoke(cli, ["notice", name, "--wait-s", "0"])
        assert (late.exit_code, late.output) == (1, f"{job.id}: no checkpoint within 0 s\n")
    given = checkpoint_request.current(store, job.id)
    assert given is not None
    assert given.number == 1
    checkpoint_request.answer(store, job.id, 1, step=12)
    there = CliRunner().invoke(cli, ["notice", job.id])
    assert (there.exit_code, there.output) == (0, f"{job.id}: checkpoint of step 12 committed\n")
    jobs.request_cancel(store, job.id)
    jobs.start_attempt(store, make_spec())
    jobs.request_pause(store, job.id)
    assert CliRunner().invoke(cli, ["notice", job.id]).output == f"{job.id}: not running\n"


# ---- the training's side ------------------------------------------------------------------------------------------


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("attempt", "last_event_at", "interrupted"),
    [(1, 90.0, True), (1, 229.0, True), (1, 231.0, False), (2, 90.0, False)],
)
def test_an_attempt_is_interrupted_until_it_writes_again(attempt: int, last_event_at: float, interrupted: bool) -> None:
    found = CheckpointRequest(number=1, attempt=1, at=100.0)
    assert checkpoint_request.is_interrupted(found, attempt, last_event_at) is interrupted
    assert not checkpoint_request.is_interrupted(None, attempt, last_event_at)


@pytest.fixture
def control(store: Workspace) -> Iterator[Callable[..., TrainingControl]]:
    """A training's control that polls every few milliseconds, and ends with the test."""
    controls: list[TrainingControl] = []

    def make(job: Job, *, answers: bool = True) -> TrainingControl:
        controls.append(TrainingControl(store, job.id, job.attempt, "stop.json", answers=answers, poll_s=0.02))
        return controls[-1]

    yield make
    for each in controls:
        each.close()


def test_a_training_saves_once_for_a_request_and_answers_with_that_checkpoint(
    store: Workspace, job: Job, control: Callable[..., TrainingControl]
) -> None:
    watch = control(job)
    assert not watch.should_save(3)
    checkpoint_request.request(store, job.id)
    eventually(lambda: watch.should_save(5))
    assert not watch.should_save(6)
    watch.committed(5)  # was on its way before
    found = checkpoint_request.current(store, job.id)
    assert found is not None
    assert found.step is None
    assert found.heard_at is not None
    watch.committed(6)
    watch.committed(8)
    saved = "asked to save, because its machines are taken away: checkpoint of step 6 is committed"
    assert [event.message for _, event in jobs.events(store, job.id)] == [saved]
    found = checkpoint_request.current(store, job.id)
    assert found is not None
    assert found.step == 6
    assert not watch.should_stop()


def test_only_the_first_worker_of_the_newest_attempt_receives_it(
    store: Workspace, job: Job, control: Callable[..., TrainingControl]
) -> None:
    second = control(job, answers=False)
    jobs.start_attempt(store, make_spec())
    old = control(job)
    checkpoint_request.request(store, job.id)
    eventually(old.should_stop)
    assert not old.should_save(1)
    assert not second.should_save(1)


# ---- the driver's side --------------------------------------------------------------------------------------------


def test_a_failure_after_a_request_leaves_the_job_running(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt meets the real cause, if there is another."""
    requested = [True, False]

    spec = make_spec()

    def read_sources(*_: object) -> Any:
        if requested.pop(0):
            checkpoint_request.request(store, spec.job_id)
        raise TrainingError("the Ray cluster was lost")

    monkeypatch.setattr(sources, "read_sources", read_sources)
    with pytest.raises(TrainingError):
        pipeline.run(store, spec)
    assert jobs.load(store, spec.job_id).status == "running"
    with pytest.raises(TrainingError):
        pipeline.run(store, spec)
    assert jobs.load(store, spec.job_id).status == "failed"
    levels = [event.level for _, event in jobs.events(store, spec.job_id)]
    assert levels == ["info", "warning", "info", "error"]


# ---- repeated work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_step", "seen", "steps", "seconds"),
    [
        (40, [(10, 0.0), (40, 90.0), (52, 125.0)], 12, 35.0),
        (52, [(10, 0.0), (52, 125.0)], 0, 0.0),
        (60, [(52, 125.0)], 0, 0.0),  # saved after the last metrics
        (25, [(10, 0.0), (40, 90.0)], 15, 45.0),  # between two metrics
        (0, [(10, 100.0), (20, 200.0)], 20, 200.0),  # before the first
        (0, [(10, 100.0)], 10, 0.0),
        (0, [], 0, 0.0),
    ],
)
def test_how_much_work_is_repeated(from_step: int, seen: list[tuple[int, float]], steps: int, seconds: float) -> None:
    found = repeated_work(from_step, seen)
    assert found[0] == steps
    assert found[1] == pytest.approx(seconds)


@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.integers(1, 5), st.floats(0.1, 9.0)), min_size=1, max_size=20),
)
def test_never_more_is_repeated_than_was_done(from_step: int, strides: list[tuple[int, float]]) -> None:
    seen, step, at_s = [], 0, 0.0
    for stride, seconds in strides:
        step, at_s = step + stride, at_s + seconds
        seen.append((step, at_s))
    steps, seconds = repeated_work(from_step, seen)
    assert steps == max(0, step - from_step)
    assert seconds >= 0
    if from_step >= seen[0][0]:
        assert seconds <= at_s - seen[0][1] + 1e-6


def report(metrics: TrainingMetrics, *steps: int, began: int = 0) -> None:
    for step in steps:
        metrics.record(step, 100, {"loss": 1.0, "learning_rate": 1e-4, "tokens_per_s": 5.0, "began_at_step": began})


def messages(store: Workspace, job: Job) -> list[str]:
    return [event.message for _, event in jobs.events(store, job.id) if "resumes from" in event.message]


def test_restarted_workers_report_where_they_resume(store: Workspace, job: Job) -> None:
    now_s = 1000.0

    def clock() -> float:
        nonlocal now_s
        now_s += 5.0
        return now_s

    metrics = TrainingMetrics(job, clock=lambda: 0.0, wall=clock)
    report(metrics, 1, 2, 3, 4, 5, 6, 7)
    assert messages(store, job) == []
    report(metrics, 5, 6, 7, 8, began=4)
    report(metrics, 9, began=4)
    assert messages(store, job) == ["resumes from step 4; 3 steps (15 s of work) are repeated"]
    report(metrics, 10, began=9)  # the next start was quick: no reported step is repeated
    assert len(messages(store, job)) == 1


def test_a_new_attempt_reports_what_is_repeated(store: Workspace, job: Job) -> None:
    metrics = TrainingMetrics(job, clock=iter(range(0, 1000, 20)).__next__)
    report(metrics, 10, 20, 30)
    second = jobs.start_attempt(store, make_spec())
    report(TrainingMetrics(second), 26, 27, began=25)
    (message,) = messages(store, job)
    assert message.startswith("resumes from step 25; 5 steps (")
    third = jobs.start_attempt(store, make_spec())
    report(TrainingMetrics(third), 28, began=27)
    assert messages(store, job)[1] == "resumes from step 27; no step is repeated"
