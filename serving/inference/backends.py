"""Calls the Serve application of a route.

Owns how a running deployment is called and how its failures are reported to a client. Does not know HTTP routes or the
store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ray_jobs.deploy.traffic import Canary, Watch
from ray_jobs.spec import ServingSection
from serving.http import errors

Chunks = AsyncGenerator[dict[str, Any] | str, None]
"""A response: chunks of text/event-stream, or a single `{"response": …}` or `{"error": …}`. Closing it cancels the
request, so that the engine stops generating."""


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
    serving: ServingSection = field(default_factory=ServingSection)
    """Limits of the application."""
    switches: Mapping[str, bool | int | str] = field(default_factory=dict)
    """Variables of the chat template with which a tuned model was trained; a request's own have precedence."""

    @property
    def public_name(self) -> str:
        """The model's name in responses and messages."""
        return self.api_name or self.model


class Backend:
    """Calls the deployment of a route: an application of this Ray cluster."""

    def __init__(self) -> None:
        self._roots: dict[str, Any] = {}
        """Application → the handle that others are derived from; they share its queue, and so its limit."""
        self._opening = asyncio.Lock()
        self._configured = lru_cache(maxsize=256)(self._configure)  # configuring a handle is slow

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> Chunks:
        """Yield the response of an engine's `chat` or `completions`."""
        handle = await self._handle(route, stream=True)
        chunks = getattr(handle, method).remote(body)
        try:
            with _translated_errors(route):
                async for chunk in chunks:
                    yield chunk
        except (GeneratorExit, asyncio.CancelledError):
            chunks.cancel()
            raise

    async def predict(self, route: Route, method: str, texts: list[str]) -> list[dict[str, Any]]:
        """Return a predictor's answer to each text, in order: `{"scores": {label: score}, "tokens": n}` by `classify`,
        `{"embedding": [numbers], "tokens": n}` by `embed`."""
        handle = await self._handle(route, stream=False)
        with _translated_errors(route):
            answers: list[dict[str, Any]] = await getattr(handle, method).remote(texts)
        return answers

    async def statuses(self) -> dict[str, str]:
        """Return the state of each Serve application; RUNNING if it answers requests."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        return {name: str(application.status.value) for name, application in status.applications.items()}

    async def _handle(self, route: Route, *, stream: bool) -> Any:
        if route.application not in self._roots:
            await self._open(route)
        return self._configured(route.application, route.adapter or "", stream)

    async def _open(self, route: Route) -> None:
        from ray import serve

        async with self._opening:
            if route.application not in self._roots:
                with _translated_errors(route):
                    handle = await asyncio.to_thread(serve.get_app_handle, route.application)
                    # Outside the thread: the handle is bound to the event loop that configures it.
                    self._roots[route.application] = handle.options()

    def _configure(self, application: str, adapter: str, stream: bool) -> Any:
        return self._roots[application].options(stream=stream, multiplexed_model_id=adapter)


@contextmanager
def _translated_errors(route: Route) -> Iterator[None]:
    """Raise Serve's errors as API errors; other errors pass unchanged."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

    try:
        yield
    except BackPressureError as error:
        raise errors.queue_full(route.public_name) from error
    except (DeploymentUnavailableError, ActorDiedError, ActorUnavailableError, RayServeException) as error:
        raise errors.not_ready(route.public_name) from error
