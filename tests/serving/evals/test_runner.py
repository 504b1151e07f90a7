"""The runner: after a kill at any request to the store each row has one output item; leases, cancellation, keys.

The store is in this process, the models are a fake app that echoes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from ray_jobs.graders.schema import StringCheckGrader
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from serving.access.auth import OPERATOR
from serving.access.in_process import InProcess
from serving.evals import records
from serving.evals.records import CHUNK_ITEMS, OPEN_RUNS, Chunk, StoredEval, StoredRun
from serving.evals.runner import EvalRunner
from serving.http.eval_types import CriterionResult, RunModelUsage, SourceRow
from serving.http.ids import new_id
from tests.serving.crash_injector import Crashed, CrashPoint, _CrashingClient
from tests.storage.memory_store import MemoryClient, memory_store

TEAM, ROWS = "blue", 2 * CHUNK_ITEMS + 3
LEASE_S = 60.0


@dataclass
class FakeModels:
    """Answers a chat with its last message, or with the next of `refusals` (status, code)."""

    refusals: list[tuple[int, str]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    """Called before each answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        self.asked.append(body)
        self.states.append(scope["state"])
        self.before()
        await asyncio.sleep(0)
        status, body = 200, answer(body["messages"][-1]["content"])
        if self.refusals:
            status, code = self.refusals.pop(0)
            body = {"error": {"message": "not now", "code": code}}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def answer(text: str) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}


@dataclass
class World:
    """A store with one open run."""

    store: Store
    client: MemoryClient
    run: StoredRun
    models: FakeModels = field(default_factory=FakeModels)

    def runner(self, store: Store | None = None, **options: Any) -> EvalRunner:
        options = dict[str, Any](poll_s=0.005, lease_s=LEASE_S, retry_after_s=(0.0, 0.0)) | options
        return EvalRunner(store or self.store, InProcess(self.models), **options)

    def stored(self) -> StoredRun:
        return records.load_run(self.store, TEAM, self.run.eval_id, self.run.id)

    def work(self, *runners: EvalRunner) -> StoredRun:
        """Work until the run has ended and its marker is gone; returns it."""
        asyncio.run(self._until(lambda: not OPEN_RUNS.names(self.store), *runners))
        return self.stored()

    async def _until(self, done: Callable[[], bool], *runners: EvalRunner) -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(runner.run(stop)) for runner in runners]
        for _ in range(5000):
            if done() or any(task.done() for task in tasks):
                break
            await asyncio.sleep(0.002)
        else:
            raise AssertionError(self.stored())
        stop.set()
        await asyncio.gather(*tasks)

    def check_each_row_once(self) -> None:
        """Every row has one output item, every count and use is counted once, and nothing is open."""
        run = self.stored()
        found = [
            item
            for number in range(run.chunks)
            for item in records.chunks(run).read(self.store, records.chunk_name(number)).items  # type: ignore[union-attr]
        ]
        assert [item.datasource_item_id for item in found] == list(range(ROWS))
        assert len({item.id for item in found}) == ROWS
        assert len(records.chunks(run).names(self.store)) == run.chunks == run.chunks_done
        assert (run.status, run.counts.total, run.counts.passed, run.counts.failed) == ("completed", ROWS, ROWS - 3, 3)
        assert [(each.passed, each.failed) for each in run.criteria] == [(ROWS - 3, 3)]
        assert [(each.invocation_count, each.total_tokens) for each in run.usage] == [(ROWS, 3 * ROWS)]
        assert not OPEN_RUNS.names(self.store)


def make_world(key_id: str = OPERATOR.key_id) -> World:
    store, client = memory_store()
    identifier = new_id(records.EVAL, now_s=store.now_s())
    grader = StringCheckGrader(
        type="string_check", name="g", operation="eq", input="{{ sample.output_text }}", reference="{{ item.want }}"
    )
    config = {"type": "custom", "item_schema": {}, "include_sample_schema": True, "metadata": None}
    made = StoredEval(
        id=identifier, team=TEAM, created_at=0, name="e", data_source_config=config, testing_criteria=[grader]
    )
    records.evals(TEAM).create(store, identifier, made)
    asked = {"type": "template", "template": [{"role": "user", "content": "{{ item.text }}"}]}
    run = StoredRun(
        id=new_id(records.RUN, now_s=store.now_s()),
        team=TEAM,
        eval_id=identifier,
        key_id=key_id,
        admin=key_id == OPERATOR.key_id,
        created_at=0,
        name="r",
        model="m",
        data_source={"type": "completions", "source": {"type": "file_content", "content": []}, "input_messages": asked}
        | {"model": "m"},
        rows=ROWS,
        criteria=[CriterionResult(testing_criteria="g")],
    )
    rows = [SourceRow(item={"text": f"q{i}", "want": f"q{i}" if i >= 3 else "other"}) for i in range(ROWS)]
    records.create_run(store, run, rows)
    return World(store, client, run)


def crashing(world: World, crash: CrashPoint) -> Store:
    """A process's own view of the store, whose requests count toward a crash."""
    store, _ = memory_store(world.client)
    store._bucket._clients[os.getpid()] = _CrashingClient(world.client, crash)  # type: ignore[assignment]
    return store


def requests_of_a_run() -> int:
    world, crash = make_world(), CrashPoint()
    world.work(world.runner(crashing(world, crash)))
    return crash.requests


@pytest.mark.parametrize("answers", [False, True])
def test_a_kill_at_any_request_leaves_each_row_once(answers: bool) -> None:
    killed = 0
    for crash_at in range(1, requests_of_a_run() + 1):
        world, crash = make_world(), CrashPoint(crash_at, answers=answers)
        with suppress(Crashed):
            world.work(world.runner(crashing(world, crash)))
        killed += crash.crashed
        world.client.clock.at_s += LEASE_S + 1  # else the dead process's lease would have to be awaited
        world.work(world.runner())
        world.check_each_row_once()
    assert killed > 20


def test_two_processes_at_once_leave_each_row_once() -> None:
    world = make_world()
    world.work(*(world.runner(lease_s=LEASE_S) for _ in range(3)))
    world.check_each_row_once()
    assert len(world.models.asked) == ROWS  # only the lease's holder worked


def test_a_process_whose_lease_has_expired_counts_nothing_more() -> None:
    """It was stopped for a while; another process has taken the run and ended it."""
    world = make_world()
    late, other = world.runner(), world.runner()

    def overtaken() -> None:
        if len(world.models.asked) == CHUNK_ITEMS:
            world.models.before = lambda: None
            world.client.clock.at_s += LEASE_S + 1
            taken = other._take(TEAM, world.run.id, 0.0)
            assert taken is not None

    world.models.before = overtaken
    world.work(late, other)
    world.check_each_row_once()


def test_a_lease_is_not_taken_before_it_expires_and_given_back_at_a_stop() -> None:
    world = make_world()
    first, second = world.runner(), world.runner()
    assert first._take(TEAM, world.run.id, 0.0) is not None
    assert second._take(TEAM, world.run.id, 0.0) is None
    world.client.clock.at_s += LEASE_S - 1
    assert second._take(TEAM, world.run.id, 0.0) is None
    world.client.clock.at_s += 1
    assert second._take(TEAM, world.run.id, 0.0) is not None
    world = make_world()
    asyncio.run(world._until(lambda: len(world.models.asked) > CHUNK_ITEMS, world.runner()))
    assert world.stored().holder is None
    assert world.stored().is_open
    world.work(world.runner())
    world.check_each_row_once()


@pytest.mark.parametrize("gone", [False, True])
def test_a_cancelled_or_deleted_run_stops(gone: bool) -> None:
    world = make_world()

    def end() -> None:
        if len(world.models.asked) == CHUNK_ITEMS + 1:
            if gone:
                records.delete_eval(world.store, TEAM, world.run.eval_id)
            else:
                cancelled = lambda old: old.model_copy(update={"status": "canceled", "holder": None})  # noqa: E731
                records.update_run(world.store, world.run, cancelled)
                world.store.delete(OPEN_RUNS.key(f"{TEAM}/{world.run.id}"))

    world.models.before = end
    runner = world.runner()
    asyncio.run(world._until(lambda: len(world.models.asked) > CHUNK_ITEMS and not runner._working, runner))
    assert len(world.models.asked) == 2 * CHUNK_ITEMS
    if gone:
        world.client.clock.at_s += 7200
        records.sweep(world.store, world.store.now_s())
        assert not [info.key for info in world.store.list() if world.run.id in info.key]
    else:
        run = world.stored()
        assert (run.status, run.counts.total, run.chunks_done) == ("canceled", CHUNK_ITEMS, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda store, key: api_keys.revoke(store, key), "revoked"),
        (lambda store, key: store.delete(f"keys/{key}.json"), "revoked"),
        (lambda store, key: _rights(store, key, ["read"]), "needs inference"),
        (lambda store, key: _rights(store, key, ["admin"]), "other rights"),
    ],
)
def test_the_key_is_checked_again_while_a_run_works(change: Callable[[Store, str], Any], message: str) -> None:
    world = make_world()
    key, _ = api_keys.create(world.store, TEAM, "tests")
    records.update_run(world.store, world.run, lambda old: old.model_copy(update={"key_id": key.id, "admin": False}))

    def end() -> None:
        if len(world.models.asked) == 1:
            change(world.store, key.id)

    world.models.before = end
    run = world.work(world.runner())
    assert run.status == "failed"
    assert run.error is not None
    assert run.error.code == "invalid_api_key"
    assert message in run.error.message
    assert run.counts.total == len(world.models.asked) == CHUNK_ITEMS


def _rights(store: Store, key_id: str, scopes: list[str]) -> None:
    store.update_json(f"keys/{key_id}.json", lambda old: {**(old or {}), "scopes": scopes})


def test_requests_are_in_the_background_as_the_runs_caller_and_what_passes_is_retried() -> None:
    world = make_world()
    world.models.refusals = [(429, "queue_full"), (503, "model_not_ready")]
    world.work(world.runner())
    world.check_each_row_once()
    assert len(world.models.asked) == ROWS + 2
    assert {state["background"] for state in world.models.states} == {True}
    assert {state["caller"].team for state in world.models.states} == {TEAM}
    assert world.models.asked[0] == {"model": "m", "messages": [{"role": "user", "content": "q0"}], "seed": 42}


def test_a_request_that_is_refused_for_good_ends_its_row_only() -> None:
    world = make_world()
    world.models.refusals = [(400, "context_length_exceeded")]
    run = world.work(world.runner())
    assert (run.status, run.counts.errored, run.counts.total) == ("completed", 1, ROWS)
    assert len(world.models.asked) == ROWS


def test_rows_that_cannot_be_read_fail_the_run() -> None:
    world = make_world()
    world.store.put(f"{world.run.folder}/rows.jsonl", b"damaged")
    run = world.work(world.runner())
    assert run.error is not None
    assert (run.status, run.error.code) == ("failed", "internal_error")


def test_a_marker_without_a_run_is_removed_once_it_is_old() -> None:
    world = make_world()
    world.store.delete(records.runs(TEAM, world.run.eval_id).key(world.run.id))
    runner, marked_s = world.runner(), world.store.now_s()
    assert runner._take(TEAM, world.run.id, marked_s) is None
    assert OPEN_RUNS.names(world.store)  # its create may be under way
    world.client.clock.at_s += 121
    assert runner._take(TEAM, world.run.id, marked_s) is None
    assert not OPEN_RUNS.names(world.store)


def test_the_sweep_deletes_what_deletes_left() -> None:
    world = make_world()
    world.work(world.runner())
    other = make_world()
    world.store.delete(records.evals(TEAM).key(world.run.eval_id))  # a delete that was killed after its first step
    assert records.sweep(world.store, world.store.now_s()) == 0
    world.client.clock.at_s += 7200
    assert records.sweep(world.store, world.store.now_s()) == 1
    assert not [info.key for info in world.store.list() if world.run.id in info.key]
    other.client.clock.at_s += 7200
    assert records.sweep(other.store, other.store.now_s()) == 0
    other.work(other.runner())
    other.check_each_row_once()


def test_of_two_processes_that_graded_a_chunk_the_first_counts() -> None:
    world = make_world()
    first, second = Chunk(items=[]), Chunk(items=[], usage=[RunModelUsage(model_name="m", invocation_count=1)])
    assert records.put_chunk(world.store, world.run, 0, first) == first
    assert records.put_chunk(world.store, world.run, 0, second) == first
