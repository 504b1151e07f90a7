"""Request and response bodies of `/v1/batches`, as the official client reads them.

Owns field names, types and limits only, and the routes that a line may call.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.http.openai_types import ObjectListWithIds, OpenAIObject

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/classify"]
"""Routes that the lines of a batch may call."""
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
MAX_BATCHES_PAGE = 100


class OutputExpiresAfter(OpenAIObject):
    anchor: Literal["created_at"]
    """The creation of the output file."""
    seconds: Annotated[int, Field(ge=3600, le=30 * 24 * 3600, strict=True)]


class CreateBatch(OpenAIObject):
    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    """A file of the purpose `batch`: JSON Lines with `custom_id`, `method`, `url` and `body`."""
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchError(OpenAIObject):
    code: str
    message: str
    line: int | None = None
    """Line of the input file."""
    param: str | None = None


class BatchErrorList(OpenAIObject):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchRequestCounts(OpenAIObject):
    total: int
    completed: int
    failed: int


class CachedTokens(OpenAIObject):
    cached_tokens: int = 0


class ReasoningTokens(OpenAIObject):
    reasoning_tokens: int = 0


class BatchUsage(OpenAIObject):
    input_tokens: int
    input_tokens_details: CachedTokens = CachedTokens()
    output_tokens: int
    output_tokens_details: ReasoningTokens = ReasoningTokens()
    total_tokens: int


class BatchObject(OpenAIObject):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    """The model of the first line."""
    errors: BatchErrorList | None = None
    """Why the input file was refused."""
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    """Lines that were answered."""
    error_file_id: str | None = None
    """Lines that were refused, failed or not run."""
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None = None


class BatchList(ObjectListWithIds):
    data: list[BatchObject]
