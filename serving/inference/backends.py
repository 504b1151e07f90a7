"""Calls the Serve application of a route.

Owns how a running deployment is called and how its failures are reported to a client. Does not know HTTP routes or the
store.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray_jobs.deploy.traffic import Canary, Watch
from serving.http import errors

_HANDLES_KEPT = 256

Chunks = AsyncIterator[dict[str, Any] | str]
"""A response: chunks of text/event-stream, or a single `{"response": …}` or `{"error": …}`."""


@dataclass(frozen=True)
class Route:
    """Destination of a request."""

    model: str
    """The exact model, including its version, as requested from the engine."""
    application: str
    """The Serve application."""
    task: str
    adapter: str | None = None
    """Adapter to use, as `name@version`. None: the model itself."""
    api_name: str | None = None
    """The model's API name (`ft:…`), if it has one."""
    rollout: Canary | Watch | None = None
    """The canary or watched promotion whose outcomes include this request."""
    shadow: Route | None = None
    """Destination of a copy of the request."""

    @property
    def public_name(self) -> str:
        """The model's name in responses and messages."""
        return self.api_name or self.model


class Backend(Protocol):
    """Calls the deployment of a route."""

    def generate(self, route: Route, method: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        """Yield a streamed response as chunks of text/event-stream, another one as a single `{"response": …}`, an error
        as `{"error": …}`. `method` is chat or completions. Closing the iterator cancels the request."""
        ...

    async def classify(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        """Return `{"scores": {label: score}, "tokens": n}` for each text, in order."""
        ...

    async def embed(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        """Return `{"embedding": [numbers], "tokens": n}` for each text, in order."""
        ...

    async def statuses(self) -> dict[str, str]:
        """Return the state of each Serve application; RUNNING if it answers requests."""
        ...


async def with_api_name(route: Route, chunks: Chunks) -> Chunks:
    """Replace the model's exact name in a response by its API name."""
    try:
        async for chunk in chunks:
            yield chunk if route.api_name is None else _renamed(chunk, route.model, route.api_name)
    finally:
        await close(chunks)


async def close(chunks: AsyncIterator[Any]) -> None:
    """Close an iterator that may not be exhausted, so that the engine stops generating."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await aclose()


class ServeBackend:
    """The applications of this Ray cluster."""

    def __init__(self) -> None:
        self._handles: OrderedDict[tuple[str, str | None, bool], Any] = OrderedDict()
        self._roots: dict[str, Any] = {}
        """Application → the handle that others are derived from; they share its queue, and so its limit."""
        self._opening = asyncio.Lock()

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        handle = await self._handle(route, stream=True)
        chunks = getattr(handle, method).remote(body)
        ended = False
        try:
            async for chunk in chunks:
                yield chunk
            ended = True
        except Exception as error:  # translated or re-raised
            ended = True
            raise _translated(error, route) from error
        finally:
            if not ended:
                chunks.cancel()  # the client disconnected: the engine must stop generating

    async def classify(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        return await self._call(route, "classify", texts)

    async def embed(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        return await self._call(route, "embed", texts)

    async def _call(self, route: Route, method: str, texts: list[str]) -> list[dict[str, Any]]:
        handle = await self._handle(route, stream=False)
        try:
            answers: list[dict[str, Any]] = await getattr(handle, method).remote(texts)
        except Exception as error:  # translated or re-raised
            raise _translated(error, route) from error
        return answers

    async def statuses(self) -> dict[str, str]:
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        return {name: str(application.status.value) for name, application in status.applications.items()}

    async def _handle(self, route: Route, *, stream: bool) -> Any:
        """Return a cached handle: configuring a new one is slow."""
        key = (route.application, route.adapter, stream)
        if key not in self._handles:
            root = await self._root(route)
            self._handles[key] = root.options(stream=stream, multiplexed_model_id=route.adapter or "")
        self._handles.move_to_end(key)
        while len(self._handles) > _HANDLES_KEPT:
            self._handles.popitem(last=False)
        return self._handles[key]

    async def _root(self, route: Route) -> Any:
        async with self._opening:
            if route.application not in self._roots:
                try:
                    handle = await asyncio.to_thread(_find_handle, route.application)
                    # Outside the thread: the handle is bound to the event loop that configures it.
                    self._roots[route.application] = handle.options()
                except Exception as error:  # translated or re-raised
                    raise _translated(error, route) from error
        return self._roots[route.application]


def _renamed(chunk: dict[str, Any] | str, model: str, api_name: str) -> dict[str, Any] | str:
    if isinstance(chunk, dict):
        return chunk | {"response": chunk["response"] | {"model": api_name}} if "response" in chunk else chunk
    # Within generated text the quotes are escaped: the pattern matches only the field itself.
    return re.sub(rf'"model":(\s*)"{re.escape(model)}"', lambda found: f'"model":{found[1]}"{api_name}"', chunk)


def _find_handle(application: str) -> Any:
    """Get an application's handle from the Serve controller."""
    from ray import serve

    return serve.get_app_handle(application)


def _translated(error: Exception, route: Route) -> Exception:
    """Translate Serve's errors to API errors; return any other error unchanged."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

    cases: list[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[str], errors.ApiError]]] = [
        (BackPressureError, errors.queue_full),
        ((DeploymentUnavailableError, ActorDiedError, ActorUnavailableError, RayServeException), errors.not_ready),
    ]
    for kinds, make in cases:
        if isinstance(error, kinds):
            return make(route.public_name)
    return error
