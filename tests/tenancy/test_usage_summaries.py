"""A day's objects of a team become one, whichever process sums them up, however often, and whatever is interrupted."""

from __future__ import annotations

import threading
from datetime import date, timedelta

import pytest

from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from serving.observability.usage_ledger import UsageLedger
from tests.serving.observability.finished_requests import finished
from tests.storage.memory_store import MemoryClient, memory_store

DAY = date(2026, 11, 30)


def row(**changes: object) -> UsageRow:
    facts = {"day": DAY, "team": "blue", "key_id": "k1", "model": "m", "kind": "inference", "requests": 1}
    return UsageRow.model_validate(facts | changes)


def requests(store: Store) -> int:
    return sum(found.requests for found in usage.read(store, "blue", DAY, DAY))


def names(store: Store) -> list[str]:
    return [info.key.rpartition("/")[2] for info in store.list("usage/blue")]


@pytest.fixture
def memory() -> tuple[Workspace, MemoryClient]:
    store, client = memory_store()
    for number in range(1, 101):
        usage.write(store, "blue", DAY, "api-1", number, [row()])
    return store, client


def test_a_day_becomes_one_object_with_the_same_sum(memory: tuple[Workspace, MemoryClient]) -> None:
    store, client = memory
    assert usage.roll_up_all(store, DAY + timedelta(days=1)) == 100
    assert names(store) == ["day.json"]
    assert requests(store) == 100
    before = client.made
    assert usage.roll_up_all(store, DAY + timedelta(days=1)) == 0
    assert client.made - before == 2, "one listing of the teams and one of the team's objects"
    assert not usage.write(store, "blue", DAY, "api-1", 7, [row()]) or requests(store) == 100
    usage.write(store, "blue", DAY, "api-1", 101, [row()])
    usage.roll_up_all(store, DAY + timedelta(days=1))
    assert (names(store), requests(store)) == (["day.json"], 101)


def test_a_write_repeated_after_the_summary_is_not_counted_twice(memory: tuple[Workspace, MemoryClient]) -> None:
    store, _ = memory
    usage.write(store, "blue", DAY, "ftjob-1-0123456789", 1, [row(kind="training", model="ftjob-1")])
    usage.roll_up_all(store, DAY + timedelta(days=1))
    usage.write(store, "blue", DAY, "ftjob-1-0123456789", 1, [row(kind="training", model="ftjob-1")])
    assert requests(store) == 101
    usage.roll_up_all(store, DAY + timedelta(days=1))
    assert (names(store), requests(store)) == (["day.json"], 101)
    (trained,) = usage.rows_of(store, [f"blue/{DAY}"], lambda writer: writer.startswith("ftjob-"))
    assert trained[0] == "ftjob-1-0123456789"


def test_a_summary_that_is_interrupted_anywhere_keeps_the_sum(memory: tuple[Workspace, MemoryClient]) -> None:
    store, client = memory
    delete, left = client.delete_object, 5

    def killed(**arguments: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        delete(Key=arguments["Key"])

    client.delete_object = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        usage.roll_up_all(store, DAY + timedelta(days=1))
    client.delete_object = delete  # type: ignore[method-assign]
    assert len(names(store)) > 90
    assert requests(store) == 100
    usage.roll_up_all(store, DAY + timedelta(days=1))
    assert (names(store), requests(store)) == (["day.json"], 100)


def test_several_processes_sum_up_at_once_while_one_writes_and_one_reads(
    memory: tuple[Workspace, MemoryClient],
) -> None:
    store, client = memory
    seen: list[int] = []
    done = threading.Event()

    def sum_up() -> None:
        while not done.is_set():
            usage.roll_up_all(memory_store(client)[0], DAY + timedelta(days=1))

    def read() -> None:
        while not done.is_set():
            seen.append(requests(memory_store(client)[0]))

    threads = [threading.Thread(target=work) for work in (sum_up, sum_up, read)]
    for thread in threads:
        thread.start()
    for number in range(101, 301):
        usage.write(store, "blue", DAY, "api-1", number, [row()])
    done.set()
    for thread in threads:
        thread.join()
    assert seen == sorted(seen), "no row is missing, or counted twice, in between"
    assert requests(store) == 300


def test_todays_objects_are_summed_up_once_they_are_many(memory: tuple[Workspace, MemoryClient]) -> None:
    store, _ = memory
    assert usage.roll_up_all(store, DAY, least_today=101) == 0
    assert usage.roll_up_all(store, DAY) == 100


def test_a_process_numbers_a_teams_objects_without_gaps() -> None:
    store, _ = memory_store()
    ledger = UsageLedger(store, writer="api-1", today=lambda: DAY)
    for _ in range(3):
        for team in ("blue", "red"):
            ledger.count(finished(team=team))
        ledger.flush()
    assert names(store) == [f"api-1-{number:06d}.json" for number in (1, 2, 3)]
