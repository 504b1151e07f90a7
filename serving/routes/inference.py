"""`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/classify`: routes and request validation.

Does not know how a name is resolved (`router`) or how a model is called (`backends`).
"""

from __future__ import annotations

import base64
import json
import logging
import re
import struct
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from serving.access.auth import caller_of
from serving.http import errors, openai_types
from serving.http.bodies import parse_json
from serving.http.errors import CLIENT_GONE, ApiError, bad_request, documented
from serving.inference.backends import Backend, Chunks, Route
from serving.inference.router import Router
from serving.inference.traffic import Traffic

logger = logging.getLogger(__name__)

_MAX_CHOICES = 16
_MAX_INPUTS = 1024


def routes(router: Router, backend: Backend, traffic: Traffic) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["inference"], responses=documented(400, 404))

    @api.post("/chat/completions", openapi_extra=_body(openai_types.ChatRequest), responses=_answer("chat.completion"))
    async def chat(request: Request) -> Response:
        """Create a chat completion; with `stream`, as server-sent events. Accepts vLLM's fields beside those listed."""
        body = await read_json(request)
        check_generation(body)
        check_messages(body)
        return await generate(request, "chat", body)

    @api.post("/completions", openapi_extra=_body(openai_types.CompletionRequest), responses=_answer("text_completion"))
    async def completions(request: Request) -> Response:
        """Create a text completion; with `stream`, as server-sent events. Accepts vLLM's fields beside those listed."""
        body = await read_json(request)
        check_generation(body)
        if not body.get("prompt"):
            raise bad_request("prompt is missing or empty", param="prompt")
        return await generate(request, "completions", body)

    async def generate(request: Request, method: str, body: dict[str, Any]) -> Response:
        route = await router.resolve(body.get("model"), "/v1/chat/completions", caller_of(request))
        request.state.model = route.model
        stream_options = body.get("stream_options") or {}

        def ask(route: Route) -> Chunks:
            # Our own id: a client that reuses an id must not affect its other request.
            ours: dict[str, Any] = {"model": route.model, "request_id": uuid.uuid4().hex}
            if body.get("stream"):
                ours["stream_options"] = {**stream_options, "include_usage": True}
            return backend.generate(route, method, body | ours)

        traffic.mirror(route, ask)
        measured = traffic.measured(route, ask(route))
        chunks = delivered(request, route, measured, include_usage=bool(stream_options.get("include_usage")))
        first = await anext(chunks, None)
        if first is None:
            raise ApiError(500, "the engine returned no response")
        if isinstance(first, str):
            return StreamingResponse(stream_events(first, chunks), media_type="text/event-stream")
        async for _ in chunks:
            pass  # exhausts the iterator; closing it earlier would cancel the request
        if "error" in first:
            raise errors.from_engine(first["error"])
        return JSONResponse(first["response"])

    @api.post(
        "/embeddings", openapi_extra=_body(openai_types.EmbeddingRequest), response_model=openai_types.EmbeddingList
    )
    async def embeddings(request: Request) -> Response:
        """Return each text's embedding: the mean of the encoder's last hidden states, normalized to length 1."""
        body = await read_json(request)
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise bad_request(f"encoding_format is {encoding!r}; it must be float or base64", param="encoding_format")
        if body.get("dimensions") is not None:
            raise bad_request("dimensions is not supported: a model's vectors have a fixed length", param="dimensions")

        def item(answer: dict[str, Any]) -> dict[str, Any]:
            return {"object": "embedding", "embedding": _encoded(answer["embedding"], encoding)}

        return await predict(request, "embed", body, item)

    @api.post("/classify", openapi_extra=_body(openai_types.ClassifyRequest), response_model=openai_types.ClassifyList)
    async def classify(request: Request) -> Response:
        """Return the probability of each label for each text."""

        def item(answer: dict[str, Any]) -> dict[str, Any]:
            return {"label": max(answer["scores"], key=answer["scores"].get), "scores": answer["scores"]}

        return await predict(request, "classify", await read_json(request), item)

    async def predict(
        request: Request, method: str, body: dict[str, Any], item: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Response:
        texts = check_texts(body)
        route = await router.resolve(body.get("model"), "/v1/classify", caller_of(request))
        request.state.model = route.model
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


def check_generation(body: dict[str, Any]) -> None:
    """Validate the options that vLLM leaves unlimited."""
    choices = body.get("n")
    if choices is not None and (type(choices) is not int or not 1 <= choices <= _MAX_CHOICES):
        raise bad_request(f"n is {choices!r}; it must be a number from 1 to {_MAX_CHOICES}", param="n")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad_request(f"stream_options is {options!r:.60}; it must be an object", param="stream_options")
    if not isinstance(body.get("stream", False), bool | None):
        raise bad_request(f"stream is {body['stream']!r}; it must be true or false", param="stream")


def check_messages(body: dict[str, Any]) -> None:
    """Validate a conversation's outer shape; vLLM validates its contents."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a non-empty list", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"messages[{i}] must be an object with a role", param=f"messages[{i}]")
        if message["role"] != "assistant" and message.get("content") is None:
            raise bad_request(f"messages[{i}] has no content", param=f"messages[{i}].content")


def check_texts(body: dict[str, Any]) -> list[str]:
    """Return `input` as a list of texts."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request("input must be a text or a non-empty list of texts", param="input")
    if len(texts) > _MAX_INPUTS:
        raise bad_request(f"input has {len(texts)} texts; send at most {_MAX_INPUTS} at once", param="input")
    return texts


async def stream_events(first: str, chunks: Chunks) -> AsyncGenerator[str, None]:
    """Yield server-sent events. A failure after the first one is reported inside the stream."""
    failure = None
    try:
        yield first
        async for chunk in chunks:
            if isinstance(chunk, str):
                yield chunk
            elif "error" in chunk:
                failure = errors.from_engine(chunk["error"])
                break
    except ApiError as error:
        failure = error
    except Exception:
        logger.exception("a stream broke off")
        failure = ApiError(500, "the service failed to answer; its log has the reason")
    finally:
        await chunks.aclose()
    if failure is not None:
        yield f"data: {json.dumps(failure.body(), ensure_ascii=False)}\n\n"


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    """Encode a vector; `base64` means little-endian float32, the official client's default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector


def _body(model: type[openai_types.OpenAIObject]) -> dict[str, Any]:
    """Document the body of a route that reads it itself."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer(kind: str) -> dict[int | str, dict[str, Any]]:
    """Document an engine's response, which has OpenAI's shape."""
    schema = {"type": "object", "properties": {"object": {"const": kind}}, "required": ["id", "object", "choices"]}
    content = {"application/json": {"schema": schema}, "text/event-stream": {}}
    return {200: {"description": "The completion.", "content": content}}
