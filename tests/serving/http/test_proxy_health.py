"""503 while no process of the endpoint answers, and nothing else in the way of a request."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serving.http import proxy_health
from serving.http.proxy_health import ProxyHealth


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: object) -> None:
        async def all_of_it() -> None:
            async with asyncio.timeout(30):
                await test(**arguments)

        asyncio.run(all_of_it())

    return run


class Serve:
    """What is behind the proxy: requests wait while `gone`."""

    def __init__(self) -> None:
        self.gone = False
        self.back = asyncio.Event()
        self.status = 200
        self.seen: list[str] = []
        self.hold = asyncio.Event()
        """/slow answers once it is set."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["path"])
        if self.gone and not scope["path"].startswith("/-/"):
            await self.back.wait()
        if scope["path"] == "/slow":
            await self.hold.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    app = ProxyHealth(serve, ask_every_s=0.01, answer_within_s=0.05)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://kitae") as http:
        yield http


async def until_refused(http: httpx.AsyncClient) -> httpx.Response:
    while "retry-after" not in (answer := await http.get("/v1/models")).headers:
        await asyncio.sleep(0.01)
    return answer


@in_a_loop
async def test_waiting_and_new_requests_are_refused_while_no_process_answers() -> None:
    serve = Serve()
    async with client(serve) as http:
        assert (await http.get("/v1/models")).text == "ok"
        begun = asyncio.create_task(http.get("/slow"))
        while "/slow" not in serve.seen or serve.seen[-1] != "/healthz":  # a process has begun it
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        serve.gone = True
        waited = await http.get("/v1/models")  # in the proxy's queue
        new = await http.get("/v1/models")
        for answer in (waited, new):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["error"]["code"] == "unavailable"
        assert not begun.done(), "only what no process can have begun is ended"
        assert (await http.get("/-/healthz")).text == "ok", "Kubernetes asks the proxy itself"
        serve.gone = False
        serve.back.set()
        serve.hold.set()
        assert (await begun).text == "ok"
        while (await http.get("/v1/models")).status_code != 200:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("status", [404, 500, 503])
@in_a_loop
async def test_an_endpoint_without_its_application_is_unavailable(status: int) -> None:
    serve = Serve()
    async with client(serve) as http:
        serve.status = status
        assert (await until_refused(http)).status_code == 503


@in_a_loop
async def test_a_full_endpoint_is_not_unavailable() -> None:
    serve = Serve()
    async with client(serve) as http:
        serve.status = 429
        for _ in range(20):
            assert (await http.get("/v1/models")).status_code == 429
            await asyncio.sleep(0.005)


@in_a_loop
async def test_a_client_that_goes_away_ends_its_request() -> None:
    serve = Serve()
    async with client(serve) as http:
        request = asyncio.create_task(http.get("/slow"))
        while "/slow" not in serve.seen:
            await asyncio.sleep(0.005)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


@in_a_loop
async def test_an_idle_proxy_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_health, "IDLE_S", 0.05)
    serve = Serve()
    async with client(serve) as http:
        await http.get("/v1/models")
        await asyncio.sleep(0.2)
        asked = len(serve.seen)
        await asyncio.sleep(0.1)
        assert len(serve.seen) == asked
        assert (await http.get("/v1/models")).text == "ok"
