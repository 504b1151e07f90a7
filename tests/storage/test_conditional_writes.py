"""Single objects: conditional writes, updates, listings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import (
    ConflictError,
    CorruptObject,
    ObjectNotFound,
)
from ray_jobs.storage import Store
from tests.storage.builders import at_once


def test_put_and_get(store: Store) -> None:
    etag = store.put("a/b", b"\0\xff")
    assert store.get("a/b") == b"\0\xff"
    assert store.get_with_etag("a/b") == (b"\0\xff", etag)
    assert store.exists("a/b")
    assert not store.exists("a")
    store.put_json("ja", {"名": ["é", 1.5, None]})
    assert store.get("ja") == '{"名":["é",1.5,null]}'.encode()
    assert store.get_json("ja") == {"名": ["é", 1.5, None]}


def test_an_absent_key_is_not_found(store: Store) -> None:
    for ask in (store.get, store.get_json, lambda key: store.download_file(key, Path("never"))):
        with pytest.raises(ObjectNotFound, match="absent"):
            ask("absent")
    store.delete("absent")
    assert list(store.list("absent")) == []
    assert store.list_dirs("absent") == []


def test_nan_is_not_json(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put_json("a", {"loss": float("nan")})
    store.put("a", b"{")
    with pytest.raises(CorruptObject, match="not JSON"):
        store.get_json("a")


def test_conditional_writes(store: Store) -> None:
    first = store.put("a", b"1", if_absent=True)
    with pytest.raises(ConflictError):
        store.put("a", b"2", if_absent=True)
    second = store.put("a", b"2", if_match=first)
    with pytest.raises(ConflictError):
        store.put("a", b"3", if_match=first)
    with pytest.raises(ConflictError):
        store.put("b", b"3", if_match=second)
    assert store.get("a") == b"2"
    assert not store.exists("b")


def test_one_of_sixteen_claims_of_a_key_wins(store: Store) -> None:
    for attempt in range(5):

        def claim(number: int, key: str = f"claim/{attempt}") -> int | None:
            try:
                store.put(key, b"%d" % number, if_absent=True)
            except ConflictError:
                return None
            return number

        winners = [number for number in at_once(16, claim) if number is not None]
        assert len(winners) == 1
        assert store.get(f"claim/{attempt}") == b"%d" % winners[0]


def test_no_update_is_lost_among_sixteen_writers(store: Store) -> None:
    def add(document: dict[str, Any] | None) -> dict[str, Any]:
        return {"count": 1 if document is None else document["count"] + 1}

    at_once(16, lambda _: [store.update_json("counter", add) for _ in range(3)])
    assert store.get_json("counter") == {"count": 48}


def test_an_update_that_changes_nothing_writes_nothing(store: Store) -> None:
    etag = store.put_json("a", {"x": 1})
    assert store.update_json("a", lambda old: dict(old or {})) == {"x": 1}
    assert store.get_with_etag("a")[1] == etag


def test_a_listing_is_by_folder_and_relative_to_the_root(store: Store) -> None:
    for key in ("m/a/1/x", "m/a/2/x", "m/ab/1/x", "m/top"):
        store.put(key, b"12")
    assert [info.key for info in store.list("m/a")] == ["m/a/1/x", "m/a/2/x"]
    assert [info.key for info in store.list("m/a/")] == ["m/a/1/x", "m/a/2/x"]
    assert {info.size_bytes for info in store.list()} == {2}
    assert store.list_dirs("m") == ["a", "ab"]
    assert store.list_dirs("m/a/") == ["1", "2"]
    other = store.at(store.uri("m"))
    assert [info.key for info in other.list("ab")] == ["ab/1/x"]
    assert other.get("top") == b"12"
    assert other.uri("top") == store.uri("m/top")


def test_a_listing_longer_than_a_page(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04d}", b""), range(1050)))
    assert [info.key for info in store.list("many")] == [f"many/{number:04d}" for number in range(1050)]
