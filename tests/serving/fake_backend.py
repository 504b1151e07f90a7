"""A fake of `serving.inference.backends.Backend` that answers as engines do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serving.inference.backends import Backend, Chunks, Route


@dataclass
class FakeBackend(Backend):
    """Echoes the last message, or raises `failure` or returns `refusal` if one is set."""

    failure: Exception | None = None
    refusal: dict[str, Any] | None = None
    fail_after: int | None = None
    """Chunks of a stream before `failure`. None: raised at once."""
    calls: list[tuple[Route, str, dict[str, Any]]] = field(default_factory=list)
    message: dict[str, Any] | None = None
    """What to answer a chat completion with. None: the last message."""
    finish_reason: str = "stop"
    context_words: int | None = None
    """Most words of all messages, as an engine's context. None: no limit."""
    closed: int = 0
    """Responses that ended or were closed by the caller."""
    states: dict[str, str] = field(default_factory=dict)

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> Chunks:
        choices = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
        self.calls.append((route, method, body))
        try:
            if self.failure is not None and self.fail_after is None:
                raise self.failure
            if self.refusal is not None:
                yield {"error": self.refusal}
                return
            if self.context_words is not None and _words(body) > self.context_words:
                yield {"error": {"message": "the maximum context length is exceeded", "code": 400, "param": "messages"}}
                return
            words = _asked(body).split()
            if not body.get("stream"):
                usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
                message = self.message or {"content": " ".join(words)}
                choice = {
                    "index": 0,
                    "finish_reason": self.finish_reason,
                    "message": {"role": "assistant", **message},
                    "text": " ".join(words),
                }
                kind = {"chat": "chat.completion"}.get(method, "text_completion")
                answer = {"id": "cmpl-1", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}
                yield {"response": answer | {"usage": usage}}
                return
            deltas = [{"content": word} for word in words] if self.message is None else list(_deltas(self.message))
            for i, delta in enumerate(deltas):
                if self.failure is not None and i == self.fail_after:
                    raise self.failure
                yield _event(body, {"index": 0, "delta": delta})
            for i in range(choices):
                yield _event(body, {"index": i, "delta": {}, "finish_reason": self.finish_reason})
            if (body.get("stream_options") or {}).get("include_usage"):
                count = len(words)
                usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
                yield f"data: {json.dumps({'model': body['model'], 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.closed += 1

    async def predict(self, route: Route, method: str, texts: list[str]) -> list[dict[str, Any]]:
        if self.failure is not None:
            raise self.failure
        answers: dict[str, dict[str, Any]] = {
            "classify": {"scores": {"ham": 0.25, "spam": 0.75}},
            "embed": {"embedding": [0.6, 0.8]},
        }
        return [answers[method] | {"tokens": len(text.split())} for text in texts]

    async def statuses(self) -> dict[str, str]:
        return self.states


def _event(body: dict[str, Any], choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'model': body['model'], 'choices': [choice]})}\n\n"


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Split a message into deltas of a few characters, as an engine streams it."""
    for name in ("reasoning_content", "content"):
        yield from ({name: piece} for piece in _pieces(message.get(name) or ""))
    for index, call in enumerate(message.get("tool_calls") or []):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]}
        for piece in _pieces(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: str, size: int = 3) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def _words(body: dict[str, Any]) -> int:
    return sum(len(str(message.get("content") or "").split()) for message in body.get("messages", []))


def _asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])
