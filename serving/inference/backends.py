"""From a route to whoever answers it: Serve handles behind a small interface.

Owns how a running deployment is called and what its failures mean to a client. Does not know HTTP routes or the store.
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

Pieces = AsyncIterator[dict[str, Any] | str]
"""An answer: pieces of text/event-stream, or a single `{"response": …}` or `{"error": …}`."""


@dataclass(frozen=True)
class Route:
    """Where a request goes."""

    model: str
    """The exact model that answers, version included; what the engine is asked for."""
    application: str
    """The Serve application."""
    task: str
    adapter: str | None = None
    """The adapter to use there, as `name@version`. None: the model itself."""
    wire: str | None = None
    """What clients call the model, where that is another name."""
    trial: Canary | Watch | None = None
    """The trial that this answer counts for."""
    shadow: Route | None = None
    """Where a copy of the request goes."""

    @property
    def shown(self) -> str:
        """What the response and every message name."""
        return self.wire or self.model


class Backend(Protocol):
    """Calls whoever answers a route."""

    def generate(self, route: Route, method: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        """`method` is chat or completions. A streamed answer comes as pieces of text/event-stream, another one as a
        single `{"response": …}`; a refusal as `{"error": …}`. Closing the iterator cancels the request."""
        ...

    async def classify(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        """One `{"scores": {label: score}, "tokens": n}` a text, in order."""
        ...

    async def embed(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        """One `{"embedding": [numbers], "tokens": n}` a text, in order."""
        ...

    async def statuses(self) -> dict[str, str]:
        """State of each Serve application, RUNNING when it can answer."""
        ...


async def named(route: Route, pieces: Pieces) -> Pieces:
    """An answer under the name that clients know the model by."""
    try:
        async for piece in pieces:
            yield piece if route.wire is None else _renamed(piece, route.model, route.wire)
    finally:
        await close(pieces)


async def close(pieces: AsyncIterator[Any]) -> None:
    """End an iterator that may not be exhausted, so that the engine stops working on it."""
    aclose = getattr(pieces, "aclose", None)
    if aclose is not None:
        await aclose()


class ServeBackend:
    """The applications of this Ray cluster."""

    def __init__(self) -> None:
        self._handles: OrderedDict[tuple[str, str | None, bool], Any] = OrderedDict()
        self._roots: dict[str, Any] = {}
        """Of each application the handle that the others are made from: they share its queue, and so its limit."""
        self._opening = asyncio.Lock()

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        handle = await self._handle(route, stream=True)
        pieces = getattr(handle, method).remote(body)
        ended = False
        try:
            async for piece in pieces:
                yield piece
            ended = True
        except Exception as error:  # translated, or raised again
            ended = True
            raise _translated(error, route) from error
        finally:
            if not ended:
                pieces.cancel()  # whoever asked has gone: the engine must not go on generating

    async def classify(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        return await self._ask(route, "classify", texts)

    async def embed(self, route: Route, texts: list[str]) -> list[dict[str, Any]]:
        return await self._ask(route, "embed", texts)

    async def _ask(self, route: Route, method: str, texts: list[str]) -> list[dict[str, Any]]:
        handle = await self._handle(route, stream=False)
        try:
            answers: list[dict[str, Any]] = await getattr(handle, method).remote(texts)
        except Exception as error:  # translated, or raised again
            raise _translated(error, route) from error
        return answers

    async def statuses(self) -> dict[str, str]:
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        return {name: str(application.status.value) for name, application in status.applications.items()}

    async def _handle(self, route: Route, *, stream: bool) -> Any:
        """Configured handles are kept: making one takes longer than finding it."""
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
                    # Here, not in that thread: it belongs to this event loop from now on.
                    self._roots[route.application] = handle.options()
                except Exception as error:  # translated, or raised again
                    raise _translated(error, route) from error
        return self._roots[route.application]


def _renamed(piece: dict[str, Any] | str, model: str, wire: str) -> dict[str, Any] | str:
    if isinstance(piece, dict):
        return piece | {"response": piece["response"] | {"model": wire}} if "response" in piece else piece
    # Inside a JSON text the quotes would be escaped: only the field itself looks like this.
    return re.sub(rf'"model":(\s*)"{re.escape(model)}"', lambda found: f'"model":{found[1]}"{wire}"', piece)


def _find_handle(application: str) -> Any:
    """Asks the controller."""
    from ray import serve

    return serve.get_app_handle(application)


def _translated(error: Exception, route: Route) -> Exception:
    """Serve's errors as a client's; anything else stays what it is."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

    cases: list[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[str], errors.ApiError]]] = [
        (BackPressureError, errors.queue_full),
        ((DeploymentUnavailableError, ActorDiedError, ActorUnavailableError, RayServeException), errors.not_ready),
    ]
    for kinds, make in cases:
        if isinstance(error, kinds):
            return make(route.shown)
    return error
