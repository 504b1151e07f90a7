"""Request and response bodies of the OpenAI-compatible routes, as the official client reads them.

Owns field names, types and limits only. Times are Unix seconds. Responses have fields of Kitae's beside OpenAI's, which
the client keeps; requests may have them too (`extra_body`). An unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.data.report import RowReport
from ray_jobs.spec import Name
from ray_jobs.tasks import TaskName

Purpose = Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]
FineTuningJobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
MAX_JOBS_PAGE = 100
MAX_FILES_PAGE = 10_000


class OpenAIObject(BaseModel):
    """A JSON object; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ObjectList(OpenAIObject):
    object: Literal["list"] = "list"
    data: Sequence[OpenAIObject]
    has_more: bool


class ObjectListWithIds(ObjectList):
    first_id: str | None = None
    last_id: str | None = None


class ObjectPage(ObjectListWithIds):
    """A page of objects whose fields a model or a request gave."""

    data: list[dict[str, Any]]  # type: ignore[assignment]  # items of any schema


class ErrorDetail(OpenAIObject):
    message: str
    type: str
    param: str | None
    code: str | None
    details: list[dict[str, Any]] = []
    """Single findings, such as each bad line of a file with its number and reason."""


class ErrorBody(OpenAIObject):
    """Body of every 4xx and 5xx."""

    error: ErrorDetail


class Health(OpenAIObject):
    status: Literal["ok"]


class Readiness(OpenAIObject):
    status: Literal["ok", "waits"]
    waits_for: dict[str, str] | None = None
    """Serve application → state, for each that is not running. For the operator's key only."""
    unreadable_records: dict[str, list[str]] | None = None
    """Kind → keys of records of the store that cannot be read and are skipped. For the operator's key only."""


class Deleted(OpenAIObject):
    id: str
    object: str
    deleted: Literal[True] = True


# ---- files ---------------------------------------------------------------------------------------------------------


class File(OpenAIObject):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = None
    status_details: str | None = None
    rows: RowReport | None = None
    """Validation report of a `fine-tune` file."""
    jobs: list[str] | None = None
    """The newest jobs that read it, where one file is retrieved."""


class FileList(ObjectListWithIds):
    data: list[File]


class CreateUpload(OpenAIObject):
    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1)]
    mime_type: str = "application/octet-stream"
    expires_after: dict[str, Any] | None = None


class CompleteUpload(OpenAIObject):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=1000)]
    md5: str | None = None


class Upload(OpenAIObject):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    expires_at: int
    file: File | None = None


class UploadPart(OpenAIObject):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


# ---- fine-tuning ---------------------------------------------------------------------------------------------------

Epochs = Literal["auto"] | Annotated[int, Field(ge=1, le=50, strict=True)]
BatchSize = Literal["auto"] | Annotated[int, Field(ge=1, le=256, strict=True)]
RateMultiplier = Literal["auto"] | Annotated[float, Field(gt=0, le=1000, strict=True)]


class Hyperparameters(OpenAIObject):
    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: RateMultiplier = "auto"
    """Multiplies Kitae's default learning rate of the method."""


class Supervised(OpenAIObject):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(OpenAIObject):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class WandbIntegration(OpenAIObject):
    project: Annotated[str, Field(min_length=1, max_length=128)]
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Display name of the run. None: the job's id."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)] | None = None


class Integration(OpenAIObject):
    type: Literal["wandb"]
    wandb: WandbIntegration


class CreateFineTuningJob(OpenAIObject):
    """OpenAI's fields, then Kitae's, which a client sends through `extra_body` and which are named as in a job file."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=64)]
    validation_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Integration] | None = None
    """At most one; the run's metrics are also sent to Weights & Biases."""
    method: Method | Literal["full", "lora", "qlora", "frozen"] | None = None
    """OpenAI's object, or the name of a training method as a short form of `training.method`."""
    hyperparameters: Hyperparameters | None = None

    task: TaskName | None = None
    """None: derived from the columns of the training file."""
    lora_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Short form of `training.lora.rank`."""
    data: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    search: dict[str, Any] | bool | None = None
    """Options of a search; true: the defaults."""
    compute: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    team: Name | None = None
    """Team that owns the job; only the operator's key may name another team than its own."""
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    dry_run: bool = False
    """Return the job that would run without creating it."""


class FineTuningJobError(OpenAIObject):
    code: str
    message: str
    param: str | None = None


class FineTuningJob(OpenAIObject):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str
    """The team."""
    status: FineTuningJobStatus
    hyperparameters: dict[str, Any]
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    error: FineTuningJobError | None = None
    seed: int
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    estimated_finish: int | None = None
    result: dict[str, Any] | None = None
    """Held-out metrics of the base and the tuned model, and the result of the search."""
    dry_run: dict[str, Any] | None = None
    """Set for a dry run: the job file that would run, and its numbers of steps and tokens."""


class FineTuningJobList(ObjectList):
    data: list[FineTuningJob]


class FineTuningJobEvent(OpenAIObject):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = {}


class FineTuningJobEventList(ObjectList):
    data: list[FineTuningJobEvent]


class FineTuningJobCheckpointMetrics(OpenAIObject):
    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class FineTuningJobCheckpoint(OpenAIObject):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    step_number: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: FineTuningJobCheckpointMetrics
    gated: bool = False
    """Whether it passed the gate: it is the job's own model."""


class FineTuningJobCheckpointList(ObjectListWithIds):
    data: list[FineTuningJobCheckpoint]


class CreateCheckpointPermissions(OpenAIObject):
    project_ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=64)]
    """Teams; `*`: every team."""


class CheckpointPermission(OpenAIObject):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str
    """The team."""


class CheckpointPermissionList(ObjectListWithIds):
    data: list[CheckpointPermission]


# ---- models and inference ------------------------------------------------------------------------------------------


class Model(OpenAIObject):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    task: str | None = None
    deployed: bool = True
    """Whether it answers requests; a base that does not can still be fine-tuned."""
    fine_tunable: bool = False
    gated: bool | None = None
    """Whether a tuned model passed the gate; false for a published checkpoint."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together. None: it generates no answers."""


class ModelList(ObjectList):
    data: list[Model]
    has_more: bool = False


class StoredCompletion(BaseModel):
    """A stored chat completion: the answer, the request's fields and its metadata."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    metadata: dict[str, str]


class StoredResponse(BaseModel):
    """A stored response."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class UpdateStoredCompletion(OpenAIObject):
    metadata: Metadata | None
    """Replaces the metadata; null: none."""


class TextUsage(OpenAIObject):
    prompt_tokens: int
    total_tokens: int


class Embedding(OpenAIObject):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(OpenAIObject):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: TextUsage


class Classified(OpenAIObject):
    index: int
    label: str
    scores: dict[str, float]


class ClassifyList(OpenAIObject):
    object: Literal["list"] = "list"
    model: str
    data: list[Classified]
    usage: TextUsage
