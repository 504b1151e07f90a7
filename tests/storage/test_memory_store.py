"""The store in memory answers as a real one."""

from __future__ import annotations

import random

import pytest

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.storage import Store
from tests.storage.memory_store import memory_store


def test_listings_and_conditions_are_those_of_a_real_store(store: Store) -> None:
    memory, client = memory_store()
    chance = random.Random(3)
    keys = {f"{chance.choice('abc')}/{chance.choice('abc')}/{chance.randint(0, 99)}.json" for _ in range(60)}
    for one in (store, memory):
        for key in sorted(keys):
            one.put(key, b"x")
    for prefix in ("", "a", "a/b", "b", "zz"):
        assert [info.key for info in memory.list(prefix)] == [info.key for info in store.list(prefix)]
        assert memory.list_dirs(prefix) == store.list_dirs(prefix)
    after = sorted(keys)[30]
    assert [info.key for info in memory.list(after=after)] == [info.key for info in store.list(after=after)]
    etag = memory.put("a", b"1", if_absent=True)
    for condition in ({"if_absent": True}, {"if_match": '"other"'}):
        with pytest.raises(ConflictError):
            memory.put("a", b"2", **condition)
    memory.put("a", b"2", if_match=etag)
    assert memory.get("a") == b"2"
    memory.delete("a")
    with pytest.raises(ObjectNotFound):
        memory.get("a")
    for number in range(2001):
        memory.put(f"many/{number:04d}", b"")
    before = client.made
    assert len(list(memory.list("many"))) == 2001
    assert client.made - before == 3
