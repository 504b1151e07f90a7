"""The wire: what the OpenAI-compatible routes take and give, as the official client reads it.

Owns shapes only: field names, kinds, limits. Times are Unix seconds. Responses may have fields of Kitae's own beside
OpenAI's, which the client keeps; requests may too (`extra_body`), and a field that nobody knows is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.data.report import RowReport
from ray_jobs.spec import Name
from ray_jobs.tasks import TaskName

Purpose = Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
MOST_JOBS_PAGE = 100
MOST_FILES_PAGE = 10_000


class Wire(BaseModel):
    """Read and written as JSON; what it does not name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ErrorDetail(Wire):
    message: str
    type: str
    param: str | None
    code: str | None
    details: list[dict[str, Any]] = []
    """Single findings, such as each bad line of a file with its number and reason."""


class ErrorBody(Wire):
    """Every 4xx and 5xx."""

    error: ErrorDetail


class Health(Wire):
    status: Literal["ok"]


class Readiness(Wire):
    status: Literal["ok", "waits"]
    waits_for: dict[str, str]
    """Serve application → its state, of each that does not run."""


class Deleted(Wire):
    id: str
    object: str
    deleted: Literal[True] = True


# ---- files ---------------------------------------------------------------------------------------------------------


class File(Wire):
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
    """For `fine-tune`: what was found in it."""


class FileList(Wire):
    object: Literal["list"] = "list"
    data: list[File]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class CreateUpload(Wire):
    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1)]
    mime_type: str = "application/octet-stream"
    expires_after: dict[str, Any] | None = None


class CompleteUpload(Wire):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=1000)]
    md5: str | None = None


class Upload(Wire):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    expires_at: int
    file: File | None = None


class Part(Wire):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


# ---- fine-tuning ---------------------------------------------------------------------------------------------------

Epochs = Literal["auto"] | Annotated[int, Field(ge=1, le=50)]
BatchSize = Literal["auto"] | Annotated[int, Field(ge=1, le=256)]
RateMultiplier = Literal["auto"] | Annotated[float, Field(gt=0, le=1000)]


class Hyperparameters(Wire):
    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: RateMultiplier = "auto"
    """Of Kitae's default rate for the method."""


class Supervised(Wire):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Wire):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class CreateJob(Wire):
    """OpenAI's fields first, then Kitae's, which a client sends through `extra_body`; they are named as in a job
    file."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=64)]
    validation_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    method: Method | Literal["full", "lora", "qlora", "frozen"] | None = None
    """OpenAI's object, or the name of a training method, short for `training.method`."""
    hyperparameters: Hyperparameters | None = None

    task: TaskName | None = None
    """None: by the columns of the training file."""
    lora_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Short for `training.lora.rank`."""
    data: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    search: dict[str, Any] | bool | None = None
    """Options of a search; true: with its defaults."""
    compute: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    team: Name | None = None
    """On whose behalf; only the operator's key may name another than its own."""
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    dry_run: bool = False
    """Answer with what would run, and run nothing."""


class JobError(Wire):
    code: str
    message: str
    param: str | None = None


class Job(Wire):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str
    """The team."""
    status: JobStatus
    hyperparameters: dict[str, Any]
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    error: JobError | None = None
    seed: int
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    estimated_finish: int | None = None
    result: dict[str, Any] | None = None
    """What it came to: held-out figures of the base and of the tuned model, and the search."""
    dry_run: dict[str, Any] | None = None
    """Only in answer to a dry run: the job file that would run, and how long its stages are."""


class JobList(Wire):
    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class Event(Wire):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = {}


class EventList(Wire):
    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class CheckpointMetrics(Wire):
    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class Checkpoint(Wire):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    step_number: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics


class CheckpointList(Wire):
    object: Literal["list"] = "list"
    data: list[Checkpoint]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


# ---- models and inference ------------------------------------------------------------------------------------------


class Model(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    task: str | None = None
    deployed: bool = True
    """Whether it answers now; a base that does not can still be fine-tuned."""
    fine_tunable: bool = False


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool = False


class Open(Wire):
    """With more fields than are named: those of vLLM."""

    model_config = ConfigDict(extra="allow")


class ChatRequest(Open):
    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class CompletionRequest(Open):
    model: str
    prompt: str | list[str]
    stream: bool | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None


Texts = str | Annotated[list[str], Field(min_length=1, max_length=1024)]


class EmbeddingRequest(Open):
    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None


class ClassifyRequest(Open):
    model: str
    input: Texts


class TextUsage(Wire):
    prompt_tokens: int
    total_tokens: int


class Embedding(Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Wire):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: TextUsage


class Classified(Wire):
    index: int
    label: str
    scores: dict[str, float]


class ClassifyList(Wire):
    object: Literal["list"] = "list"
    model: str
    data: list[Classified]
    usage: TextUsage
