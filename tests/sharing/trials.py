"""Trials on tiny models for tests: a setting in a store, and the comparison with trainings of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.data.encoding import Encoded
from ray_jobs.sharing.adapters import SharedLora
from ray_jobs.sharing.concurrent_passes import ConcurrentPasses
from ray_jobs.sharing.features import SharedFeatures
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.trial_group import Sharing, TrialGroup, TrialTask
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint
from ray_jobs.training.inputs import TRAIN_FILE, VALIDATION_FILE, TrainInputs, TrainUntil
from ray_jobs.training.trainer import train
from tests.models import tiny_models
from tests.training.harness import make_spec, on_workers, publish

CLOSE = 1e-4
ROWS, HELD_OUT = tiny_models.chat_rows(30), tiny_models.chat_rows(40)[30:]
LABELLED, LABELLED_HELD_OUT = tiny_models.label_rows(40), tiny_models.label_rows(52)[40:]
Params = dict[str, Any]

LORA_TRIALS: list[Params] = [
    {"method": "lora", "learning_rate": 1e-2, "lora.rank": 4},
    {"method": "lora", "learning_rate": 3e-3, "lora.rank": 8, "batch_size": 4, "max_grad_norm": 0.1},
    {
        "method": "lora",
        "learning_rate": 3e-2,
        "lora.alpha": 8.0,
        "seed": 7,
        "lora.target_modules": ["q_proj", "v_proj"],
    },
    {"method": "lora", "learning_rate": 1e-2, "batch_size": 16, "weight_decay": 0.1, "warmup_fraction": 0.3},
]
DIVERGES: Params = {"method": "lora", "learning_rate": 1e30, "max_grad_norm": None, "warmup_fraction": 0.0}


@dataclass(frozen=True)
class Setting:
    """Rows and base of one task, in the store."""

    store: Workspace
    inputs: TrainInputs
    rows: Encoded
    held_out: Encoded
    directory: Path

    def spec(self, params: Params) -> JobSpec:
        return self.inputs.spec.with_values(params)

    def group(self, sharing: Sharing, limit: int = 128, concurrent: ConcurrentPasses | None = None) -> TrialGroup:
        training = self.inputs.spec.training
        packed = training.packing and self.inputs.spec.task == "chat"
        concurrent = concurrent or ConcurrentPasses()
        return TrialGroup(self.store, sharing, self.rows, self.held_out, packed, limit, concurrent)

    def run(
        self,
        sharing: Sharing,
        runs: Sequence[TrialSegment],
        *,
        prefix: str,
        limit: int = 128,
        concurrent: ConcurrentPasses | None = None,
    ) -> dict[str, Result]:
        """Train segments in one group to their ends."""
        group = self.group(sharing, limit, concurrent)
        for run in runs:
            group.add(self.task(run, prefix))
        results: dict[str, Result] = {}
        while group.trials:
            results |= {result.run.name: result for result in group.round()}
        return results

    def task(self, run: TrialSegment, prefix: str) -> TrialTask:
        """A segment with checkpoints below `prefix`; it resumes from the first checkpoint of its source there."""
        source = checkpoint.committed(self.store, f"{prefix}/{run.source}")[0].key if run.source is not None else None
        until = TrainUntil(stop_at_step=run.until, resume_from=source)
        update = {"spec": self.spec(run.params), "checkpoints": f"{prefix}/{run.name}", "until": until}
        return TrialTask(run=run, inputs=self.inputs.model_copy(update=update))


def make_setting(store: Workspace, tmp_path: Path, task: str, **training: Any) -> Setting:
    chat = task == "chat"
    base = tiny_models.save_causal(tmp_path / "base") if chat else tiny_models.save_encoder(tmp_path / "base")
    spec = make_spec(task, training={"epochs": 3, **training}, compute={"workers": 1})
    rows, held_out = (ROWS, HELD_OUT) if chat else (LABELLED, LABELLED_HELD_OUT)
    inputs = publish(store, spec, base, rows, held_out, checkpoints="unused")
    encoded = store.fetch(inputs.encoded_key)
    return Setting(
        store,
        inputs,
        Encoded.load(encoded / TRAIN_FILE),
        Encoded.load(encoded / VALIDATION_FILE),
        store.fetch(inputs.base_key),
    )


def lora(setting: Setting) -> SharedLora:
    spec = setting.inputs.spec
    return SharedLora.load(spec, setting.directory, setting.inputs.labels, setting.rows, torch.device("cpu"))


def features(setting: Setting, depth: int = 2) -> SharedFeatures:
    return SharedFeatures.load(
        setting.inputs.spec,
        setting.directory,
        setting.inputs.labels,
        setting.rows,
        setting.held_out,
        torch.device("cpu"),
        depth,
    )


def segments(trials: Sequence[Params], until: int) -> list[TrialSegment]:
    """The first segment of each trial."""
    return [TrialSegment(trial=i, rung=0, params=params, until=until) for i, params in enumerate(trials)]


def train_alone(case: tuple[TrainInputs, Workspace]) -> tuple[tuple[float, ...], float, float]:
    """Train with the job's own loop. Returns its losses, and its last held-out loss and accuracy."""
    train(*case)
    last = checkpoint.committed(case[1], case[0].checkpoints)[-1].position
    assert last.held_out_loss is not None
    assert last.held_out_accuracy is not None
    return last.losses, last.held_out_loss, last.held_out_accuracy


def assert_same(setting: Setting, runs: Sequence[TrialSegment], results: dict[str, Result]) -> None:
    """The results equal those of trainings of their own."""
    cases = [(setting.task(run, "alone").inputs, setting.store) for run in runs]
    for run, (losses, held_out_loss, accuracy) in zip(runs, on_workers(1, train_alone, cases), strict=True):
        result = results[run.name]
        assert result.status == "ok", result.error
        assert result.losses == pytest.approx(losses, rel=CLOSE), run.name
        assert result.loss == pytest.approx(held_out_loss, rel=CLOSE)
        assert result.accuracy == pytest.approx(accuracy, abs=0.02)
