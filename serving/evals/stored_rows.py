"""Stored chat completions as the rows of a run: each conversation in `item.input`, with its answer in `sample`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ray_jobs.storage import Store
from ray_jobs.tenancy.answers.records import StoredAnswer
from ray_jobs.tenancy.answers.rows import AnswerFilter, stored_completions
from serving.evals.records import MAX_ROWS_BYTES
from serving.evals.source import StoredCompletions
from serving.http.errors import bad_request
from serving.http.eval_types import SourceRow, StoredCompletionsSource


def rows_from(store: Store) -> StoredCompletions:
    """The source of rows for `EvalService`. It raises ApiError 400 for more bytes than a run reads."""

    def rows(team: str, source: StoredCompletionsSource) -> Iterator[SourceRow]:
        wanted = AnswerFilter(model=source.model, metadata=source.metadata or {})
        found = (record for record in stored_completions(store, team, wanted) if _is_between(record, source))
        size_bytes = 0
        for row in islice(map(_row_of, found), source.limit):
            size_bytes += len(row.model_dump_json())
            if size_bytes > MAX_ROWS_BYTES:
                message = f"these stored completions have over {MAX_ROWS_BYTES} bytes; a run reads at most that: send "
                raise bad_request(message + "a smaller limit, or metadata", param="data_source.source")
            yield row

    return rows


def _is_between(record: StoredAnswer, source: StoredCompletionsSource) -> bool:
    after, before = source.created_after, source.created_before
    return (after is None or record.created_at > after) and (before is None or record.created_at < before)


def _row_of(record: StoredAnswer) -> SourceRow:
    choice: dict[str, Any] = next(iter(record.answer.get("choices") or ()), {})
    message: dict[str, Any] = choice.get("message") or {}
    sample = {
        "output_text": message.get("content") or "",
        "output_tools": message.get("tool_calls") or [],
        "model": record.model,
        "finish_reason": choice.get("finish_reason"),
        "input": record.input,
    }
    return SourceRow(item={"input": record.input, "metadata": record.metadata}, sample=sample)
