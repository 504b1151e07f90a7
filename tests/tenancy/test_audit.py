"""The audit log: entries are written before their action, once, and read by team, day and action."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from ray_jobs.errors import RegistryError, SpecError, StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy import audit
from ray_jobs.tenancy.audit import Actor, Entry

ALICE = Actor(name="alice@laptop", via="cli")


def today() -> date:
    return datetime.now(UTC).date()


def entries(store: Store, team: str | None = None, action: str | None = None) -> list[Entry]:
    return audit.read(store, today() - timedelta(days=1), today(), team=team, action=action)


def test_an_entry_is_there_before_its_action_and_says_if_it_failed(store: Store) -> None:
    with audit.recorded(store, ALICE, "share.add", "faq", team="blue", details={"teams": ["red"]}):
        (entry,) = entries(store)
    assert (entry.actor, entry.action, entry.target, entry.team) == (ALICE, "share.add", "faq", "blue")
    assert entry.details == {"teams": ["red"]}
    assert abs(datetime.now(UTC) - entry.at) < timedelta(minutes=1)
    with pytest.raises(RegistryError), audit.recorded(store, ALICE, "share.add", "faq", team="blue"):
        raise RegistryError("no model 'faq'", details=["a detail"])
    assert [entry.failed for entry in entries(store)] == [None, "no model 'faq'"]


def test_nothing_is_done_that_cannot_be_recorded() -> None:
    from tests.serving.api_harness import nowhere

    with pytest.raises(StoreError), audit.recorded(nowhere(), ALICE, "key.create", "app"):
        raise AssertionError("done")


def test_entries_are_found_by_team_day_and_action(store: Store) -> None:
    for action, team in (("key.create", "blue"), ("key.revoke", "red"), ("alias.set", "blue")):
        with audit.recorded(store, ALICE, action, "x", team=team):  # type: ignore[arg-type]  # they are actions
            pass
    assert [entry.action for entry in entries(store)] == ["key.create", "key.revoke", "alias.set"]
    assert [entry.action for entry in entries(store, team="blue")] == ["key.create", "alias.set"]
    assert [entry.team for entry in entries(store, action="key")] == ["blue", "red"]
    assert [entry.team for entry in entries(store, action="key.revoke", team="red")] == ["red"]
    assert audit.read(store, date(2020, 1, 1), date(2020, 12, 31)) == []
    with pytest.raises(SpecError, match=r"did you mean 'key\.create'"):
        entries(store, action="key.creates")


def test_what_several_processes_do_has_one_entry(store: Store) -> None:
    ended_at = datetime.now(UTC)
    for _ in range(3):
        audit.record_once(store, ALICE, "model.register", "faq", at=ended_at, mark="7")
    assert len(entries(store)) == 1


def test_an_unreadable_entry_hides_no_other(store: Store) -> None:
    with audit.recorded(store, ALICE, "key.create", "x"):
        store.put(f"audit/{today()}/000000000000-bad.json", b"{")
    assert [entry.action for entry in entries(store)] == ["key.create"]
    assert store.unreadable.keys("entry of the audit log")


def test_texts_are_bounded(store: Store) -> None:
    with audit.recorded(store, ALICE, "file.delete", "x" * 9999, details={"jobs": ["y" * 9999] * 500}):
        (entry,) = entries(store)
    assert len(entry.target) == 500
    assert isinstance(entry.details["jobs"], list)
    assert entry.details["jobs"][-1] == "and 400 more"
