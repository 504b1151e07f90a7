"""Requests of evals and graders to served models, through the endpoint's own routes.

Owns retries of what passes: a full queue, a model that is starting. Does not know what is asked.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import ModelGraderFailed
from ray_jobs.graders.grade import ModelAnswer
from serving.access.auth import Caller
from serving.access.in_process import Answer, InProcess
from serving.http.errors import internal_error

logger = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
_EMBEDDINGS = "/v1/embeddings"
_PASSES = (429, 503)
PATIENT_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0, 60.0, 60.0, 60.0)
"""Delays of an eval's retries: five minutes, in which a model starts."""


@dataclass(frozen=True)
class EndpointCalls:
    """Calls models as one caller."""

    in_process: InProcess
    caller: Caller
    background: bool
    """Whether its requests give way to those of clients."""
    retry_after_s: tuple[float, ...] = ()

    async def post(self, path: str, body: dict[str, Any]) -> Answer:
        """Return the answer to a request, after retries."""
        for delay_s in self.retry_after_s:
            answer = await self._once(path, body)
            if answer.status not in _PASSES:
                return answer
            await asyncio.sleep(delay_s)
        return await self._once(path, body)

    async def chat(self, body: dict[str, Any]) -> ModelAnswer:
        answer = await self.post(CHAT, body)
        if not answer.ok:
            raise ModelGraderFailed(f"{body['model']}: {message_of(answer)}")
        message = answer.body["choices"][0]["message"]
        prompt, completion = tokens_of(answer)
        return ModelAnswer(body["model"], message.get("content") or "", prompt, completion, message.get("refusal"))

    async def embed(self, model: str, texts: list[str]) -> tuple[list[list[float]], ModelAnswer]:
        answer = await self.post(_EMBEDDINGS, {"model": model, "input": texts, "encoding_format": "float"})
        if not answer.ok:
            raise ModelGraderFailed(f"{model}: {message_of(answer)}")
        vectors = [each["embedding"] for each in answer.body["data"]]
        return vectors, ModelAnswer(model, "", *tokens_of(answer))

    async def _once(self, path: str, body: dict[str, Any]) -> Answer:
        try:
            return await self.in_process.post(path, body, self.caller, background=self.background)
        except Exception:  # a bug in a route ends one item, as it ends one request of a client
            logger.exception("a request of an eval to %s failed", path)
            return Answer(500, "", internal_error().body())


def message_of(answer: Answer) -> str:
    return str(answer.body["error"]["message"])


def tokens_of(answer: Answer) -> tuple[int, int]:
    """Return the prompt and completion tokens of an answer."""
    usage = answer.body.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
