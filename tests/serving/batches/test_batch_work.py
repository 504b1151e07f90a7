"""Each line of a batch is answered once, whatever is killed; a batch ends, expires, and is cancelled."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import Any

import pytest

from ray_jobs.tenancy import api_keys, webhooks
from ray_jobs.tenancy.api_keys import Limits
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.access.auth import Caller
from serving.access.in_process import Answer
from serving.batches import records, work
from serving.batches.ending import Ending
from serving.batches.progress import BatchLog, FinishedLines
from serving.batches.records import LEASE_S, ORPHAN_AFTER_S, WINDOW_S, OpenBatch
from serving.batches.work import Pace
from serving.http.errors import ApiError
from serving.http.ids import new_id
from tests.serving.batches.batch_store import MAX_LINE, TEAM, BatchWorld, echo, jsonl, request_line

pytestmark = pytest.mark.anyio


def lines(count: int) -> bytes:
    return jsonl([request_line(f"line-{i}") for i in range(count)])


async def never(body: dict[str, Any]) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


def blocked_after(count: int) -> Any:
    """Answers that many lines, and no more."""
    answered = 0

    async def respond(body: dict[str, Any]) -> Answer:
        nonlocal answered
        answered += 1
        return await (echo(body) if answered <= count else never(body))

    return respond


async def test_a_batch_is_answered() -> None:
    world = BatchWorld()
    batch = world.create(lines(100), metadata={"of": "tests"})
    assert (batch.status, batch.expires_at - batch.created_at) == ("validating", WINDOW_S)
    done = await world.run_to_end(batch)
    assert (done.status, done.model, done.errors, done.error_file_id) == ("completed", "m", None, None)
    assert done.request_counts.model_dump() == {"total": 100, "completed": 100, "failed": 0}
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (100, 200, 300)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
    found = world.lines_of(done.output_file_id)
    assert found.keys() == {f"line-{i}" for i in range(100)}
    assert found["line-7"]["response"]["body"]["said"] == "question line-7"
    assert (found["line-7"]["error"], found["line-7"]["response"]["status_code"]) == (None, 200)
    file = world.files.get(TEAM, str(done.output_file_id))
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert list(world.store.list("batches/")) == [], "what only the work needed is deleted"
    assert max(world.asked.values()) == 1


@pytest.mark.parametrize("count", [10_000, 700])
async def test_no_kill_loses_or_repeats_a_line(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 kills at random moments; the killed one may still write."""
    chance = random.Random(count)
    monkeypatch.setattr(work, "_AT_ONCE", count // 60)
    world = BatchWorld(pace=Pace(lines=count // 120, every_s=5.0, retry_s=0.001))
    put_object = world.client.put_object

    def slow_put(**given: Any) -> Any:
        time.sleep(0.002 * chance.random())  # so that a killed worker's write meets the next worker's
        return put_object(**given)

    world.client.put_object = slow_put  # type: ignore[method-assign]

    async def respond(body: dict[str, Any]) -> Answer:
        await asyncio.sleep(0.02 * chance.random())
        refused = int(body["messages"][0]["content"].rpartition("-")[2]) % 10 == 3
        return Answer(400, "r", {"error": {"message": "no"}}) if refused else await echo(body)

    world.respond = respond
    batch = world.create(lines(count))

    def entries() -> int:
        return len(list(world.store.list(f"batches/{TEAM}/{batch.id}/log/")))

    kills, amid = 0, 0
    while kills < 50:
        running = asyncio.create_task(world.runner().run(asyncio.Event()))
        wanted = entries() + chance.randrange(4)
        while entries() < wanted and not world.is_over(batch):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.03 * chance.random())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        kills += 1
        amid += entries() > 0 and not world.is_over(batch)
        world.pass_time(LEASE_S)
    done = await world.run_to_end(batch)
    output, errors = world.lines_of(done.output_file_id), world.lines_of(done.error_file_id)
    assert done.status == "completed", done.errors
    assert amid >= 20, "kills between the first lines and the end"
    assert not output.keys() & errors.keys()
    assert output.keys() | errors.keys() == {f"line-{i}" for i in range(count)}
    assert errors.keys() == {f"line-{i}" for i in range(count) if i % 10 == 3}
    assert done.request_counts.model_dump() == {
        "total": count,
        "completed": len(output),
        "failed": len(errors),
    }
    made = list(world.store.list(f"teams/{TEAM}/files/"))
    assert len(made) == 3, "the input and two files, however often the end was repeated"
    repeated = sum(times - 1 for times in world.asked.values())
    assert 0 < repeated <= kills * (work._AT_ONCE + 2 * world.pace.lines), "what ran or was not written at a kill"


async def test_one_of_two_workers_appends_an_entry() -> None:
    world = BatchWorld()
    batch = records.load(world.store, TEAM, world.create(lines(2)).id)
    log, at = BatchLog(world.store, batch), world.clock_s
    first, second = (FinishedLines(worker=name, at=at, completed=(1,)) for name in "ab")
    assert log.append(0, first, b"from a\n", b"")
    assert not log.append(0, second, b"from b\n", b"")
    assert log.append(0, first, b"from a\n", b""), "repeated after a lost answer"
    assert log.read() == [first]
    assert b"".join(log.output(log.read())) == b"from a\n"


class Killed(Exception):
    """The process ends here."""


class KilledEnding(Ending):
    """Is killed after the files are made."""

    def _close(self, *given: Any) -> Any:
        raise Killed


async def test_a_repeated_end_makes_the_same_files() -> None:
    async def respond(body: dict[str, Any]) -> Answer:
        last = body["messages"][0]["content"].endswith("1")
        return Answer(400, "r", {"error": {}}) if last else await echo(body)

    world = BatchWorld(respond)
    batch = world.create(lines(2))
    killed = world.runner()
    killed.ending = KilledEnding(world.store, world.files, MAX_LINE)
    running = asyncio.create_task(killed.run(asyncio.Event()))
    while len(made := list(world.store.list(f"teams/{TEAM}/files/"))) < 3:
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.get(batch).status == "finalizing"
    world.pass_time(LEASE_S)
    done = await world.run_to_end(batch)
    assert done.status == "completed"
    assert list(world.store.list(f"teams/{TEAM}/files/")) == made
    assert {done.output_file_id, done.error_file_id} < {info.key[-36:-5] for info in made}


async def test_a_line_that_is_refused_is_in_the_error_file() -> None:
    async def respond(body: dict[str, Any]) -> Answer:
        if body["messages"][0]["content"].endswith("1"):
            return Answer(404, "req-1", {"error": {"message": "no such model", "code": "model_not_found"}})
        return await echo(body)

    world = BatchWorld(respond)
    done = await world.run_to_end(world.create(lines(3)))
    (line,) = world.lines_of(done.error_file_id).values()
    assert (line["custom_id"], line["error"]) == ("line-1", None)
    assert (line["response"]["status_code"], line["response"]["request_id"]) == (404, "req-1")
    assert line["response"]["body"]["error"]["code"] == "model_not_found"
    assert world.lines_of(done.output_file_id).keys() == {"line-0", "line-2"}


async def test_a_busy_model_is_asked_again_and_a_failing_one_a_few_times() -> None:
    world = BatchWorld()

    async def respond(body: dict[str, Any]) -> Answer:
        asked = body["messages"][0]["content"]
        if asked.endswith("0"):
            return Answer(503, "r", {"error": {}}) if world.asked[asked] < 6 else await echo(body)
        if asked.endswith("1"):
            raise RuntimeError("a bug of a route")
        return await echo(body)

    world.respond = respond
    done = await world.run_to_end(world.create(lines(3)))
    assert world.lines_of(done.output_file_id).keys() == {"line-0", "line-2"}
    (line,) = world.lines_of(done.error_file_id).values()
    assert line["response"]["status_code"] == 500
    assert "bug" not in str(line)
    assert world.asked == {"question line-0": 6, "question line-1": 3, "question line-2": 1}


async def test_a_cancelled_batch_has_its_finished_lines() -> None:
    world = BatchWorld(blocked_after(40))
    batch = world.create(lines(100))

    def act() -> bool:
        if world.get(batch).status == "in_progress" and world.get(batch).request_counts.completed == 40:
            assert world.cancel(batch).status == "cancelling"
        return world.is_over(batch)

    await world.run_until(act)
    done = world.get(batch)
    assert done.status == "cancelled"
    assert None not in (done.cancelling_at, done.cancelled_at)
    output, errors = world.lines_of(done.output_file_id), world.lines_of(done.error_file_id)
    assert (len(output), len(errors)) == (40, 60)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    assert done.request_counts.model_dump() == {"total": 100, "completed": 40, "failed": 60}
    with pytest.raises(ApiError, match="is cancelled and cannot be cancelled"):
        world.cancel(batch)


async def test_a_batch_that_is_cancelled_before_it_is_read_has_no_files() -> None:
    world = BatchWorld()
    batch = world.create(lines(3))
    world.cancel(batch)
    done = await world.run_to_end(batch)
    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)
    assert not world.asked


async def test_the_lines_left_after_the_window_expire() -> None:
    world = BatchWorld(blocked_after(10))
    batch = world.create(lines(30))

    def act() -> bool:
        if world.get(batch).request_counts.completed == 10 and world.clock_s < batch.expires_at:
            world.pass_time(WINDOW_S)
        return world.is_over(batch)

    await world.run_until(act)
    done = world.get(batch)
    assert (done.status, done.expired_at) == ("expired", int(world.clock_s))
    assert len(world.lines_of(done.output_file_id)) == 10
    (line, *_) = errors = list(world.lines_of(done.error_file_id).values())
    assert len(errors) == 20
    assert (line["response"], line["error"]["code"]) == (None, "batch_expired")


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_key_that_ends_ends_the_rest_of_the_lines(how: str) -> None:
    world = BatchWorld(blocked_after(10))
    expires = world.store.now() + timedelta(hours=1) if how == "expired" else None
    key, _ = api_keys.create(world.store, TEAM, "batches", expires_at=expires)
    batch = world.create(lines(30), caller=Caller(key.id, TEAM, Limits(), admin=False))

    def act() -> bool:
        if world.get(batch).request_counts.completed == 10 and key.state(world.store.now()) == "active":
            if how == "revoked":
                api_keys.revoke(world.store, key.id)
            else:
                world.pass_time(3601)
        return world.is_over(batch)

    await world.run_until(act)
    done = world.get(batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 10, 20)
    errors = world.lines_of(done.error_file_id)
    assert {(line["error"]["code"], how in line["error"]["message"]) for line in errors.values()} == {
        ("invalid_api_key", True)
    }


async def test_an_invalid_file_fails_the_batch_before_a_line_is_sent() -> None:
    world = BatchWorld()
    content = jsonl([request_line("a"), request_line("a"), request_line("b", method="GET")]) + b"{\n"
    done = await world.run_to_end(world.create(content))
    assert done.status == "failed"
    assert done.failed_at is not None
    assert done.errors is not None
    assert [(error.code, error.line) for error in done.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_method", 3),
        ("invalid_json_line", 4),
    ]
    assert not world.asked


async def test_a_stopped_runner_hands_over_what_is_done() -> None:
    world = BatchWorld(blocked_after(10), pace=Pace(every_s=60.0))
    batch = world.create(lines(30))
    await world.run_until(lambda: world.asked.total() == 30)
    world.respond = echo
    done = await world.run_to_end(batch)  # at once: the lease is given back
    assert done.request_counts.completed == 30
    assert world.asked.total() == 50, "the ten that were answered are not asked again"


async def test_two_runners_share_batches_and_no_line() -> None:
    async def slowly(body: dict[str, Any]) -> Answer:
        await asyncio.sleep(0.001)
        return await echo(body)

    world = BatchWorld(slowly)
    batches = [world.create(lines(50)) for _ in range(4)]
    stop = asyncio.Event()
    other = asyncio.create_task(world.runner().run(stop))
    await world.run_until(lambda: all(world.is_over(batch) for batch in batches))
    stop.set()
    await other
    assert {world.get(batch).status for batch in batches} == {"completed"}
    assert set(world.asked.values()) == {4}, "each of the four has the same questions"


async def test_an_end_tells_the_team_once() -> None:
    world = BatchWorld()
    policy = webhooks.Policy(private=True, insecure=True)
    webhooks.add(world.store, TEAM, "http://127.0.0.1/hook", webhooks.EVENTS, policy)
    good, bad = world.create(lines(1)), world.create(b"{\n")
    for batch in (good, bad):
        await world.run_to_end(batch)
    keys = [info.key for info in world.store.list("webhooks-out/")]
    events = [world.store.get_json(key)["event"] for key in keys]
    assert {(event["type"], event["data"]["id"]) for event in events} == {
        ("batch.completed", good.id),
        ("batch.failed", bad.id),
    }


async def test_output_files_expire_as_requested() -> None:
    world = BatchWorld()
    expiry = {"anchor": "created_at", "seconds": 3600}
    done = await world.run_to_end(world.create(lines(1), output_expires_after=expiry))
    file = world.files.get(TEAM, str(done.output_file_id))
    assert file.expires_at == file.created_at + 3600
    assert file.created_at == done.finalizing_at


async def test_what_a_team_has_open_is_bounded() -> None:
    world = BatchWorld(never, quotas=TeamQuotas(open_batches=2, batch_lines=100))
    world.create(lines(60))
    with pytest.raises(ApiError, match=r"60 lines in open batches; with these 41 .* limit of 100") as refused:
        world.create(lines(41))
    assert (refused.value.status, refused.value.code) == (429, "batch_lines_exceeded")
    second = world.create(lines(40))
    with pytest.raises(ApiError, match="has 2 open batches, and may have 2") as refused:
        world.create(lines(1))
    assert (refused.value.status, refused.value.code) == (429, "open_batches_exceeded")
    world.create(lines(60), team="green")
    world.cancel(second)
    await world.run_to_end(second)
    world.create(lines(1))


async def test_a_file_is_in_use_while_its_batch_is_open() -> None:
    world = BatchWorld()
    batch = world.create(lines(2))
    assert world.batches.open_using(TEAM, batch.input_file_id) == [batch.id]
    assert world.batches.open_using(TEAM, "file-other") == world.batches.open_using("green", batch.input_file_id) == []
    await world.run_to_end(batch)
    assert world.batches.open_using(TEAM, batch.input_file_id) == []


async def test_a_batch_without_its_input_file_fails() -> None:
    world = BatchWorld(blocked_after(1))
    batch = world.create(lines(2))
    world.store.delete_tree(f"files/{TEAM}/{batch.input_file_id}")
    done = await world.run_to_end(batch)
    assert (done.status, done.errors.data[0].code if done.errors else None) == ("failed", "unreadable")


async def test_an_interrupted_create_leaves_no_place() -> None:
    world = BatchWorld()
    lost = new_id("batch", now_s=world.clock_s)
    entry = OpenBatch(at=world.clock_s, lines=1, file_id="file-x")
    records.enter(world.store, TEAM, lost, entry, TeamQuotas().of(TEAM))
    batch = world.create(lines(1))
    await world.run_to_end(batch)
    assert lost in records.open_of(world.store, TEAM), "its record may be about to be written"
    world.pass_time(ORPHAN_AFTER_S)
    await world.run_until(lambda: lost not in records.open_of(world.store, TEAM))


async def test_old_working_objects_are_swept() -> None:
    world = BatchWorld(never)
    batch = world.create(lines(1))
    old = new_id("batch", now_s=world.clock_s)
    for name in (batch.id, old):
        world.store.put(f"batches/{TEAM}/{name}/log/000000.json", b"{}")
    assert world.batches.sweep(world.clock_s + 86_000) == 0
    assert world.batches.sweep(world.clock_s + 86_500) == 1
    assert world.store.list_dirs(f"batches/{TEAM}/") == [batch.id]
