"""Training rows from stored chat completions: the messages of a request with the answer of the model.

    for row in stored_rows(store, "blue", AnswerFilter(model="faq", metadata={"good": "yes"})):
        ...  # {"messages": […], "tools": […]}, a row of the task `chat`

Owns which answers become rows. Does not know files, jobs or evaluations, which read the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.storage import Store
from ray_jobs.tenancy.answers import records
from ray_jobs.tenancy.answers.records import Kind, StoredAnswer

_FINISHED = ("stop", "tool_calls", "function_call")
"""Finish reasons of whole answers; one that was cut off teaches a model to stop early."""
_MESSAGE_FIELDS = ("content", "tool_calls", "refusal", "reasoning_content")
_READ_AT_ONCE = 256


class AnswerFilter(BaseModel):
    """Which stored answers to take; without a field, all."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """Name of the model, as in the answers."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """Pairs that an answer's metadata must have."""

    def values(self) -> dict[str, str]:
        """The filter as `records` takes it."""
        named = {} if self.model is None else {"model": self.model}
        return named | {f"metadata.{name}": value for name, value in self.metadata.items()}


def stored_rows(store: Store, team: str, wanted: AnswerFilter) -> Iterator[dict[str, Any]]:
    """Yield a row for each whole answer of a team's stored chat completions that match, oldest first.

    Answers that were cut off (`finish_reason` `length`) are left out.
    """
    for record in stored_answers(store, team, "chat", wanted):
        yield from rows_of(record)


def stored_answers(store: Store, team: str, kind: Kind, wanted: AnswerFilter) -> Iterator[StoredAnswer]:
    """Yield a team's stored answers of a kind that match, oldest first."""
    filters = wanted.values()

    def ids_of(prefix: str) -> Iterator[str]:
        return (info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(prefix))

    lists = records.filtered(team, kind, filters, ids_of)
    others = [set(each) for each in lists[1:]]
    ids = (identifier for identifier in lists[0] if all(identifier in other for other in others))
    while some := list(islice(ids, _READ_AT_ONCE)):
        for record in records.documents(team, kind).read_some(store, some).values():
            if records.matches(record, filters):
                yield record


def rows_of(record: StoredAnswer) -> Iterator[dict[str, Any]]:
    """Yield a row for each whole answer of one chat completion."""
    tools = record.request.get("tools")
    for choice in record.answer.get("choices", []):
        if choice.get("finish_reason") not in _FINISHED:
            continue
        message = choice["message"]
        answer = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name)}
        if not answer:
            continue
        row = {"messages": [*record.input, {"role": "assistant", **answer}]}
        yield row | ({"tools": tools} if tools else {})
