"""Typed outputs of the stages, and `Flow`: a job with the outputs its stages have given so far.

An output is the JSON of its stage record. Records of earlier versions stay readable: unknown fields are ignored. Four
outputs are types of other rooms: `Dataset`, `TrainOutcome`, `Evaluation` and `ParityReport`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, Field

from ray_jobs.data.dataset import Dataset
from ray_jobs.digests import json_digest
from ray_jobs.evaluation.evaluate import EvaluateInputs, Evaluation
from ray_jobs.evaluation.parity import ParityReport
from ray_jobs.spec import JobSpec
from ray_jobs.spec.identity import KEPT_CHECKPOINTS, NOT_TRAINED, one_spelling
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.training.inputs import TrainInputs, TrainOutcome

O = TypeVar("O")  # noqa: E741  # an output


class BaseCopy(BaseModel, frozen=True):
    """A base model's copy in the store."""

    digest: str
    name: str
    """Its name at the endpoint."""
    architecture: str = "?"
    key: str


class EncodedRows(BaseModel, frozen=True):
    """A dataset's rows as the tensors that one base trains on."""

    train_rows: int = 0
    train_rows_left_out: int = 0
    train_examples: int = 0
    """More than the rows where a base's chat template rewrites what came before an answer. 0: as many as rows."""
    train_tokens: int = 0
    train_supervised: int = 0
    """Labels that count in the loss."""
    validation_rows: int = 0
    validation_rows_left_out: int = 0
    validation_examples: int = 0
    validation_tokens: int = 0
    validation_supervised: int = 0
    test_rows: int = 0
    test_rows_left_out: int = 0
    test_examples: int = 0
    test_tokens: int = 0
    test_supervised: int = 0
    test_kept: tuple[int, ...] = Field(validation_alias=AliasChoices("test_kept", "held_out_kept"))
    """Number of the test row of each encoded example; one for each row in records of earlier versions, whose name for
    it was `held_out_kept`."""
    key: str
    labels: tuple[str, ...]
    prompts: PromptSetting = PromptSetting()
    """How the prompts of these rows are written: parity, the registry and the endpoint write them in the same way."""

    def as_text(self) -> str:
        """What a plan says about them. Empty where a row is one example of the template's default."""
        return ", ".join(
            [
                *([f"{self.train_rows} rows are {self.train_examples} examples"] if self.more_examples else []),
                *self.prompts.notes(),
            ]
        )

    @property
    def more_examples(self) -> bool:
        """Whether the chat template makes several examples of a row."""
        return self.train_examples > self.train_rows


class SearchSummary(BaseModel, frozen=True):
    """A search in a job's result."""

    run: str
    """The best trial's last run."""
    params: dict[str, Any]
    trials: int
    page: str
    """Key of the page that shows the search."""


class SearchOutcome(SearchSummary, frozen=True):
    """A search's best trial."""

    inputs: TrainInputs
    """Inputs of the best trial's training."""
    checkpoint: str
    tokens_per_s: float
    tokens: int
    """Trained by all trials."""


class Registered(BaseModel, frozen=True):
    """A version of a model."""

    name: str
    version: str
    not_judged: str = ""
    """Why it is no better than its base as far as is known. Empty: it passed the gate."""
    champion_stays: str = ""
    """Why the alias `champion` does not point at it. Empty: it does, or it is not judged."""


class PublishedCheckpoint(BaseModel, frozen=True):
    """A checkpoint that clients can call, with its metrics; None: not measured at this step."""

    step: int
    version: str
    train_loss: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None


class Published(BaseModel, frozen=True):
    """The checkpoints that clients can call, by step."""

    checkpoints: tuple[PublishedCheckpoint, ...] = ()


class DeployedEndpoint(BaseModel, frozen=True):
    """The endpoint of a deployed version."""

    url: str
    version: str


class MissingOutputError(LookupError):
    """A stage has given no output yet."""


@dataclass(frozen=True)
class Flow:
    """A job with the outputs its stages have given so far. Pure; each property raises MissingOutputError before the
    stages that it follows from."""

    job_spec: JobSpec
    """The job file."""
    known_id: str = ""
    """Id of the job's record. Empty: the one that the job file gives."""
    outputs: Mapping[tuple[type, str], Any] = field(default_factory=dict)
    """By type and, for the stages that exist once a base model, by base model."""

    @property
    def job_id(self) -> str:
        """Id of the job's record."""
        return self.known_id or self.job_spec.job_id

    def get(self, kind: type[O], base_model: str = "") -> O:
        """A stage's output."""
        try:
            output: O = self.outputs[kind, base_model]
        except KeyError:
            raise MissingOutputError(f"no {kind.__name__} {base_model}".rstrip()) from None
        return output

    def with_output(self, kind: type[O], base_model: str, output: O) -> Flow:
        """The same flow after one more stage."""
        return replace(self, outputs={**self.outputs, (kind, base_model): output})

    def base_copy(self, base_model: str) -> BaseCopy:
        """A base model's copy; an empty one for a task that trains from scratch."""
        return self.get(BaseCopy, base_model) if base_model else BaseCopy(digest="", name="", key="")

    @property
    def base_models(self) -> tuple[str, ...]:
        """Every base model the job may train, its own first. One empty name for a task without a base."""
        search = self.job_spec.search
        tried = (search.space or {}).get("base_model", ()) if search is not None else ()
        return tuple(dict.fromkeys([self.job_spec.base_model, *(tried if isinstance(tried, tuple) else ())]))

    @property
    def dataset(self) -> Dataset:
        return self.get(Dataset)

    @property
    def search_prefix(self) -> str:
        """Prefix of the search's records."""
        materials = {
            one_spelling(model): (self.base_copy(model).key, self.get(EncodedRows, model).key)
            for model in self.base_models
        }
        return f"jobs/{self.job_id}/search/{json_digest(materials)}"

    @property
    def search(self) -> SearchOutcome | None:
        """None for a job without a search."""
        return None if self.job_spec.search is None else self.get(SearchOutcome)

    @property
    def retrains(self) -> bool:
        """Whether the job trains after its search, or has none."""
        return self.job_spec.search is None or self.job_spec.search.retrain

    @property
    def spec(self) -> JobSpec:
        """The job with the best trial's values in their places. What follows the training is that of the job file."""
        if self.search is None:
            return self.job_spec
        own = {name: getattr(self.job_spec, name) for name in NOT_TRAINED}
        return self.search.inputs.spec.model_copy(update=own)

    @property
    def base(self) -> BaseCopy:
        """The base of the trained model."""
        return self.base_copy(self.spec.base_model)

    def inputs_of(self, spec: JobSpec, checkpoints: str) -> TrainInputs:
        """Inputs of a training whose checkpoints have this prefix."""
        return TrainInputs(
            spec=spec,
            labels=self.dataset.labels,
            encoded_key=self.get(EncodedRows, spec.base_model).key,
            base_key=self.base_copy(spec.base_model).key,
            checkpoints=checkpoints,
        )

    @property
    def train_inputs(self) -> TrainInputs:
        """Inputs of the training whose checkpoint is evaluated. Their prefix is the same for any number of workers."""
        if self.search is not None and not self.retrains:
            return self.search.inputs.model_copy(update={"spec": self.spec})
        inputs = self.inputs_of(self.spec, "")
        training = self.spec.training.model_dump(mode="json", exclude=set(KEPT_CHECKPOINTS))
        digest = json_digest([inputs.encoded_key, inputs.base_key, self.spec.task, training])
        return inputs.model_copy(update={"checkpoints": f"jobs/{self.job_id}/checkpoints/{digest}"})

    @property
    def trained(self) -> TrainOutcome | SearchOutcome:
        """The training, or the search that stands for it."""
        if self.search is not None and not self.retrains:
            return self.search
        return self.get(TrainOutcome)

    @property
    def encoded(self) -> EncodedRows:
        """The rows that the trained model's base reads."""
        return self.get(EncodedRows, self.spec.base_model)

    @property
    def evaluate_inputs(self) -> EvaluateInputs:
        return EvaluateInputs(
            train=self.train_inputs,
            checkpoint_key=self.trained.checkpoint,
            dataset_digest=self.dataset.digest,
            test_kept=self.encoded.test_kept,
            prompts=self.encoded.prompts,
            candidate_key=candidate_key(self.job_id, self.trained.checkpoint),
        )

    @property
    def evaluation(self) -> Evaluation:
        return self.get(Evaluation)

    @property
    def parity(self) -> ParityReport | None:
        """None before parity, and for a task that no engine serves."""
        report: ParityReport | None = self.outputs.get((ParityReport, ""))
        return report

    @property
    def registered(self) -> Registered:
        return self.get(Registered)


def candidate_key(job_id: str, checkpoint_key: str) -> str:
    """Key of the publishable model built from a checkpoint."""
    return f"jobs/{job_id}/candidates/{checkpoint_key.rsplit('/', 1)[-1]}"
