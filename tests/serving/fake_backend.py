"""A fake of `serving.inference.backends.Backend` that answers as engines do."""

from __future__ import annotations

import json
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
            words = _asked(body).split()
            if not body.get("stream"):
                usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
                message = {"role": "assistant", "content": " ".join(words)}
                choice = {"index": 0, "finish_reason": "stop", "message": message, "text": " ".join(words)}
                kind = {"chat": "chat.completion"}.get(method, "text_completion")
                answer = {"id": "cmpl-1", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}
                yield {"response": answer | {"usage": usage}}
                return
            for i, word in enumerate(words):
                if self.failure is not None and i == self.fail_after:
                    raise self.failure
                yield _event(body, {"index": 0, "delta": {"content": word}})
            for i in range(choices):
                yield _event(body, {"index": i, "delta": {}, "finish_reason": "stop"})
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


def _asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])
