"""Records are read one by one, within bounds; unknown fields survive a change."""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from ray_jobs.errors import CorruptObject, ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents, with_unknown_fields
from ray_jobs.storage.unreadable import MAX_DOCUMENT_BYTES, UnreadableRecords
from tests.serving.hostile_tenant import GARBAGE


class Part(BaseModel, extra="forbid", frozen=True):
    size: int


class Thing(BaseModel, extra="forbid", frozen=True):
    kind: Literal["old", "new"]
    parts: tuple[Part, ...] = ()
    colour: str = "red"


THINGS = Documents("things/", Thing, "a thing")


@pytest.mark.parametrize("what", GARBAGE)
def test_an_unreadable_record_is_skipped_counted_and_logged_once(
    store: Store, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    store.put_json("things/good.json", {"kind": "new"})
    store.put("things/bad.json", GARBAGE[what])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert THINGS.read_all(store) == {"good": Thing(kind="new")}
    assert store.unreadable.counts() == {"thing": 1}
    assert store.unreadable.keys("thing") == ["things/bad.json"]
    assert caplog.text.count("things/bad.json is skipped") == 1
    with pytest.raises(CorruptObject, match=r"things/bad\.json"):
        THINGS.read(store, "bad")
    store.put_json("things/bad.json", {"kind": "old"})
    assert list(THINGS.read_all(store)) == ["bad", "good"]
    assert store.unreadable.counts() == {"thing": 0}


def test_a_deleted_record_is_no_longer_counted(store: Store) -> None:
    store.put("things/bad.json", b"{")
    assert THINGS.read_all(store) == {}
    store.delete("things/bad.json")
    assert THINGS.read_all(store) == {}
    assert store.unreadable.counts() == {"thing": 0}


def test_a_record_of_unbounded_size_is_not_read(store: Store) -> None:
    store.put("things/bad.json", json.dumps({"kind": "new", "colour": "x" * MAX_DOCUMENT_BYTES}).encode())
    with pytest.raises(CorruptObject, match="at most"):
        THINGS.read(store, "bad")


def test_records_of_one_kind_do_not_displace_those_of_another() -> None:
    found = UnreadableRecords()
    for number in range(1000):
        found.report("job event", f"jobs/{number}", "forged")
    found.report("API key", "keys/x", "damaged")
    assert found.keys("API key") == ["keys/x"]
    assert found.counts()["job event"] < 1000


def test_the_reason_does_not_show_a_value(store: Store) -> None:
    store.put_json("things/bad.json", {"kind": "the secret", "parts": "another secret"})
    with pytest.raises(CorruptObject) as caught:
        THINGS.read(store, "bad")
    assert "secret" not in caught.value.message


def test_fields_of_a_newer_version_are_ignored_and_kept(store: Store) -> None:
    newer = {"kind": "old", "later": {"a": [1]}, "parts": [{"size": 1, "weight": 2}, {"size": 3, "weight": 4}]}
    store.put_json("things/a.json", newer)
    assert THINGS.read(store, "a") == Thing(kind="old", parts=(Part(size=1), Part(size=3)))

    def grow(old: Thing | None) -> Thing:
        assert old is not None
        return old.model_copy(update={"colour": "blue", "parts": (*old.parts, Part(size=5))})

    THINGS.update(store, "a", grow)
    assert store.get_json("things/a.json") == newer | {
        "colour": "blue",
        "parts": [{"size": 1, "weight": 2}, {"size": 3, "weight": 4}, {"size": 5}],
    }


@pytest.mark.parametrize(
    ("stored", "read", "new", "kept"),
    [
        ({"a": 1, "x": 2}, {"a": 1}, {"a": 3}, {"a": 3, "x": 2}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {"a": {}}, {"a": {}}),
        ({"a": {"b": 1, "x": 2}}, {"a": {"b": 1}}, {"a": None}, {"a": None}),
        ([{"b": 1, "x": 2}], [{"b": 1}], [], []),
    ],
)
def test_only_what_was_unknown_is_kept(stored: Any, read: Any, new: Any, kept: Any) -> None:
    assert with_unknown_fields(stored, read, new) == kept


def test_a_record_is_created_once_and_only_an_existing_one_changed(store: Store) -> None:
    first, second = Thing(kind="old"), Thing(kind="new")
    with pytest.raises(ObjectNotFound, match="a thing x does not exist"):
        THINGS.change(store, "x", lambda thing: thing)
    assert THINGS.get_or_create(store, "x", first) == first
    assert THINGS.get_or_create(store, "x", second) == first
    assert THINGS.change(store, "x", lambda thing: thing.model_copy(update={"colour": "blue"})).colour == "blue"
    assert THINGS.read(store, "x") == Thing(kind="old", colour="blue")
