"""Identifiers that sort by creation time, and pages over them."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.storage import Workspace
from serving.http.errors import ApiError
from serving.http.ids import after_in, common, created_at_s, is_id, listed, new_id, page
from tests.storage.memory_store import START_S, MemoryClient, memory_store


def test_ids_sort_by_and_contain_their_creation_time() -> None:
    ids = [new_id("file", now_s=1_700_000_000 + i / 1000) for i in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert created_at_s(ids[7]) == pytest.approx(1_700_000_000.007)
    assert is_id("file", ids[0])
    assert not is_id("ftjob", ids[0])
    assert not is_id("file", "file-../../x")


FOLDER = "teams/blue/files/"


def filled(count: int, *, per_s: float = 1.0) -> tuple[Workspace, MemoryClient, list[str]]:
    store, client = memory_store()
    ids = [new_id("file", now_s=START_S - (count - i) / per_s) for i in range(count)]
    for identifier in ids:
        store.put(f"{FOLDER}{identifier}.json", b"{}")
    return store, client, ids


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 4, 22, 23, 50])
def test_pages_of_any_size_contain_every_item_once(order: Any, limit: int) -> None:
    store, _, ids = filled(23)
    seen: list[str] = []
    more = True
    while more:
        after = seen[-1] if seen else None
        listing = listed(store, FOLDER, "file", START_S, after=after, order=order)
        found, more = page(listing, lambda i: i if i != ids[5] else None, limit=limit)
        seen += found
    expected = [i for i in ids if i != ids[5]]
    assert seen == (expected if order == "asc" else expected[::-1])


def test_a_page_continues_after_a_deleted_item() -> None:
    store, _, ids = filled(3)
    store.delete(f"{FOLDER}{ids[1]}.json")
    assert list(listed(store, FOLDER, "file", START_S, after=ids[1])) == [ids[0]]
    assert list(after_in(["x-1", "x-3"], "x-2")) == ["x-1"]


def test_a_cursor_of_another_list_is_refused() -> None:
    store, _, _ = filled(1)
    for after in ("ftjob-x", "file-../../secret", new_id("ftjob", now_s=START_S)):
        with pytest.raises(ApiError, match="not an id of this list"):
            listed(store, FOLDER, "file", START_S, after=after)


@pytest.mark.parametrize("per_s", [10.0, 0.001])
def test_a_page_of_a_long_list_takes_few_requests(per_s: float) -> None:
    store, client, ids = filled(5000, per_s=per_s)
    for order in ("asc", "desc"):
        for after in (None, ids[2500]):
            before = client.made
            found, more = page(listed(store, FOLDER, "file", START_S, after=after, order=order), str, limit=20)
            assert (len(found), more) == (20, True)
            assert client.made - before <= 15
    assert list(listed(store, FOLDER, "file", START_S, after=None)) == ids[::-1]


def test_lists_are_intersected_in_order() -> None:
    assert list(common([iter("965421"), iter("98541"), iter("97541")])) == ["9", "5", "4", "1"]
    assert list(common([iter("9"), iter("")])) == []
