"""From a route to whoever answers it: Serve handles behind a small interface.

Owns how a running deployment is called and what its failures mean to a client. Does not know HTTP routes or the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serving import errors

_HANDLES_KEPT = 256


@dataclass(frozen=True)
class Route:
    """Where a request goes."""

    model: str
    """The exact model that answers, version included; what the response names."""
    application: str
    """The Serve application."""
    task: str
    adapter: str | None = None
    """The adapter to use there, as `name@version`. None: the model itself."""


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


class ServeBackend:
    """The applications of this Ray cluster."""

    def __init__(self) -> None:
        self._handles: OrderedDict[tuple[str, str | None, bool], Any] = OrderedDict()

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
        """Configured handles are kept: each one that is made anew watches the controller by itself."""
        key = (route.application, route.adapter, stream)
        if key not in self._handles:
            try:
                self._handles[key] = await asyncio.to_thread(_open_handle, route, stream)
            except Exception as error:  # translated, or raised again
                raise _translated(error, route) from error
        self._handles.move_to_end(key)
        while len(self._handles) > _HANDLES_KEPT:
            self._handles.popitem(last=False)
        return self._handles[key]


def _open_handle(route: Route, stream: bool) -> Any:
    from ray import serve

    handle = serve.get_app_handle(route.application)
    return handle.options(stream=stream, multiplexed_model_id=route.adapter or "")


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
            return make(route.model)
    return error
