"""Trials that share a process: each reaches the losses of a training of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.sharing.adapters import SharedLora
from ray_jobs.sharing.features import SharedFeatures, Unshareable
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.trial_group import Trial, TrialGroup
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Scores
from ray_jobs.training import checkpoint
from ray_jobs.training.inputs import TrainUntil
from ray_jobs.training.lr_schedule import decay_start
from tests.sharing.trials import (
    CLOSE,
    DIVERGES,
    LABELLED_HELD_OUT,
    LORA_TRIALS,
    Params,
    assert_same,
    features,
    lora,
    make_setting,
    segments,
    train_alone,
)
from tests.training.harness import on_workers

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]


@pytest.mark.parametrize("packing", [True, False])
def test_lora_trials_in_one_pass_have_their_own_losses(store: Workspace, tmp_path: Path, packing: bool) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora", packing=packing)
    runs = segments(LORA_TRIALS, 6)
    results = setting.run(lora(setting), runs, prefix="shared")
    assert_same(setting, runs, results)
    assert len({result.losses[-1] for result in results.values()}) == len(runs)


def test_lora_trials_on_an_encoder_have_their_own_heads(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="lora")
    every = [{**p, "lora.target_modules": "all-linear"} for p in LORA_TRIALS]
    runs = segments(every, 6)
    results = setting.run(lora(setting), runs, prefix="shared")
    assert_same(setting, runs, results)


def test_a_promoted_trial_resumes_from_before_the_decay_wherever_it_runs(store: Workspace, tmp_path: Path) -> None:
    """Shared, then alone, then shared; the losses equal those of one segment to the last rung."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    params = LORA_TRIALS[0]
    first = TrialSegment(trial=0, rung=0, params=params, until=4)
    whole = TrialSegment(trial=1, rung=2, params=params, until=12)
    straight = setting.run(lora(setting), [whole], prefix="straight")[whole.name]
    short = setting.run(lora(setting), [first], prefix="mixed")[first.name]
    assert short.trunk is not None
    kept = decay_start(first.until)
    assert short.losses[:kept] == pytest.approx(straight.losses[:kept], rel=1e-6)
    second = TrialSegment(trial=0, rung=1, params=params, until=8, source=first.name)
    alone = setting.task(second, "mixed").inputs
    assert alone.until == TrainUntil(stop_at_step=8, resume_from=short.trunk)
    on_workers(1, train_alone, [(alone, store)])
    third = TrialSegment(trial=0, rung=2, params=params, until=12, source=second.name)
    last = setting.run(lora(setting), [third], prefix="mixed")[third.name]
    assert last.losses == pytest.approx(straight.losses, rel=CLOSE)
    assert last.loss == pytest.approx(straight.loss, rel=CLOSE)
    assert last.steps == 12 - decay_start(8)


def test_a_dropped_segment_resumes_from_its_last_checkpoint(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    run = TrialSegment(trial=0, rung=0, params=LORA_TRIALS[0], until=10)
    whole = setting.run(lora(setting), [run], prefix="whole")[run.name]
    cut = setting.group(lora(setting))
    cut.add(setting.task(run, "cut"))
    rounds = [cut.round() for _ in range(decay_start(10))]
    cut.drop(run.name)
    again = setting.run(lora(setting), [run], prefix="cut")[run.name]
    assert again.steps == 10
    assert len(rounds) == decay_start(10) == 8
    assert again.losses == pytest.approx(whole.losses, rel=1e-6)


def test_a_trial_that_diverges_leaves_the_others_right(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = segments([LORA_TRIALS[0], DIVERGES], 6)
    results = setting.run(lora(setting), runs, prefix="shared")
    bad = results[runs[1].name]
    assert bad.status == "not_finite"
    assert bad.error is not None
    assert "learning rate" in bad.error
    assert bad.checkpoint is None
    assert_same(setting, runs[:1], results)


def test_a_pass_that_does_not_fit_is_tried_in_halves(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = segments(LORA_TRIALS[:2], 3)
    sharing, whole = lora(setting), SharedLora.logits

    def small(self: SharedLora, parts: Any) -> Any:
        if sum(len(example.input_ids) for _, share in parts for example in share) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", small)
    assert_same(setting, runs, setting.run(sharing, runs, prefix="shared"))

    def never(self: SharedLora, parts: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SharedLora, "logits", never)
    results = setting.run(lora(setting), runs, prefix="never")
    assert {result.status for result in results.values()} == {"out_of_memory"}


@pytest.mark.parametrize("task", ["chat", "text_classification"])
def test_frozen_trials_share_the_features_of_the_rows(store: Workspace, tmp_path: Path, task: str) -> None:
    setting = make_setting(store, tmp_path, task, method="frozen")
    trials: list[Params] = [
        {"learning_rate": 1e-2, "trainable_blocks": 1},
        {"learning_rate": 3e-3, "trainable_blocks": 2, "batch_size": 4},
        {"learning_rate": 3e-3, "seed": 9, "weight_decay": 0.1, "trainable_blocks": 1},
    ]
    runs = segments(trials, 6)
    results = setting.run(features(setting), runs, prefix="shared")
    assert_same(setting, runs, results)
    for run in runs:  # so that evaluation finds the weights
        shared, alone = (checkpoint.committed(store, f"{prefix}/{run.name}")[-1] for prefix in ("shared", "alone"))
        assert set(checkpoint.load_state(store, shared)) == set(checkpoint.load_state(store, alone))


def test_a_frozen_segment_of_an_earlier_version_resumes(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints number the blocks from the cut."""
    setting = make_setting(store, tmp_path, "chat", method="frozen")
    params: Params = {"learning_rate": 1e-2, "trainable_blocks": 1}
    first = TrialSegment(trial=0, rung=0, params=params, until=4)
    second = TrialSegment(trial=0, rung=1, params=params, until=8, source=first.name)
    with monkeypatch.context() as patched:
        patched.setattr(SharedFeatures, "_whole_name", lambda self, path: path)
        setting.run(features(setting, depth=1), [first], prefix="old")
    old, new = (f"{prefix}/{first.name}" for prefix in ("old", "new"))
    setting.run(features(setting, depth=1), [first], prefix="new")
    states = [checkpoint.load_state(store, checkpoint.committed(store, prefix)[-1]) for prefix in (old, new)]
    assert not set(states[0]) & set(states[1])
    resumed, expected = (
        setting.run(features(setting, depth=1), [second], prefix=prefix)[second.name] for prefix in ("old", "new")
    )
    assert resumed.losses == expected.losses


def test_a_model_that_differs_from_its_two_parts_is_not_shared(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="frozen")
    whole = SharedFeatures.hidden

    def scaled(self: SharedFeatures, examples: Any) -> torch.Tensor:
        return whole(self, examples) * 1.5  # as a model that scales its embeddings would

    monkeypatch.setattr(SharedFeatures, "hidden", scaled)
    with pytest.raises(Unshareable, match="is not the whole model"):
        features(setting)


def test_frozen_trials_have_their_own_passes_and_a_head_on_the_first_token_counts_one(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen")
    sharing, passes, whole = features(setting), [], SharedFeatures.logits

    def seen(self: SharedFeatures, parts: Any) -> Any:
        passes.append([(name, len(rows)) for name, rows in parts])
        return whole(self, parts)

    monkeypatch.setattr(SharedFeatures, "logits", seen)
    runs = segments([{"batch_size": 8}] * 3, 1)
    setting.run(sharing, runs, prefix="shared", limit=len(LABELLED_HELD_OUT))
    assert passes == [[(run.name, size)] for size in (8, len(LABELLED_HELD_OUT)) for run in runs]


def test_segments_that_end_together_are_uploaded_while_others_are_scored(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial whose held-out loss is not finite gets no checkpoint, and the others are not affected."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = segments(LORA_TRIALS[:3], 2)
    seen, score, committed = [], TrialGroup.score, TrialGroup.committed

    def scored(self: TrialGroup, name: str) -> Scores:
        seen.append("scored")
        return score(self, name) if name != runs[1].name else Scores(float("nan"), 1, 0)

    def waited_for(self: TrialGroup, trial: Trial) -> Result:
        seen.append("waited for")
        return committed(self, trial)

    monkeypatch.setattr(TrialGroup, "score", scored)
    monkeypatch.setattr(TrialGroup, "committed", waited_for)
    results = setting.run(lora(setting), runs, prefix="shared")
    assert [results[run.name].status for run in runs] == ["ok", "not_finite", "ok"]
    assert [results[run.name].checkpoint is None for run in runs] == [False, True, False]
    assert seen == ["scored"] * 3 + ["waited for"] * 2
