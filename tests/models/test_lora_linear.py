"""LoRA's layers in fewer passes: PEFT's numbers, in outputs and gradients, and PEFT's own code for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import models
from ray_jobs.models import lora_linear
from ray_jobs.spec import TrainingSection
from tests.models import tiny_models

LORA = {"rank": 4, "alpha": 6.0}
IDS = torch.arange(40).reshape(2, 20)


def adapted(base: Path, **lora: Any) -> Any:
    """A model whose adapters are no longer zero."""
    training = TrainingSection.model_validate({"method": "lora", "lora": LORA | lora})
    model = models.attach(models.load_base(base, "chat", [], torch.float32, seed=0), training, "chat")
    torch.manual_seed(1)
    for parameter in models.trainable(model).values():
        parameter.data.normal_(std=0.2)
    return model.train()


def outcome(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits_BTV = model(input_ids=IDS, use_cache=False).logits
    logits_BTV.square().mean().backward()
    return logits_BTV.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_models.save_causal(tmp_path / "tiny")


def test_the_numbers_are_pefts(base: Path) -> None:
    plain, fused = adapted(base), adapted(base)
    assert lora_linear.use(fused) == 3 * 7
    logits, gradients = outcome(plain)
    same_logits, same_gradients = outcome(fused)
    assert torch.allclose(same_logits, logits, rtol=1e-5, atol=1e-6)
    assert set(same_gradients) == set(gradients) == set(models.trainable(plain))
    for name, gradient in gradients.items():
        assert torch.allclose(same_gradients[name], gradient, rtol=1e-4, atol=1e-6), name


def test_dropout_and_disabled_adapters_are_pefts(base: Path) -> None:
    fused = adapted(base, dropout=0.5)
    lora_linear.use(fused)
    torch.manual_seed(3)
    logits, _ = outcome(fused)
    again = adapted(base, dropout=0.5)
    torch.manual_seed(3)
    assert torch.equal(outcome(again)[0], logits)
    plain = models.load_base(base, "chat", [], torch.float32, seed=0)
    with torch.no_grad(), fused.disable_adapter():
        assert torch.equal(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_fused_model_is_saved_and_merged_as_peft_does(base: Path, tmp_path: Path) -> None:
    fused = adapted(base)
    lora_linear.use(fused)
    logits, _ = outcome(fused)
    models.save_published(fused, models.load_processor(base, "chat"), tmp_path / "adapter")
    loaded: Any = models.load_published(tmp_path / "adapter", base, "chat", [], torch.float32)
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=IDS).logits, logits, rtol=1e-5, atol=1e-6)
        merged = fused.merge_and_unload()
        assert torch.allclose(merged(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-5)
