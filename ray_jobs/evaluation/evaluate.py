"""Evaluates the best checkpoint: stores the candidate, and scores it and its base on the test rows.

Also computes the trainer's side of parity, while the model is in memory; `parity.py` compares it with the engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ray_jobs import models
from ray_jobs.data import dataset
from ray_jobs.data.encoding import Encoded
from ray_jobs.evaluation.champion import Champion, champion_model
from ray_jobs.evaluation.evidence import lacking_evidence
from ray_jobs.evaluation.paired import Comparison, Interval, compare, intervals
from ray_jobs.evaluation.parity import ParityPrompt
from ray_jobs.evaluation.publish import SendProgress, base_weights, build_candidate
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example, PromptSetting, Row
from ray_jobs.tasks.chat.turns import trained_turns
from ray_jobs.tasks.positions import capped
from ray_jobs.training.inputs import TEST_FILE, TrainInputs, encoded_file
from ray_jobs.training.scoring import RowScores, score_examples

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
    baselines: dict[str, dict[str, float]] = {}
    """Metrics of models without a base, such as the majority class, by what they are."""
    intervals: dict[str, Interval] = {}
    """95% intervals of the tuned model's loss and first measure. Empty in records of earlier versions."""
    comparison: Comparison | None = None
    """The tuned model beside its base, row by row. None: in records of earlier versions."""
    lacking: str = ""
    """Why the test rows cannot tell the two apart. Empty: they can."""
    champion: Champion | None = None
    """The model's champion at the time. None: it had none, or the record is of an earlier version."""
    beside_champion: Comparison | None = None
    """The tuned model beside the champion, row by row. None: there is none, or they cannot be compared."""
    longest_read: int | None = None
    """Tokens that the base reads at once. None: it has no limit, or the record is of an earlier version."""
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
    """Number of the test row of each encoded example."""
    candidate_key: str
    prompts: PromptSetting = PromptSetting()
    """How the prompts of the encoded rows are written."""
    champion: Champion | None = None
    """The model's champion, which is scored as well. None: it has none."""


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
    rows = [files_of_rows.test_rows[i] for i in sorted(set(inputs.test_kept))]
    is_adapter = hasattr(candidate, "peft_config")

    def row_scores(model: torch.nn.Module) -> RowScores:
        """Scores of each row; of each example where records of earlier versions do not say which row it is of."""
        model.eval()
        scores = score_examples(model, task, encoded, spec, next(model.parameters()).device, reference)
        return scores.by_row(inputs.test_kept) if len(inputs.test_kept) == len(encoded) else scores

    def measured(model: torch.nn.Module) -> tuple[RowScores, dict[str, float]]:
        """Scores of each row, and loss, accuracy and the task's own measures over all."""
        scores = row_scores(model)
        total = scores.total()
        chosen = rows[: spec.evaluation.generate_rows] if task.generates else rows
        own = task.measure(model, processor, chosen, labels, max_new_tokens=spec.evaluation.max_new_tokens)
        return scores, {"loss": total.loss, task.metric: total.accuracy} | own

    report((1, _STEPS, "steps", {"doing": "scoring the tuned model"}))
    tuned_scores, tuned = measured(candidate)
    report((2, _STEPS, "steps", {"doing": "answers to compare with the engine's"}))
    # The engine generates a token after the last one of the answer.
    longest = models.longest_read(base_directory)
    served = capped(min(spec.data.max_tokens + 1, spec.serving.max_model_len), longest) - 1
    prompts = parity_prompts(candidate, processor, rows, spec, inputs.prompts, served) if task.generates else ()
    report((3, _STEPS, "steps", {"doing": "scoring the base"}))
    baselines = task.baselines(files_of_rows.side("train"), rows)
    if base_directory is not None and models.has_head(base_directory, spec.task, labels):
        with base_weights(candidate, base_directory, spec, labels) as base_model:
            (base_scores, base), base_is = measured(base_model), "the base model"
    elif not baselines:
        raise NotImplementedError(f"{task.name} has neither a base model nor a baseline to be compared with")
    else:
        first = baselines[0]
        base_scores, base, base_is = RowScores.of_losses(first.losses), first.metrics, first.name
    beside_champion = None
    if inputs.champion is not None and not inputs.champion.incomparable:
        report((4, _STEPS, "steps", {"doing": "scoring the champion"}))
        tree_of_champion = store.fetch(inputs.champion.key)
        with champion_model(candidate, tree_of_champion, base_directory, spec, labels) as champion:
            beside_champion = compare(tuned_scores, row_scores(champion), f"the champion, {inputs.champion.version}")
    report((_STEPS, _STEPS, "steps", {}))
    return Evaluation(
        candidate_key=inputs.candidate_key,
        is_adapter=is_adapter,
        lora_rank=spec.training.lora.rank if is_adapter else None,
        dtype=models.precision_name(spec),
        base=base,
        tuned=tuned,
        base_is=base_is,
        baselines={each.name: each.metrics for each in baselines},
        intervals=intervals(tuned_scores, task.metric),
        comparison=compare(tuned_scores, base_scores, base_is),
        lacking=lacking_evidence(len(rows), _labels_of(rows, task.label_column)),
        champion=inputs.champion,
        beside_champion=beside_champion,
        longest_read=longest,
        test_rows=len(rows),
        parity_prompts=prompts,
    )


def _labels_of(rows: Sequence[Row], column: str | None) -> list[str] | None:
    """The labels of rows; None without a column of labels."""
    return None if column is None else [str(row[column]) for row in rows]


def parity_prompts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    spec: JobSpec,
    setting: PromptSetting,
    max_tokens: int,
) -> tuple[ParityPrompt, ...]:
    """Prompts of the first `evaluation.parity.prompts` rows that have an answer, scored by the trainer's model.

    `max_tokens`: of prompt and answer together; a longer answer is cut.
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
        answer_ids = turn.answer_ids[: max(0, max_tokens - len(turn.prompt_ids))]
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
