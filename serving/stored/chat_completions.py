"""The stored form of chat completions: assembling a streamed answer, and what the API shows of a record.

Owns the shapes, OpenAI's. Does not know the store (`answers`) nor routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.tenancy.answers.records import StoredAnswer
from serving.access.auth import Caller
from serving.http.ids import created_at_s

Chunk = dict[str, Any] | str
_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")
_UNKEPT = ("messages", "stream", "stream_options")
"""Fields of a request that its record has elsewhere, or that do not change the answer."""
_KEPT_BYTES = 2**20
"""Largest field of a request, such as `documents`, that is kept beside the messages."""


@dataclass
class _Choice:
    message: dict[str, Any] = field(default_factory=lambda: {"role": "assistant", "content": None})
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] | None = None
    finish_reason: str | None = None


@dataclass
class Assembly:
    """A streamed chat completion, put together from its events."""

    head: dict[str, Any] = field(default_factory=dict)
    choices: dict[int, _Choice] = field(default_factory=dict)
    usage: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Add one `chat.completion.chunk`."""
        self.head |= {name: event[name] for name in ("id", "created", "model", "system_fingerprint") if name in event}
        self.usage = event.get("usage") or self.usage
        for piece in event.get("choices") or []:
            self._add_choice(piece)

    def _add_choice(self, piece: dict[str, Any]) -> None:
        choice = self.choices.setdefault(piece.get("index", 0), _Choice())
        delta = piece.get("delta") or {}
        for name in _TEXTS:
            if delta.get(name) is not None:
                choice.message[name] = (choice.message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls") or []:
            known = choice.calls.setdefault(call.get("index", 0), {"id": "", "type": "function", "function": {}})
            known["id"] = call.get("id") or known["id"]
            for name, text in (call.get("function") or {}).items():
                known["function"][name] = known["function"].get(name, "") + (text or "")
        for name, items in (piece.get("logprobs") or {}).items():
            choice.logprobs = choice.logprobs or {}
            choice.logprobs.setdefault(name, []).extend(items or [])
        choice.finish_reason = piece.get("finish_reason") or choice.finish_reason

    def completion(self) -> dict[str, Any]:
        """Return the `chat.completion` that a request without `stream` would have been answered with."""
        choices = [
            {
                "index": index,
                "message": choice.message
                | ({"tool_calls": [choice.calls[i] for i in sorted(choice.calls)]} if choice.calls else {}),
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in sorted(self.choices.items())
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self.usage}


def recorder(identifier: str, on_end: Callable[[dict[str, Any]], None]) -> Callable[[Chunk], Chunk]:
    """Return a function that passes an answer's chunks under this id, and calls `on_end` with the whole answer.

    A stream is whole with its last event; one that breaks off calls nothing.
    """
    assembly = Assembly()

    def record(chunk: Chunk) -> Chunk:
        if isinstance(chunk, dict):
            if "response" not in chunk:
                return chunk  # an error
            whole = chunk["response"] | {"id": identifier}
            on_end(whole)
            return chunk | {"response": whole}
        data = chunk.removeprefix("data:").strip()
        if data == "[DONE]":
            on_end(assembly.completion())
            return chunk
        event: Any = None
        with suppress(ValueError):  # a comment
            event = json.loads(data)
        if not isinstance(event, dict):
            return chunk
        event["id"] = identifier
        assembly.add(event)
        return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"

    return record


def record_of(
    answer: dict[str, Any], body: Mapping[str, Any], metadata: Mapping[str, str], *, model: str, caller: Caller
) -> StoredAnswer:
    """Return the record of a whole answer. `body`: the validated request; `model`: as it was requested."""
    kept = {name: value for name, value in body.items() if name not in _UNKEPT}
    created_at = int(created_at_s(answer["id"]))
    return StoredAnswer(
        id=answer["id"],
        team=caller.team,
        key_id=caller.key_id,
        model=answer["model"],
        requested_model=model,
        created_at=created_at,
        metadata=dict(metadata),
        input=body["messages"],
        request={name: value for name, value in kept.items() if len(json.dumps(value)) <= _KEPT_BYTES},
        answer={"created": created_at, **answer},
    )


def shown(record: StoredAnswer) -> dict[str, Any]:
    """Return a record as `GET /v1/chat/completions/{id}` answers it: the completion, its request and its metadata."""
    return record.request | record.answer | {"metadata": record.metadata}


def messages_of(record: StoredAnswer) -> list[dict[str, Any]]:
    """Return a record's request messages as `GET /v1/chat/completions/{id}/messages` lists them."""
    return [_message(f"{record.id}-{number}", message) for number, message in enumerate(record.input)]


def _message(identifier: str, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    if parts is not None:
        content = "".join(part.get("text") or part.get("refusal") or "" for part in parts)
    return {"refusal": None, **message, "id": identifier, "content": content, "content_parts": parts}
