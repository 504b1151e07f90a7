"""Constraints are compiled in a process of its own: limited, in turn, and once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from serving.http.errors import ApiError
from serving.inference.constraints import Constraint
from serving.inference.grammars import Grammars

GOOD = Constraint("regex", "[a-z]{1,9}", "structured_outputs.regex")
SLOW = Constraint("regex", "((a*)*)*b", "structured_outputs.regex")


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    found = Grammars()
    yield found
    await found.close()


async def refusal(grammars: Grammars, constraint: Constraint, team: str = "a") -> ApiError | None:
    try:
        await grammars.check([constraint], team)
    except ApiError as error:
        return error
    return None


@pytest.mark.anyio
async def test_a_verdict_is_remembered_and_a_slow_constraint_stops_nobody(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-endpoint")
    await grammars.start()
    assert grammars._worker is not None
    worker = psutil.Process(grammars._worker.pid)
    assert "AWS_SECRET_ACCESS_KEY" not in worker.environ()

    first, second, good = await asyncio.gather(
        refusal(grammars, SLOW), refusal(grammars, SLOW), refusal(grammars, GOOD, "b")
    )
    assert good is None
    for error in (first, second):
        assert error is not None
        assert (error.status, error.code, error.param) == (400, "invalid_constraint", SLOW.where)
        assert "CPU time" in error.message

    worker.kill()  # what is remembered needs no worker; the next one is started
    assert await refusal(grammars, GOOD) is None
    assert await refusal(grammars, SLOW) is not None
    worker.wait(10)
    await grammars._worker.wait()
    assert await refusal(grammars, Constraint("regex", "[a-z]{1,8}", "x")) is None
    assert grammars._worker.pid != worker.pid
    assert os.getpid() == psutil.Process(grammars._worker.pid).ppid()


@pytest.mark.anyio
async def test_a_team_waits_only_so_often(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = asyncio.Event()

    async def judge(constraint: Constraint) -> Any:
        await judged.wait()

    monkeypatch.setattr(grammars, "_judge", judge)
    many = [Constraint("regex", "a" * n, "x") for n in range(1, 18)]
    tasks = [asyncio.create_task(refusal(grammars, constraint)) for constraint in many]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = [task.result() for task in done]
    assert refused is not None
    assert (refused.status, refused.code) == (429, "overloaded")
    judged.set()
    assert [await task for task in tasks].count(None) == 16
    assert grammars._teams == {}
