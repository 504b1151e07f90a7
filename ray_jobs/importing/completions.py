"""A stored completion of OpenAI's as a prompt with its answer, and as a row to train on. Pure.

The content of a message that was sent in parts is in `content_parts`; fields that only the record has are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.importing.client import Document

_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal")
_WHOLE = ("stop", "tool_calls", "function_call", None)
"""Ends of an answer that is not cut off."""


@dataclass(frozen=True)
class Asked:
    """A prompt and the answer that a model of OpenAI's gave, or that a row has."""

    id: str
    messages: tuple[Document, ...]
    answer: Document
    """The assistant's message."""
    tools: Sequence[Document] | None = None
    response_format: Document | None = None
    whole: bool = True
    """False: the answer was cut off by a limit or a filter."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the request that a replay repeats."""

    @property
    def row(self) -> Document:
        """As a row to train on."""
        tools = {} if not self.tools else {"tools": list(self.tools)}
        return {"messages": [*self.messages, self.answer], **tools}


def asked_of_completion(completion: Document) -> Asked | str:
    """The prompt and the answer of a stored completion, or why it has none."""
    identifier = str(completion["id"])
    messages = next((completion[name] for name in ("messages", "input_messages") if completion.get(name)), None)
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return "its messages are not there"
    choices = completion.get("choices")
    if not choices:  # exported as a conversation
        return asked_of_row(identifier, {**completion, "messages": messages})
    choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
    if not isinstance(choice.get("message"), dict):
        return "its answer is not there"
    formatted = completion.get("response_format")
    return Asked(
        identifier,
        tuple(_message(each) for each in messages),
        _message({"role": "assistant", **choice["message"]}),
        tools=_tools(completion),
        response_format=formatted if isinstance(formatted, dict) and formatted.get("type") != "text" else None,
        whole=choice.get("finish_reason") in _WHOLE,
    )


def asked_of_row(identifier: str, row: Document) -> Asked | str:
    """The prompt of a chat row and its last answer, or why it has none."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return "it has no list of messages"
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        return "its last message is not the assistant's, or the only one"
    *before, last = map(_message, messages)
    return Asked(identifier, tuple(before), last, tools=_tools(row))


def _message(message: Document) -> Document:
    found = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
    if message.get("content_parts"):
        found["content"] = message["content_parts"]
    if "content" not in found:
        found["content"] = None
    return found


def _tools(document: Document) -> list[Document] | None:
    tools = document.get("tools")
    return tools if isinstance(tools, list) and tools else None
