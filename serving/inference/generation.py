"""The one way of a generation: from a validated request to a model's answer, for every route that generates.

Owns the order of the steps: the model is resolved, constraints are compiled, tokens are reserved, the request waits for
a place at its engine, and the answer passes traffic policies and usage counts. Does not know the shape in which a route
answers, nor which fields a request may have (`generation_request`).

    route = await generator.admit(request, asked)
    first, whole = await opening(chunks := generator.start(request, route, "chat", asked))
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request

from serving.access.auth import caller_of
from serving.access.in_process import is_background
from serving.inference.backends import Backend, Chunks, Route
from serving.inference.generation_request import GenerationRequest
from serving.inference.grammars import Grammars
from serving.inference.places import EnginePlaces, require_fits
from serving.inference.router import Router
from serving.inference.streams import checked_stream
from serving.inference.traffic import Traffic

Method = Literal["chat", "completions"]
"""The engine's method."""


@dataclass(frozen=True)
class Generator:
    """Generates answers. Bound to one event loop."""

    router: Router
    backend: Backend
    traffic: Traffic
    grammars: Grammars
    places: EnginePlaces = field(default_factory=EnginePlaces)

    async def admit(self, request: Request, asked: GenerationRequest) -> Route:
        """Resolve the model and check what it must accept. Raises ApiError."""
        caller = caller_of(request)
        path = request.scope["path"]
        route = await self.router.resolve(asked.model, "/v1/chat/completions", caller, asked_at=path)
        request.state.model = route.model
        await self.grammars.check(asked.constraints, caller.team)
        context = route.serving.max_model_len
        request.state.reserve_tokens(asked.sequences * min(asked.max_tokens or context, context))
        return route

    def start(self, request: Request, route: Route, method: Method, asked: GenerationRequest) -> Chunks:
        """Return the answer of an admitted request, under the model's API name. Its usage is noted for the ledger."""
        team = caller_of(request).team
        param: Literal["n", "prompt"] = "n" if asked.prompts == 1 else "prompt"

        def ask(route: Route) -> Chunks:
            chunks = placed(route)
            return checked_stream(chunks, asked.sequences) if asked.stream else chunks

        def generated(route: Route) -> Chunks:
            ours: dict[str, Any] = {"model": route.model, "request_id": uuid.uuid4().hex}
            if method == "chat" and (variables := _template_variables(route, asked.body)):
                ours["chat_template_kwargs"] = variables
            return self.backend.generate(route, method, asked.body | ours)

        async def placed(route: Route) -> Chunks:
            async with (
                self.places.place(route, team, answers=asked.sequences, param=param),
                aclosing(generated(route)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk

        async def in_background() -> Chunks:
            async def whole() -> list[dict[str, Any] | str]:
                async with aclosing(generated(route)) as chunks:
                    return [chunk async for chunk in chunks]

            require_fits(route, asked.sequences, param)
            for chunk in await self.places.background.run(route, team, whole, answers=asked.sequences):
                yield chunk

        if is_background(request):  # its time is that of a queue, and it may begin anew: no outcome of a rollout
            measured = in_background()
        else:
            self.traffic.mirror(route, ask)
            measured = self.traffic.measured(route, ask(route))
        return delivered(request, route, measured, include_usage=asked.include_usage)


def _template_variables(route: Route, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request's variables of the chat template over those that the model was trained with.

    vLLM derives `enable_thinking` from a request's `reasoning_effort`: the model's own switches then do not apply.
    """
    own = {} if body.get("reasoning_effort") is not None else route.switches
    return {**own, **(body.get("chat_template_kwargs") or {})}


async def delivered(request: Request, route: Route, chunks: Chunks, *, include_usage: bool) -> Chunks:
    """Yield a response under the model's API name, and note its usage for the ledger. `include_usage` False: omit a
    stream's usage event, which the client did not request."""
    try:
        async for chunk in chunks:
            if (usage := _usage_in(chunk)) is not None:
                request.state.usage = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
                if isinstance(chunk, str) and not include_usage:
                    continue
            yield chunk if route.api_name is None else _renamed(chunk, route.model, route.api_name)
    finally:
        await chunks.aclose()


def usage_of(request: Request) -> dict[str, int] | None:
    """Return the usage that was noted for a request, in OpenAI's shape; None: its answer has had none so far."""
    noted: tuple[int, int] | None = getattr(request.state, "usage", None)
    if noted is None:
        return None
    prompt, completion = noted
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _usage_in(chunk: dict[str, Any] | str) -> Mapping[str, Any] | None:
    """Return the usage of a whole response, or of a stream's event that contains nothing else."""
    if isinstance(chunk, dict):
        found: Mapping[str, Any] | None = chunk.get("response", {}).get("usage")
        return found
    if '"usage"' not in chunk:
        return None
    try:
        event = json.loads(chunk.removeprefix("data:"))
    except ValueError:
        return None  # several events, or [DONE]
    return event.get("usage") if isinstance(event, dict) and event.get("choices") == [] else None


def _renamed(chunk: dict[str, Any] | str, model: str, api_name: str) -> dict[str, Any] | str:
    """Replace the model's exact name by its API name."""
    if isinstance(chunk, dict):
        return chunk | {"response": chunk["response"] | {"model": api_name}} if "response" in chunk else chunk
    # Within generated text the quotes are escaped: the pattern matches only the field itself.
    return re.sub(rf'"model":(\s*)"{re.escape(model)}"', lambda found: f'"model":{found[1]}"{api_name}"', chunk)
