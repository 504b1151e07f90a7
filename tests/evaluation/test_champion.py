"""The champion's weights beside a candidate's, and with whom it is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import models
from ray_jobs.evaluation.champion import champion_model, champion_of
from ray_jobs.models import load_published
from ray_jobs.registry.model import Lineage, ModelVersion
from ray_jobs.spec import JobSpec
from tests.models import tiny_models
from tests.training import harness

LABELS = ("a", "b")


def with_other_weights(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in models.trainable(model).values():
            weight.add_(torch.empty(weight.shape).normal_(0, 0.1, generator=generator))
    return model.train(False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 19)[None]).logits
    return found.clone()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("task", ["chat", "text_classification"])
def test_the_champion_is_scored_with_its_own_weights_and_the_candidate_keeps_its_own(
    tmp_path: Path, task: str, method: str
) -> None:
    base = (tiny_models.save_causal if task == "chat" else tiny_models.save_encoder)(tmp_path / "base")
    labels = () if task == "chat" else LABELS
    spec: JobSpec = harness.make_spec(task=task, training={"method": method, "precision": "fp32"})
    candidate, champion = (with_other_weights(models.build(spec, base, labels, trains=False), seed) for seed in (1, 2))
    models.save_published(champion, models.load_processor(base, task), tmp_path / "champion")
    alone = load_published(
        tmp_path / "champion", base if method == "lora" else None, task, labels, torch.float32
    )  # fmt: skip
    before, expected = logits(candidate), logits(alone)
    assert not torch.allclose(before, expected, atol=1e-3)
    with champion_model(candidate, tmp_path / "champion", base, spec, labels) as found:
        assert torch.allclose(logits(found.train(False)), expected, atol=1e-6)
    assert torch.equal(logits(candidate), before)


def test_a_champion_of_another_base_task_or_labels_cannot_be_compared() -> None:
    spec = harness.make_spec(task="text_classification")
    lineage = Lineage("rows", "d", spec, "0", "job", {}, labels=LABELS)
    version = ModelVersion(
        team="default", name="tiny", version="3", key="k", task=spec.task, kind="predictor", base_name="base",
        base_digest="d", labels=LABELS, metrics={}, lineage=lineage,
    )  # fmt: skip
    assert champion_of(version, spec, "d", LABELS).incomparable == ""
    assert "another base" in champion_of(version, spec, "e", LABELS).incomparable
    assert "other labels" in champion_of(version, spec, "d", ("a", "c")).incomparable
    assert "its task is text_classification" in champion_of(version, harness.make_spec(), "d", LABELS).incomparable
