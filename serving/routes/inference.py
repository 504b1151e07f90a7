"""`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/classify`.

Does not know which fields a generation may have (`generation_request`), how a name is resolved (`router`) or how a
model is called (`backends`).
"""

from __future__ import annotations

import base64
import json
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from serving.access.auth import caller_of
from serving.access.in_process import is_background
from serving.http import errors, openai_types
from serving.http.bodies import parse_json
from serving.http.errors import CLIENT_GONE, ApiError, bad_request, documented
from serving.http.fields import FieldType, array, either, known_fields, missing, object_schema, one_of, text
from serving.inference.backends import Backend, Chunks, Route
from serving.inference.generation_request import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    GenerationRequest,
    parse_chat,
    parse_completion,
)
from serving.inference.grammars import Grammars
from serving.inference.places import EnginePlaces, require_fits
from serving.inference.router import Router
from serving.inference.streams import checked_stream, opening, sent_events
from serving.inference.traffic import Traffic

_MAX_INPUTS = 1024
_TEXT = text(100_000)
_CLASSIFY_FIELDS: dict[str, FieldType] = {
    "model": text(512, 1),
    "input": either(_TEXT, array(_TEXT, _MAX_INPUTS)),
    "user": text(512),
}
_EMBEDDING_FIELDS = _CLASSIFY_FIELDS | {"encoding_format": one_of("float", "base64")}
_EMBEDDING_REFUSED = {"dimensions": "a model's vectors have a fixed length"}


def routes(router: Router, backend: Backend, traffic: Traffic, grammars: Grammars) -> APIRouter:
    places = EnginePlaces()
    api = APIRouter(prefix="/v1", tags=["inference"], responses=documented(400, 404))

    @api.post(
        "/chat/completions",
        openapi_extra=_body(CHAT_FIELDS, ["model", "messages"]),
        responses=_answer("chat.completion"),
    )
    async def chat(request: Request) -> Response:
        """Create a chat completion; with `stream`, as server-sent events."""
        return await generate(request, "chat", parse_chat(await read_json(request)))

    @api.post(
        "/completions",
        openapi_extra=_body(COMPLETION_FIELDS, ["model", "prompt"]),
        responses=_answer("text_completion"),
    )
    async def completions(request: Request) -> Response:
        """Create a text completion; with `stream`, as server-sent events."""
        return await generate(request, "completions", parse_completion(await read_json(request)))

    async def generate(request: Request, method: str, asked: GenerationRequest) -> Response:
        caller = caller_of(request)
        route = await router.resolve(asked.model, "/v1/chat/completions", caller, asked_at=request.scope["path"])
        request.state.model = route.model
        await grammars.check(asked.constraints, caller.team)
        context = route.serving.max_model_len
        request.state.reserve_tokens(asked.sequences * min(asked.max_tokens or context, context))

        param: Literal["n", "prompt"] = "n" if asked.prompts == 1 else "prompt"

        def ask(route: Route) -> Chunks:
            chunks = placed(route)
            return checked_stream(chunks, asked.sequences) if asked.stream else chunks

        def generated(route: Route) -> Chunks:
            ours = {"model": route.model, "request_id": uuid.uuid4().hex}
            return backend.generate(route, method, asked.body | ours)

        async def placed(route: Route) -> Chunks:
            async with (
                places.place(route, caller.team, answers=asked.sequences, param=param),
                aclosing(generated(route)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk

        async def in_background() -> Chunks:
            async def whole() -> list[dict[str, Any] | str]:
                async with aclosing(generated(route)) as chunks:
                    return [chunk async for chunk in chunks]

            require_fits(route, asked.sequences, param)
            for chunk in await places.background.run(route, caller.team, whole, answers=asked.sequences):
                yield chunk

        if is_background(request):  # its time is that of a queue, and it may begin anew: no outcome of a rollout
            measured = in_background()
        else:
            traffic.mirror(route, ask)
            measured = traffic.measured(route, ask(route))
        chunks = delivered(request, route, measured, include_usage=asked.include_usage)
        first, whole = await opening(chunks)
        if whole is None:

            def failed(error: ApiError) -> None:
                request.state.stream_status = error.status

            return StreamingResponse(sent_events(first, chunks, failed), media_type="text/event-stream")
        async for _ in chunks:
            pass  # exhausts the iterator; closing it earlier would cancel the request
        if "error" in whole:
            raise errors.from_engine(whole["error"])
        return JSONResponse(whole["response"])

    @api.post(
        "/embeddings",
        openapi_extra=_body(_EMBEDDING_FIELDS, ["model", "input"]),
        response_model=openai_types.EmbeddingList,
    )
    async def embeddings(request: Request) -> Response:
        """Return each text's embedding: the mean of the encoder's last hidden states, normalized to length 1."""
        body = known_fields(await read_json(request), _EMBEDDING_FIELDS, _EMBEDDING_REFUSED)
        encoding = body.get("encoding_format", "float")

        def item(answer: dict[str, Any]) -> dict[str, Any]:
            return {"object": "embedding", "embedding": _encoded(answer["embedding"], encoding)}

        return await predict(request, "embed", body, item)

    @api.post(
        "/classify", openapi_extra=_body(_CLASSIFY_FIELDS, ["model", "input"]), response_model=openai_types.ClassifyList
    )
    async def classify(request: Request) -> Response:
        """Return the probability of each label for each text."""

        def item(answer: dict[str, Any]) -> dict[str, Any]:
            return {"label": max(answer["scores"], key=answer["scores"].get), "scores": answer["scores"]}

        body = known_fields(await read_json(request), _CLASSIFY_FIELDS, {})
        return await predict(request, "classify", body, item)

    async def predict(
        request: Request, method: str, body: dict[str, Any], item: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Response:
        if "input" not in body:
            raise missing("input")
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        caller, path = caller_of(request), request.scope["path"]
        route = await router.resolve(body.get("model"), "/v1/classify", caller, asked_at=path)
        request.state.model = route.model
        if is_background(request):
            answers = await places.background.run(route, caller.team, lambda: backend.predict(route, method, texts))
        else:
            with places.background.interactive(route.application):
                async with traffic.watched(route):
                    answers = await backend.predict(route, method, texts)
        tokens = sum(answer["tokens"] for answer in answers)
        request.state.usage = (tokens, 0)
        data = [{"index": i} | item(answer) for i, answer in enumerate(answers)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": route.public_name, "data": data, "usage": usage})

    return api


async def delivered(request: Request, route: Route, chunks: Chunks, *, include_usage: bool) -> Chunks:
    """Yield a response under the model's API name, and note its usage for the ledger. `include_usage` False: omit a
    stream's usage event, which the client did not request."""
    try:
        async for chunk in chunks:
            if (usage := _usage_of(chunk)) is not None:
                request.state.usage = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
                if isinstance(chunk, str) and not include_usage:
                    continue
            yield chunk if route.api_name is None else _renamed(chunk, route.model, route.api_name)
    finally:
        await chunks.aclose()


def _usage_of(chunk: dict[str, Any] | str) -> Mapping[str, Any] | None:
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


async def read_json(request: Request) -> dict[str, Any]:
    """Return the body as a JSON object. Raises ApiError 400 for anything else."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise ApiError(CLIENT_GONE, "the client disconnected") from error
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, not {type(body).__name__}", code="invalid_json")
    return body


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    """Encode a vector; `base64` means little-endian float32, the official client's default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector


def _body(fields: Mapping[str, FieldType], required: Sequence[str]) -> dict[str, Any]:
    """Document the body of a route that reads it itself."""
    schema = object_schema(fields, required)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer(kind: str) -> dict[int | str, dict[str, Any]]:
    """Document an engine's response, which has OpenAI's shape."""
    schema = {"type": "object", "properties": {"object": {"const": kind}}, "required": ["id", "object", "choices"]}
    content = {"application/json": {"schema": schema}, "text/event-stream": {}}
    return {200: {"description": "The completion.", "content": content}}
