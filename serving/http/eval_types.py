"""Request and response bodies of `/v1/evals` and of the graders' routes, as the official client reads them.

Owns field names, types and limits only; the graders' own are in `ray_jobs.graders.schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_jobs.graders.schema import MAX_GRADERS, Grader, GraderMessage
from serving.http.openai_types import ObjectListWithIds, OpenAIObject

MAX_EVALS_PAGE = 100
MAX_CONTENT_ITEMS = 10_000
RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
ItemStatus = Literal["pass", "fail", "error"]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
_EvalName = Annotated[str, Field(min_length=1, max_length=256)]


# ---- graders -------------------------------------------------------------------------------------------------------


class RunGrader(OpenAIObject):
    grader: Grader
    model_sample: Annotated[str, Field(max_length=524_288)]
    """The answer to grade: `sample.output_text`, and `sample.output_json` if it is JSON."""
    item: dict[str, Any] = Field(default_factory=dict)


class ValidateGrader(OpenAIObject):
    grader: Grader


class ValidatedGrader(OpenAIObject):
    grader: Grader


class GraderErrors(OpenAIObject):
    """Which error there was. `details`, a field of Kitae's, says what is wrong."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    details: str | None = None


class GraderRunMetadata(OpenAIObject):
    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    """Seconds."""
    scores: dict[str, float]
    token_usage: int | None = None
    sampled_model_name: str | None = None


class GraderRun(OpenAIObject):
    reward: float
    """0 if there was an error."""
    sub_rewards: dict[str, float]
    """`multi`: the scores of its graders."""
    metadata: GraderRunMetadata
    model_grader_token_usage_per_model: dict[str, int]


# ---- evals ---------------------------------------------------------------------------------------------------------


class CustomSource(OpenAIObject):
    type: Literal["custom"]
    item_schema: dict[str, Any]
    """JSON Schema of an item."""
    include_sample_schema: bool = False
    """Whether the graders read `sample`."""


class LogsSource(OpenAIObject):
    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None


class CreateEval(OpenAIObject):
    data_source_config: Annotated[CustomSource | LogsSource, Field(discriminator="type")]
    testing_criteria: Annotated[list[Grader], Field(min_length=1, max_length=MAX_GRADERS)]
    name: _EvalName | None = None
    metadata: Metadata | None = None


class UpdateEval(OpenAIObject):
    name: _EvalName | None = None
    metadata: Metadata | None = None


class Eval(OpenAIObject):
    id: str
    object: Literal["eval"] = "eval"
    created_at: int
    name: str
    metadata: dict[str, str] | None = None
    data_source_config: dict[str, Any]
    testing_criteria: list[Grader]


class EvalList(ObjectListWithIds):
    data: list[Eval]


class DeletedEval(OpenAIObject):
    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: Literal[True] = True
    eval_id: str


# ---- runs ----------------------------------------------------------------------------------------------------------


class SourceRow(OpenAIObject):
    """A row of a run's data."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContentSource(OpenAIObject):
    type: Literal["file_content"]
    content: Annotated[list[SourceRow], Field(min_length=1, max_length=MAX_CONTENT_ITEMS)]


class FileIdSource(OpenAIObject):
    type: Literal["file_id"]
    id: Annotated[str, Field(min_length=1, max_length=64)]


class StoredCompletionsSource(OpenAIObject):
    type: Literal["stored_completions"]
    created_after: Annotated[int, Field(ge=0, le=2**40)] | None = None
    created_before: Annotated[int, Field(ge=0, le=2**40)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_CONTENT_ITEMS)] | None = None
    metadata: Metadata | None = None
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class StoredResponsesSource(OpenAIObject):
    type: Literal["responses"]
    created_after: Annotated[int, Field(ge=0, le=2**40)] | None = None
    """Inclusive, as `created_before`."""
    created_before: Annotated[int, Field(ge=0, le=2**40)] | None = None
    metadata: Metadata | None = None
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None


STORED = ("stored_completions", "responses")
"""Types of sources whose rows have an answer."""


class JsonlRunSource(OpenAIObject):
    """Rows that have their answers already, in `sample`, or need none."""

    type: Literal["jsonl"]
    source: Annotated[FileContentSource | FileIdSource, Field(discriminator="type")]


class MessagesTemplate(OpenAIObject):
    type: Literal["template"]
    template: Annotated[list[GraderMessage], Field(min_length=1, max_length=64)]


class MessagesReference(OpenAIObject):
    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(min_length=1, max_length=512)]
    """A variable that holds messages, such as `item.messages`."""


class ModelQuestion(OpenAIObject):
    """What a run asks a model."""

    input_messages: Annotated[MessagesTemplate | MessagesReference, Field(discriminator="type")] | None = None
    """None: only for stored answers, which are then graded as they are."""
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    sampling_params: dict[str, Any] | None = None
    """Fields of a chat completion; by default a seed of 42."""


class CompletionsRunSource(ModelQuestion):
    """Rows that a model answers."""

    type: Literal["completions"]
    source: Annotated[FileContentSource | FileIdSource | StoredCompletionsSource, Field(discriminator="type")]


class ResponsesRunSource(ModelQuestion):
    """Rows that a model answers, with the Responses API's names in `sampling_params`."""

    type: Literal["responses"]
    source: Annotated[FileContentSource | FileIdSource | StoredResponsesSource, Field(discriminator="type")]


class CreateEvalRun(OpenAIObject):
    data_source: Annotated[JsonlRunSource | CompletionsRunSource | ResponsesRunSource, Field(discriminator="type")]
    name: _EvalName | None = None
    metadata: Metadata | None = None


class EvalError(OpenAIObject):
    code: str
    message: str


class ResultCounts(OpenAIObject):
    total: int = 0
    passed: int = 0
    failed: int = 0
    errored: int = 0


class CriterionResult(OpenAIObject):
    testing_criteria: str
    """The grader's name."""
    passed: int = 0
    failed: int = 0


class RunModelUsage(OpenAIObject):
    model_name: str
    invocation_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


class EvalRun(OpenAIObject):
    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    created_at: int
    name: str
    metadata: dict[str, str] | None = None
    status: RunStatus
    model: str
    """"" if no model answers."""
    data_source: dict[str, Any]
    """As requested, without the rows: the output items have them."""
    error: EvalError | None = None
    result_counts: ResultCounts
    per_testing_criteria_results: list[CriterionResult]
    per_model_usage: list[RunModelUsage]
    report_url: str
    """The path of this run in the API."""


class EvalRunList(ObjectListWithIds):
    data: list[EvalRun]


class DeletedRun(OpenAIObject):
    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: Literal[True] = True
    run_id: str


class ItemResult(OpenAIObject):
    name: str
    type: str
    score: float
    passed: bool
    sample: dict[str, Any] | None = None
    """What the grader's model was sent and answered."""
    error: EvalError | None = None


class ItemMessage(OpenAIObject):
    role: str
    content: str | None = None


class SampleUsage(OpenAIObject):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


class ItemSample(OpenAIObject):
    input: list[ItemMessage] = Field(default_factory=list)
    output: list[ItemMessage] = Field(default_factory=list)
    finish_reason: str = ""
    model: str = ""
    usage: SampleUsage = SampleUsage()
    error: EvalError | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_completion_tokens: int | None = None


class OutputItem(OpenAIObject):
    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    run_id: str
    eval_id: str
    status: ItemStatus
    datasource_item_id: int
    """Number of the row, from 0."""
    datasource_item: dict[str, Any]
    results: list[ItemResult]
    sample: ItemSample


class OutputItemList(ObjectListWithIds):
    data: list[OutputItem]
