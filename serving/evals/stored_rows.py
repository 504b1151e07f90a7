"""Stored chat completions and responses as the rows of a run: the conversation in `item.input` as the messages of a
chat completion, its answer in `sample`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ray_jobs.storage import Store
from ray_jobs.tenancy.answers.records import StoredAnswer
from ray_jobs.tenancy.answers.rows import AnswerFilter, stored_answers
from serving.evals.records import MAX_ROWS_BYTES
from serving.evals.source import StoredAnswers
from serving.http.errors import bad_request
from serving.http.eval_types import SourceRow, StoredCompletionsSource, StoredResponsesSource
from serving.responses.items import as_messages


def rows_from(store: Store) -> StoredAnswers:
    """The source of rows for `EvalService`. It raises ApiError 400 for more bytes than a run reads."""

    def rows(team: str, source: StoredCompletionsSource | StoredResponsesSource) -> Iterator[SourceRow]:
        wanted = AnswerFilter(model=source.model, metadata=source.metadata or {})
        found: Iterable[SourceRow]
        if isinstance(source, StoredResponsesSource):
            responses = stored_answers(store, team, "responses", wanted)
            found = (_row_of_response(record) for record in responses if _is_within(record, source))
        else:
            completions = stored_answers(store, team, "chat", wanted)
            some = (_row_of_completion(record) for record in completions if _is_between(record, source))
            found = islice(some, source.limit)
        size_bytes = 0
        for row in found:
            size_bytes += len(row.model_dump_json())
            if size_bytes > MAX_ROWS_BYTES:
                message = f"these stored answers have over {MAX_ROWS_BYTES} bytes; a run reads at most that: send "
                raise bad_request(message + "a limit, a time or metadata", param="data_source.source")
            yield row

    return rows


def _is_between(record: StoredAnswer, source: StoredCompletionsSource) -> bool:
    after, before = source.created_after, source.created_before
    return (after is None or record.created_at > after) and (before is None or record.created_at < before)


def _is_within(record: StoredAnswer, source: StoredResponsesSource) -> bool:
    after, before = source.created_after, source.created_before
    return (after is None or record.created_at >= after) and (before is None or record.created_at <= before)


def _row_of_completion(record: StoredAnswer) -> SourceRow:
    choice: dict[str, Any] = next(iter(record.answer.get("choices") or ()), {})
    return _row(record, record.input, choice.get("message") or {}, choice.get("finish_reason"))


def _row_of_response(record: StoredAnswer) -> SourceRow:
    asked = as_messages(record.input, record.answer.get("instructions"), 0).messages
    answered = as_messages(record.answer.get("output") or [], None, 0).messages
    finish = "stop" if record.answer.get("status") == "completed" else "length"
    text = "".join(_text_of(message.get("content")) for message in answered)
    calls = [call for message in answered for call in message.get("tool_calls") or ()]
    return _row(record, asked, {"content": text, "tool_calls": calls}, "tool_calls" if calls else finish)


def _text_of(content: Any) -> str:
    """The text of a message's content, which may be in parts; a refusal has none."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _row(record: StoredAnswer, asked: list[dict[str, Any]], answer: dict[str, Any], finish: str | None) -> SourceRow:
    sample = {
        "output_text": answer.get("content") or "",
        "output_tools": answer.get("tool_calls") or [],
        "model": record.model,
        "finish_reason": finish,
        "input": asked,
    }
    return SourceRow(item={"input": asked, "metadata": record.metadata}, sample=sample)
