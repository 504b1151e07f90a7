"""From the best checkpoint to a candidate: what would be published, scored beside its base on held-out rows.

Owns the candidate's files and both models' figures, and the gate over them. The endpoint is compared in `parity.py`,
for which the trainer's side of the numbers is made here, while the model is in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ray_jobs import models
from ray_jobs.data import dataset
from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import GateError, ModelError
from ray_jobs.evaluation.parity import ParityPrompt
from ray_jobs.registry import base_name
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example, Row, Scores
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Checkpoint
from ray_jobs.training.trainer import HELD_OUT_FILE, TrainInputs, score

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Report = Callable[[tuple[float, float, str, dict[str, float | str]]], object]


class Evaluation(BaseModel):
    """Both models on the same held-out rows."""

    model_config = ConfigDict(frozen=True)

    candidate_key: str
    """Tree in the store with what would be published."""
    is_adapter: bool
    lora_rank: int | None
    dtype: str
    """`fp32` or `bf16`: what was trained and measured in."""
    base: dict[str, float]
    tuned: dict[str, float]
    base_is: str
    """What `base` is: the base model itself or, where that has no head for the task, the majority class."""
    held_out_rows: int
    parity_prompts: tuple[dict[str, Any], ...]


class EvaluateInputs(BaseModel):
    """Everything the evaluation needs, by its place in the store."""

    model_config = ConfigDict(frozen=True)

    train: TrainInputs
    checkpoint_key: str
    dataset_digest: str
    held_out_kept: tuple[int, ...]
    """Numbers of the held-out rows that were encoded."""
    candidate_key: str


def evaluate(inputs: EvaluateInputs, store: Store, report: Report) -> Evaluation:
    """Build the candidate from a checkpoint, store it, and score it and its base."""
    spec, labels = inputs.train.spec, inputs.train.labels
    task = TASKS[spec.task]
    base_directory = store.fetch(inputs.train.base_key)
    tokenizer = models.load_tokenizer(base_directory, spec.task)
    steps = 5
    report((0, steps, "steps", {"doing": "candidate"}))
    with tempfile.TemporaryDirectory(prefix="kitae-candidate-") as scratch:
        candidate = build_candidate(inputs, store, base_directory, tokenizer, Path(scratch) / "tree")
        if store.read_manifest(inputs.candidate_key) is None:
            files = store.upload_tree(Path(scratch) / "tree", inputs.candidate_key)
            store.commit(inputs.candidate_key, files, {"checkpoint": inputs.checkpoint_key})
    encoded = Encoded.load(store.fetch(inputs.train.encoded_key) / HELD_OUT_FILE)
    all_rows = dataset.load(store, inputs.dataset_digest).held_out_rows
    rows = [all_rows[i] for i in inputs.held_out_kept]
    is_adapter = hasattr(candidate, "peft_config")

    def measured(model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        device = next(model.parameters()).device
        figures = as_figures(score(model, task, encoded, spec, device), task.metric)
        chosen = rows if not task.generates else rows[: spec.evaluation.generate_rows]
        whole: Any = model
        extra = task.measure(whole, tokenizer, chosen, labels, max_new_tokens=spec.evaluation.max_new_tokens)
        return figures | extra

    report((1, steps, "steps", {"doing": "tuned model"}))
    tuned = measured(candidate)
    report((2, steps, "steps", {"doing": "trainer's side of parity"}))
    prompts = parity_prompts(candidate, encoded, rows, spec) if task.checks_parity else ()
    report((3, steps, "steps", {"doing": "base model"}))
    if models.has_head(base_directory, spec.task, labels):
        with base_weights(candidate, base_directory, spec, labels) as base_model:
            base, base_is = measured(base_model), "the base model"
    else:
        baseline = task.baseline(dataset.load(store, inputs.dataset_digest).train_rows, rows)
        base, base_is = baseline.metrics, baseline.name
    report((steps, steps, "steps", {"doing": "done"}))
    return Evaluation(
        candidate_key=inputs.candidate_key,
        is_adapter=is_adapter,
        lora_rank=spec.training.lora.rank if is_adapter else None,
        dtype=models.precision_name(spec),
        base=base,
        tuned=tuned,
        base_is=base_is,
        held_out_rows=len(rows),
        parity_prompts=prompts,
    )


def build_candidate(
    inputs: EvaluateInputs, store: Store, base: Path, tokenizer: PreTrainedTokenizerBase, tree: Path
) -> torch.nn.Module:
    """The tuned model in memory, and its files in `tree`."""
    spec = inputs.train.spec
    chosen = next(
        (c for c in checkpoint.committed(store, inputs.train.checkpoints) if c.key == inputs.checkpoint_key), None
    )
    model = load_candidate(inputs.train, base)
    attach_weights(model, store, chosen, inputs.checkpoint_key)
    if spec.compute.gpus_per_worker and spec.training.method != "qlora":
        model = model.to("cuda")
    save_candidate(model, spec, tokenizer, tree)
    return model


def load_candidate(inputs: TrainInputs, base: Path) -> torch.nn.Module:
    """The base with what a training adds to it, as it was before the first step."""
    spec = inputs.spec
    loaded = models.load_base(
        base, spec.task, inputs.labels, models.resolve_precision(spec),
        seed=spec.training.seed, four_bit=spec.training.method == "qlora",
    )  # fmt: skip
    return models.attach(loaded, spec.training, spec.task)


def attach_weights(model: torch.nn.Module, store: Store, chosen: Checkpoint | None, key: str) -> None:
    """Put a checkpoint's weights into a model. Raises ModelError where `chosen`, the one at `key`, is None."""
    if chosen is None:
        raise ModelError(f"the checkpoint {store.uri(key)} is gone; run the job again to train it")
    state = checkpoint.load_state(store, chosen)
    for name, parameter in models.trainable(model).items():
        parameter.data.copy_(state[name]["weight"])


def save_candidate(model: torch.nn.Module, spec: JobSpec, tokenizer: PreTrainedTokenizerBase, tree: Path) -> None:
    """Write what would be published."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = base_name(spec.base_model)  # not a path of this machine
    models.save_published(model, tokenizer, tree)


def base_weights(
    candidate: torch.nn.Module, directory: Path, spec: JobSpec, labels: Sequence[str]
) -> AbstractContextManager[torch.nn.Module]:
    """The base model: the candidate with its adapter switched off, or the base's own files."""
    if hasattr(candidate, "disable_adapter") and not TASKS[spec.task].has_new_head:
        return _without_adapter(candidate)
    device = next(candidate.parameters()).device
    dtype = models.resolve_precision(spec)
    model: torch.nn.Module = models.load_base(directory, spec.task, labels, dtype, seed=spec.training.seed)
    return nullcontext(model.to(device))


def parity_prompts(
    model: torch.nn.Module, encoded: Encoded, rows: Sequence[Row], spec: JobSpec
) -> tuple[dict[str, Any], ...]:
    """The trainer's side of served-equals-trained: prompts, answers and their log-probabilities."""
    import torch

    task = TASKS[spec.task]
    device = next(model.parameters()).device
    prompts: list[dict[str, Any]] = []
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
        prompt = ParityPrompt(
            messages=tuple(row["messages"][:last]),
            prompt_ids=example.input_ids[:start],
            answer_ids=example.input_ids[start:],
            answer_logprobs=tuple(chosen_S),
            tools=tuple(row.get("tools") or ()),
        )
        prompts.append(dict(vars(prompt)))
    return tuple(prompts)


def last_answer(example: Example) -> Example | None:
    """The example up to the end of its last supervised stretch, with only that stretch supervised."""
    supervised = [t for t, label in enumerate(example.labels) if label != IGNORED]
    if not supervised:
        return None
    start = end = supervised[-1]
    while start > 0 and example.labels[start - 1] != IGNORED:
        start -= 1
    labels = (*[IGNORED] * start, *example.labels[start : end + 1])
    return Example(example.input_ids[: end + 1], labels)


def as_figures(scores: Scores, metric: str) -> dict[str, float]:
    """Loss in nats a label, and the share of labels the model would choose."""
    return {"loss": scores.loss, metric: scores.accuracy}


def gate(evaluation: Evaluation, spec: JobSpec) -> None:
    """Raises GateError where the tuned model is not better than its base on held-out rows. Pure."""
    tuned, base = evaluation.tuned["loss"], evaluation.base["loss"]
    if not math.isfinite(tuned):
        raise GateError(f"the tuned model's held-out loss is {tuned}; it is not registered")
    if spec.evaluation.must_beat_base and tuned >= base:
        raise GateError(
            f"the tuned model's held-out loss {tuned:.4f} is not below that of {evaluation.base_is}, {base:.4f}, on "
            f"{evaluation.held_out_rows} rows, so it is not registered: train longer, change the learning rate or "
            "bring more rows, or set evaluation.must_beat_base: false"
        )


@contextmanager
def _without_adapter(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    with model.disable_adapter():  # type: ignore[operator]  # of a PEFT model
        yield model
