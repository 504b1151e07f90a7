"""The trainer's side of parity: prompts of held-out rows, reference answers and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_jobs.data.encoding import Encoded
from ray_jobs.evaluation.parity import ParityPrompt
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example, Row

if TYPE_CHECKING:
    import torch


def parity_prompts(
    model: torch.nn.Module, encoded: Encoded, rows: Sequence[Row], spec: JobSpec
) -> tuple[ParityPrompt, ...]:
    """Prompts of the first `evaluation.parity.prompts` rows that have an answer, scored by the trainer's model.

    S: supervised positions, V: vocabulary.
    """
    import torch

    task = TASKS[spec.task]
    device = next(model.parameters()).device
    prompts: list[ParityPrompt] = []
    for i, row in enumerate(rows):
        if len(prompts) == spec.evaluation.parity.prompts:
            break
        example = last_answer(encoded[i])
        if example is None:
            continue
        start = next(t for t, label in enumerate(example.labels) if label != IGNORED)
        batch = task.collate([example], packed=False, pad_id=0).to(device)
        with torch.no_grad():
            logprobs_SV = task.logits(model, batch).float().log_softmax(-1)
        chosen_S = logprobs_SV.gather(1, batch.targets_S[:, None])[:, 0].tolist()
        last = max(t for t, message in enumerate(row["messages"]) if message["role"] == "assistant")
        prompts.append(
            ParityPrompt(
                messages=tuple(row["messages"][:last]),
                prompt_ids=example.input_ids[:start],
                answer_ids=example.input_ids[start:],
                answer_logprobs=tuple(chosen_S),
                tools=tuple(row.get("tools") or ()),
            )
        )
    return tuple(prompts)


def last_answer(example: Example) -> Example | None:
    """The example up to the end of its last supervised span, with only that span supervised. None: it has none."""
    supervised = [t for t, label in enumerate(example.labels) if label != IGNORED]
    if not supervised:
        return None
    start = end = supervised[-1]
    while start > 0 and example.labels[start - 1] != IGNORED:
        start -= 1
    labels = (*[IGNORED] * start, *example.labels[start : end + 1])
    return Example(example.input_ids[: end + 1], labels)
