"""Metrics of a training: which steps become events, and the file written at its end."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint, metrics, ray_workers
from ray_jobs.training.checkpoint import Checkpoint, Position, Writer
from ray_jobs.training.metrics import EVENTS_A_TRAINING, TrainingMetrics, is_due
from ray_jobs.training.ray_workers import progress_sink
from tests.builders import make_spec


@pytest.mark.parametrize(
    ("step", "last", "seconds", "measured", "due"),
    [
        (1, 0, float("inf"), False, True),  # the first
        (5, 1, 9.9, False, False),
        (5, 1, 10.0, False, True),
        (5, 4, 0.0, True, True),
        (5, 5, 99.0, True, False),  # already reported, before workers were lost
        (5, 7, 99.0, False, False),
    ],
)
def test_which_steps_are_reported(step: int, last: int, seconds: float, measured: bool, due: bool) -> None:
    assert is_due(step, 100, last_step=last, seconds_since=seconds, measured=measured) is due


def test_a_training_of_weeks_has_no_more_events_than_one_of_hours() -> None:
    total, last, reported = 100 * EVENTS_A_TRAINING, 0, 0
    for step in range(1, total + 1):  # a step takes 11 s
        if is_due(step, total, last_step=last, seconds_since=11.0 * (step - last), measured=False):
            last, reported = step, reported + 1
    assert reported == EVENTS_A_TRAINING


def test_the_events_of_a_training(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    now_s = 0.0
    events = TrainingMetrics(job, clock=lambda: now_s)
    for step in range(1, 31):
        figures: dict[str, float | str] = {"loss": 2.0, "learning_rate": 1e-4, "tokens_per_s": 50.0}
        if step == 7:
            figures |= {"held_out_loss": 1.5, "held_out_accuracy": 0.4}
        events.record(step, 30, figures)
        now_s += 1.0
    written = [event for _, event in jobs.events(store, job.id)]
    assert {event.kind for event in written} == {"metrics"}
    assert [event.data["step"] for event in written] == [1, 7, 17, 27]
    first: dict[str, Any] = {"total_steps": 30, "train_loss": 2.0, "learning_rate": 1e-4, "tokens_per_s": 50.0}
    assert written[0].data == {"step": 1, **first}
    assert written[1].data == {"step": 7, **first, "valid_loss": 1.5, "valid_mean_token_accuracy": 0.4}
    assert written[0].message == "step 1 of 30: training loss 2.0000"
    assert written[1].message == "step 7 of 30: training loss 2.0000, validation loss 1.5000"


def test_every_step_is_a_line_of_the_file(store: Workspace) -> None:
    """Also for steps whose checkpoints are deleted."""
    position = Position(step=1, losses=(3.0,)).measured(2.5, 0.1)
    writer = Writer(store, "jobs/j/checkpoints/c", "run", rank=0, workers=1, keep=1)
    for step, loss in ((2, 2.0), (3, 1.0)):
        position = Position(
            step=step, losses=(*position.losses, loss), evaluations=position.evaluations
        ).measured(loss + 0.5, 0.5)  # fmt: skip
        writer.save([], position)
        writer.wait()
    writer.close()
    (left,) = checkpoint.committed(store, "jobs/j/checkpoints/c")
    assert left.position == position
    key = metrics.write_csv(store, "j", [left])
    assert key == "jobs/j/metrics.csv"
    assert store.get(key).decode() == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,3.0,,2.5,0.1\n2,2.0,,2.5,0.5\n3,1.0,,1.5,0.5\n"
    )


def test_a_step_without_evaluation_has_empty_columns(store: Workspace) -> None:
    key = metrics.write_csv(store, "j", [Checkpoint("k", 1, Position(step=2, losses=(3.0, 2.0)))])
    assert key is not None
    assert store.get(key).decode().splitlines()[1:] == ["1,3.0,,,", "2,2.0,,,"]
    assert metrics.write_csv(store, "none", []) is None


def test_a_checkpoint_of_an_older_version_is_read(store: Workspace) -> None:
    position = {"step": 3, "held_out_loss": 1.0, "held_out_accuracy": 0.5, "losses": [3.0, 2.0, 1.0]}
    store.commit("old/step-3", [], {"workers": 1, "position": position})
    (found,) = checkpoint.committed(store, "old")
    assert (found.position.losses, found.position.evaluations) == ((3.0, 2.0, 1.0), ())


@pytest.mark.heavy
def test_no_evaluation_is_lost_between_two_polls() -> None:
    """The driver polls once a second, and steps may take far less."""
    ray_workers.connect()
    seen: list[float] = []
    with progress_sink(lambda done, *_: seen.append(done)) as sink:
        for step in range(1, 101):
            sink.put.remote((step, 100, "steps", {}), keep=step % 25 == 0)
    assert [step for step in seen if step % 25 == 0] == [25, 50, 75, 100]
    assert seen == sorted(set(seen))
