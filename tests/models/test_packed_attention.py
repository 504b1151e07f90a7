"""Attention row by row: the numbers of the masked kernel, in losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import models
from ray_jobs.models import packed_attention
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import loss_sum
from tests.models import tiny_models


def losses_and_gradients(model: Any, *, packed: bool, rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    tokenizer = models.load_processor(Path(model.config.name_or_path), "chat")
    task = TASKS["chat"]
    examples = [example for row in tiny_models.chat_rows(rows) for example in task.encode(row, tokenizer, [])]
    batch = task.collate(examples, packed=packed, pad_id=0)
    logits_SV = task.logits(model, batch)
    model.zero_grad()
    loss_sum(logits_SV, batch.targets_S).backward()  # type: ignore[no-untyped-call]
    return logits_SV.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("packed", "rows"), [(True, 7), (True, 1), (False, 7)])
def test_row_by_row_has_the_numbers_of_the_mask(tmp_path: Path, packed: bool, rows: int) -> None:
    base = tiny_models.save_causal(tmp_path / "tiny")
    masked: Any = models.load_base(base, "chat", [], torch.float32, seed=0)
    by_row: Any = models.load_base(base, "chat", [], torch.float32, seed=0)
    assert packed_attention.use(by_row)
    logits, gradients = losses_and_gradients(masked, packed=packed, rows=rows)
    same_logits, same_gradients = losses_and_gradients(by_row, packed=packed, rows=rows)
    assert torch.allclose(same_logits, logits, rtol=1e-5, atol=1e-6)
    assert len(same_gradients) == len(gradients) > 10
    for ours, theirs in zip(same_gradients, gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_is_computed_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = models.load_base(tiny_models.save_causal(tmp_path / "tiny"), "chat", [], torch.float32, seed=0)
    assert packed_attention.use(model)
    lengths: list[int] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counting(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        lengths.append(query.shape[2])
        return plain(query, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    losses_and_gradients(model, packed=True, rows=3)
    assert len(lengths) == 3 * model.config.num_hidden_layers


def test_the_attention_is_not_written_into_a_models_files(tmp_path: Path) -> None:
    model: Any = models.load_base(tiny_models.save_causal(tmp_path / "tiny"), "chat", [], torch.float32, seed=0)
    packed_attention.use(model)
    model.save_pretrained(tmp_path / "saved")
    assert packed_attention.NAME not in (tmp_path / "saved" / "config.json").read_text()


def test_only_a_packed_sequence_has_rows() -> None:
    def lengths(*positions: list[int]) -> list[int]:
        return packed_attention.row_lengths(torch.tensor(positions))

    assert lengths([0, 1, 2, 0, 0, 1]) == [3, 1, 2]
    assert lengths([0, 1, 2]) == [3]
    assert lengths([1, 2, 0, 1]) == []  # does not begin at a row's first token
    assert lengths([0, 2, 0, 1]) == []  # jumps
    assert lengths([0, 1], [0, 1]) == []
    assert packed_attention.row_lengths(None) == []
