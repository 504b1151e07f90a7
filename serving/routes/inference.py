"""`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/classify`.

Does not know which fields a generation may have (`generation_request`), how it is done (`generation`), how a model is
called (`backends`) nor how an answer is stored (`serving.stored`).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from serving.access.auth import caller_of
from serving.access.in_process import is_background
from serving.http import errors, openai_types
from serving.http.bodies import parse_json
from serving.http.errors import CLIENT_GONE, ApiError, bad_request, documented
from serving.http.fields import FieldType, array, either, known_fields, missing, object_schema, one_of, text
from serving.inference.backends import Chunks
from serving.inference.generation import Generator, usage_of
from serving.inference.generation_request import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    GenerationRequest,
    parse_chat,
    parse_completion,
)
from serving.inference.streams import opening, sent_events
from serving.stored import chat_completions
from serving.stored.answers import StoredAnswers

_MAX_INPUTS = 1024
_TEXT = text(100_000)
_CLASSIFY_FIELDS: dict[str, FieldType] = {
    "model": text(512, 1),
    "input": either(_TEXT, array(_TEXT, _MAX_INPUTS)),
    "user": text(512),
}
_EMBEDDING_FIELDS = _CLASSIFY_FIELDS | {"encoding_format": one_of("float", "base64")}
_EMBEDDING_REFUSED = {"dimensions": "a model's vectors have a fixed length"}


def routes(generator: Generator, stored: StoredAnswers) -> APIRouter:
    router, backend, traffic = generator.router, generator.backend, generator.traffic
    api = APIRouter(prefix="/v1", tags=["inference"], responses=documented(400, 404))

    @api.post(
        "/chat/completions",
        openapi_extra=body_schema(CHAT_FIELDS, ["model", "messages"]),
        responses=documented_answer("chat.completion"),
    )
    async def chat(request: Request) -> Response:
        """Create a chat completion; with `stream`, as server-sent events. `store: true` stores it."""
        body = await read_json(request)
        asked = parse_chat(body)
        team = caller_of(request).team
        is_stored = await stored.admit(team, body.get("store"), default=False)
        route = await generator.admit(request, asked)
        chunks = generator.start(request, route, "chat", asked)
        if is_stored:
            chunks = recorded(request, asked, body.get("metadata") or {}, chunks)
        return await answered(request, chunks)

    @api.post(
        "/completions",
        openapi_extra=body_schema(COMPLETION_FIELDS, ["model", "prompt"]),
        responses=documented_answer("text_completion"),
    )
    async def completions(request: Request) -> Response:
        """Create a text completion; with `stream`, as server-sent events."""
        asked = parse_completion(await read_json(request))
        route = await generator.admit(request, asked)
        return await answered(request, generator.start(request, route, "completions", asked))

    async def recorded(
        request: Request, asked: GenerationRequest, metadata: Mapping[str, str], chunks: Chunks
    ) -> Chunks:
        """Yield an answer under the id with which it is stored, and store it once it is whole."""
        caller = caller_of(request)

        def keep(answer: dict[str, Any]) -> None:
            if answer.get("usage") is None:  # the client did not request a stream's usage
                answer["usage"] = usage_of(request)
            record = chat_completions.record_of(answer, asked.body, metadata, model=asked.model, caller=caller)
            stored.keep("chat", record)

        record = chat_completions.recorder(stored.new_id("chat"), keep)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield record(chunk)

    @api.post(
        "/embeddings",
        openapi_extra=body_schema(_EMBEDDING_FIELDS, ["model", "input"]),
        response_model=openai_types.EmbeddingList,
    )
    async def embeddings(request: Request) -> Response:
        """Return each text's embedding: the mean of the encoder's last hidden states, normalized to length 1."""
        given = await read_json(request)
        if _has_token_ids(given.get("input")):
            message = (
                "input has token ids, which clients make with OpenAI's tokenizers and not with this model's: send text "
                "(LangChain: check_embedding_ctx_length=False)"
            )
            raise bad_request(message, param="input", code="unsupported")
        body = known_fields(given, _EMBEDDING_FIELDS, _EMBEDDING_REFUSED)
        encoding = body.get("encoding_format", "float")

        def item(answer: dict[str, Any]) -> dict[str, Any]:
            return {"object": "embedding", "embedding": _encoded(answer["embedding"], encoding)}

        return await predict(request, "embed", body, item)

    @api.post(
        "/classify",
        openapi_extra=body_schema(_CLASSIFY_FIELDS, ["model", "input"]),
        response_model=openai_types.ClassifyList,
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
            answers = await generator.places.background.run(
                route, caller.team, lambda: backend.predict(route, method, texts)
            )
        else:
            with generator.places.background.interactive(route.application):
                async with traffic.watched(route):
                    answers = await backend.predict(route, method, texts)
        tokens = sum(answer["tokens"] for answer in answers)
        request.state.usage = (tokens, 0)
        data = [{"index": i} | item(answer) for i, answer in enumerate(answers)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": route.public_name, "data": data, "usage": usage})

    return api


async def answered(request: Request, chunks: Chunks) -> Response:
    """Return an engine's answer as the response. Raises ApiError for one that failed before it began."""
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


def _has_token_ids(given: Any) -> bool:
    """Return whether an input is a list of token ids, or of lists of them."""
    first = given[0] if isinstance(given, list) and given else None
    first = first[0] if isinstance(first, list) and first else first
    return type(first) is int


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    """Encode a vector; `base64` means little-endian float32, the official client's default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector


def body_schema(fields: Mapping[str, FieldType], required: Sequence[str]) -> dict[str, Any]:
    """Document the body of a route that reads it itself."""
    schema = object_schema(fields, required)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def documented_answer(kind: str, holds: str = "choices") -> dict[int | str, dict[str, Any]]:
    """Document an answer in OpenAI's shape, whose field `holds` has what was generated."""
    schema = {"type": "object", "properties": {"object": {"const": kind}}, "required": ["id", "object", holds]}
    content = {"application/json": {"schema": schema}, "text/event-stream": {}}
    return {200: {"description": "The answer.", "content": content}}
