"""Evaluates the best checkpoint: stores the candidate, scores it and its base on test rows, and the gate on both.

Also computes the trainer's side of parity, while the model is in memory; `parity.py` compares it with the engine.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ray_jobs import models
from ray_jobs.data import dataset
from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import GateError
from ray_jobs.evaluation.parity import ParityPrompt
from ray_jobs.evaluation.publish import SendProgress, base_weights, build_candidate
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example, PromptSetting, Row
from ray_jobs.tasks.chat.turns import trained_turns
from ray_jobs.training.inputs import TEST_FILE, TrainInputs, encoded_file
from ray_jobs.training.scoring import score

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_STEPS = 5


class Evaluation(BaseModel):
    """Both models on the same test rows."""

    model_config = ConfigDict(frozen=True)

    candidate_key: str
    """Tree in the store with the files that would be published."""
    is_adapter: bool
    lora_rank: int | None
    dtype: str
    """`fp32` or `bf16`: the precision of training and of these scores."""
    base: dict[str, float]
    tuned: dict[str, float]
    base_is: str
    """Source of `base`: the base model or, where that has no head for the task, the task's baseline."""
    test_rows: int = Field(validation_alias=AliasChoices("test_rows", "held_out_rows"))
    """Rows of the test side. The stored name was `held_out_rows`."""
    parity_prompts: tuple[ParityPrompt, ...]


class EvaluateInputs(BaseModel):
    """Everything the evaluation needs, by its place in the store."""

    model_config = ConfigDict(frozen=True)

    train: TrainInputs
    checkpoint_key: str
    dataset_digest: str
    test_kept: tuple[int, ...]
    """Numbers of the test rows that were encoded."""
    candidate_key: str
    prompts: PromptSetting = PromptSetting()
    """How the prompts of the encoded rows are written."""


def evaluate(inputs: EvaluateInputs, store: Workspace, report: SendProgress) -> Evaluation:
    """Build the candidate from a checkpoint, store it, and score it and its base."""
    spec, labels = inputs.train.spec, inputs.train.labels
    task = TASKS[spec.task].with_setting(inputs.prompts)
    base_directory = models.fetch_base(store, inputs.train.base_key)
    processor = models.load_processor(base_directory, spec.task)
    report((0, _STEPS, "steps", {"doing": "building the tuned model"}))
    with tempfile.TemporaryDirectory(prefix="kitae-candidate-") as scratch:
        tree = Path(scratch) / "tree"
        candidate, reference = build_candidate(
            inputs.train, inputs.checkpoint_key, store, base_directory, processor, tree
        )
        if store.read_manifest(inputs.candidate_key) is None:
            files = store.upload_tree(tree, inputs.candidate_key)
            store.commit(inputs.candidate_key, files, {"checkpoint": inputs.checkpoint_key})
    encoded = Encoded.load(encoded_file(store.fetch(inputs.train.encoded_key), TEST_FILE))
    files_of_rows = dataset.load(store, inputs.dataset_digest)
    rows = [files_of_rows.test_rows[i] for i in inputs.test_kept]
    is_adapter = hasattr(candidate, "peft_config")

    def measured(model: torch.nn.Module) -> dict[str, float]:
        """Loss and accuracy over the encoded rows, and the task's own measures."""
        model.eval()
        scores = score(model, task, encoded, spec, next(model.parameters()).device, reference)
        chosen = rows[: spec.evaluation.generate_rows] if task.generates else rows
        own = task.measure(model, processor, chosen, labels, max_new_tokens=spec.evaluation.max_new_tokens)
        return {"loss": scores.loss, task.metric: scores.accuracy} | own

    report((1, _STEPS, "steps", {"doing": "scoring the tuned model"}))
    tuned = measured(candidate)
    report((2, _STEPS, "steps", {"doing": "answers to compare with the engine's"}))
    prompts = parity_prompts(candidate, processor, rows, spec, inputs.prompts) if task.generates else ()
    report((3, _STEPS, "steps", {"doing": "scoring the base"}))
    if base_directory is not None and models.has_head(base_directory, spec.task, labels):
        with base_weights(candidate, base_directory, spec, labels) as base_model:
            base, base_is = measured(base_model), "the base model"
    else:
        baseline = task.baseline(files_of_rows.train_rows, rows)
        base, base_is = baseline.metrics, baseline.name
    report((_STEPS, _STEPS, "steps", {}))
    return Evaluation(
        candidate_key=inputs.candidate_key,
        is_adapter=is_adapter,
        lora_rank=spec.training.lora.rank if is_adapter else None,
        dtype=models.precision_name(spec),
        base=base,
        tuned=tuned,
        base_is=base_is,
        test_rows=len(rows),
        parity_prompts=prompts,
    )


def parity_prompts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    spec: JobSpec,
    setting: PromptSetting,
) -> tuple[ParityPrompt, ...]:
    """Prompts of the first `evaluation.parity.prompts` rows that have an answer, scored by the trainer's model.

    S: supervised positions, V: vocabulary.
    """
    import torch

    task = TASKS[spec.task]
    device = next(model.parameters()).device
    prompts: list[ParityPrompt] = []
    for row in rows:
        if len(prompts) == spec.evaluation.parity.prompts:
            break
        messages, tools = row["messages"], row.get("tools") or ()
        *_, turn = trained_turns(tokenizer, messages, tools, setting)
        answer_ids = turn.answer_ids[: max(0, spec.data.max_tokens - len(turn.prompt_ids))]
        if not answer_ids:
            continue
        example = Example(turn.prompt_ids + answer_ids, (IGNORED,) * len(turn.prompt_ids) + answer_ids)
        batch = task.collate([example], packed=False, pad_id=0).to(device)
        with torch.no_grad():
            logprobs_SV = task.logits(model, batch).float().log_softmax(-1)
        chosen_S = logprobs_SV.gather(1, batch.targets_S[:, None])[:, 0].tolist()
        prompts.append(
            ParityPrompt(
                messages=tuple(messages[: turn.message]),
                prompt_ids=turn.prompt_ids,
                answer_ids=answer_ids,
                answer_logprobs=tuple(chosen_S),
                tools=tuple(tools),
            )
        )
    return tuple(prompts)


def gate(evaluation: Evaluation, spec: JobSpec) -> None:
    """Raise GateError for a tuned model that is not better than its base on the test rows."""
    tuned, base = evaluation.tuned["loss"], evaluation.base["loss"]
    if not math.isfinite(tuned):
        raise GateError(f"the tuned model's test loss is {tuned}; it is not registered")
    if spec.evaluation.must_beat_base and tuned >= base:
        raise GateError(
            f"the tuned model's test loss {tuned:.4f} is not below that of {evaluation.base_is}, {base:.4f}, on "
            f"{evaluation.test_rows} rows, so it is not registered: train longer, change the learning rate or "
            "bring more rows, or set evaluation.must_beat_base: false"
        )
