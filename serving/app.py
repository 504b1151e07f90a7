"""The endpoint: OpenAI's inference routes, classification and health. Wiring and request checks only.

Owns the routes. Does not know how a name is resolved (`router`), who answers (`backends`) or what a refusal looks like
(`errors`).
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from ray_jobs.deploy.serve_api import INGRESS
from ray_jobs.storage import Store
from serving import errors
from serving.auth import Gate
from serving.backends import Backend, Route, ServeBackend
from serving.errors import ApiError, bad_request
from serving.keys import KeySource, StoredKeys
from serving.limits import Limiter
from serving.router import Router, Snapshot, resolve
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

_MAX_CHOICES = 16
_MAX_INPUTS = 1024
_CLIENT_GONE = 499
_OWNER = "kitae"


def build(args: dict[str, Any]) -> Application:
    """Serve's builder (`serving.app:build`): the application that takes the requests."""
    from ray import serve

    deployment = serve.deployment(
        name="Ingress",
        num_replicas=1,
        # Twice what the gate works on: it refuses the rest in words, which would wait in Serve's queue without end.
        max_ongoing_requests=2 * Settings.max_ongoing_requests,
        ray_actor_options={"num_cpus": 0.01},
        max_constructor_retry_count=1,
    )(serve.ingress(app_from_environment)())
    application: Application = deployment.bind()
    return application


def app_from_environment() -> ASGIApp:
    """The app of a Serve replica, from that process's environment."""
    settings = Settings.from_env(os.environ)
    store = Store.from_env(check=False)
    router = Router(store, ttl_s=settings.route_ttl_s)
    keys = StoredKeys(store, ttl_s=settings.key_ttl_s)
    return create_app(settings, router, ServeBackend(), keys=keys, behind_proxy=True)


def create_app(
    settings: Settings,
    router: Router,
    backend: Backend,
    *,
    keys: KeySource | None = None,
    limiter: Limiter | None = None,
    behind_proxy: bool = False,
) -> ASGIApp:
    """The endpoint as an ASGI app. `keys`: where teams' keys are looked up; None: only the operator's opens it."""
    limiter = limiter or Limiter(max_ongoing_requests=settings.max_ongoing_requests)
    app = FastAPI(title="Kitae", docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_json(request)
        check_generation(body)
        check_messages(body)
        return await generate("chat", body)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_json(request)
        check_generation(body)
        if not body.get("prompt"):
            raise bad_request("prompt is missing or empty", param="prompt")
        return await generate("completions", body)

    async def generate(method: str, body: dict[str, Any]) -> Response:
        route = await router.resolve(body.get("model"), "chat")
        # An id of ours: a client that sends one twice must not touch its other request.
        pieces = backend.generate(route, method, body | {"model": route.model, "request_id": uuid.uuid4().hex})
        first = await anext(pieces, None)
        if first is None:
            raise ApiError(500, "the engine gave no answer")
        if isinstance(first, str):
            return StreamingResponse(_stream(first, pieces), media_type="text/event-stream")
        async for _ in pieces:
            pass  # to its end, which is at hand; closing it before would cancel the request
        if "error" in first:
            raise errors.from_engine(first["error"])
        return JSONResponse(first["response"])

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await read_json(request)
        texts = check_texts(body)
        route = await router.resolve(body.get("model"), "text_classification")
        answers = await backend.classify(route, texts)
        tokens = sum(answer["tokens"] for answer in answers)
        data = [
            {"index": i, "label": max(answer["scores"], key=answer["scores"].get), "scores": answer["scores"]}
            for i, answer in enumerate(answers)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": route.model, "data": data, "usage": usage})

    @app.get("/v1/models")
    async def models() -> Response:
        snapshot = await router.snapshot()
        return JSONResponse({"object": "list", "data": [_card(snapshot, name) for name in snapshot.names()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        snapshot = await router.snapshot()
        resolve(snapshot, model)
        return JSONResponse(_card(snapshot, model))

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        statuses = await backend.statuses()
        wanted = [INGRESS, *(record.application for record in (await router.snapshot()).records.values())]
        waits = {name: statuses.get(name, "NOT_STARTED") for name in dict.fromkeys(wanted)}
        waits = {name: status for name, status in waits.items() if status != "RUNNING"}
        return JSONResponse({"status": "waits" if waits else "ok", "waits_for": waits}, 503 if waits else 200)

    # Around the app, not among its middleware: what those let through must carry a request id too.
    return Gate(app, settings, limiter=limiter, keys=keys, behind_proxy=behind_proxy)


async def read_json(request: Request) -> dict[str, Any]:
    """The body as an object. Raises ApiError 400 for anything else."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise ApiError(_CLIENT_GONE, "the client went away") from error
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, not {type(body).__name__}", code="invalid_json")
    return body


def check_generation(body: dict[str, Any]) -> None:
    """What vLLM does not limit, and a client must not ask for without limit."""
    choices = body.get("n")
    if choices is not None and (type(choices) is not int or not 1 <= choices <= _MAX_CHOICES):
        raise bad_request(f"n is {choices!r}; it must be a number from 1 to {_MAX_CHOICES}", param="n")
    if not isinstance(body.get("stream", False), bool | None):
        raise bad_request(f"stream is {body['stream']!r}; it must be true or false", param="stream")


def check_messages(body: dict[str, Any]) -> None:
    """A conversation's outer shape; its contents are vLLM's to check."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a non-empty list", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"messages[{i}] must be an object with a role", param=f"messages[{i}]")
        if message["role"] != "assistant" and message.get("content") is None:
            raise bad_request(f"messages[{i}] has no content", param=f"messages[{i}].content")


def check_texts(body: dict[str, Any]) -> list[str]:
    """`input` as a list of texts."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request("input must be a text or a non-empty list of texts", param="input")
    if len(texts) > _MAX_INPUTS:
        raise bad_request(f"input has {len(texts)} texts; send at most {_MAX_INPUTS} at once", param="input")
    return texts


async def _stream(first: str, pieces: AsyncIterator[dict[str, Any] | str]) -> AsyncIterator[str]:
    """Server-sent events. A failure after the first one can only be told inside the stream."""
    try:
        yield first
        async for piece in pieces:
            if isinstance(piece, str):
                yield piece
            elif "error" in piece:
                yield _event(errors.from_engine(piece["error"]))
                return
    except ApiError as error:
        yield _event(error)
    except Exception:
        logger.exception("a stream broke off")
        yield _event(ApiError(500, "the service failed to answer; its log has the reason"))
    finally:
        await _close(pieces)


def _event(error: ApiError) -> str:
    return f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"


async def _close(pieces: AsyncIterator[Any]) -> None:
    """End an iterator that may not be exhausted, so that the engine stops working on it."""
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


def _card(snapshot: Snapshot, model: str) -> dict[str, Any]:
    route: Route = resolve(snapshot, model)
    name, _, number = route.model.partition("@")
    versions = {version.version: version for version in snapshot.versions.get(name, ())}
    version = versions.get(number)
    created = int(datetime.fromisoformat(version.lineage.created_at).timestamp()) if version is not None else 0
    return {"id": model, "object": "model", "created": created, "owned_by": _OWNER, "task": route.task}
