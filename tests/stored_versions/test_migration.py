"""`kitae store migrate`: resumable, repeatable, and refused or finished before anything else writes."""

from __future__ import annotations

import tarfile
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_jobs import migration
from ray_jobs.__main__ import cli
from ray_jobs.errors import StoreError
from ray_jobs.local import embedded_store
from ray_jobs.registry import catalogue, owners
from ray_jobs.storage import Store
from tests.conftest import StoreServer
from tests.stored_versions.write import BASE, CHAT, archive


@pytest.fixture
def earlier(store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the version before, and the environment of commands on it."""
    store = Store(f"s3://{embedded_store.BUCKET}/{uuid.uuid4().hex}", store_server.settings(), cache=tmp_path / "cache")
    with tarfile.open(archive("0.2.0")) as packed:
        for member in packed:
            file = packed.extractfile(member)
            assert file is not None
            store.put(member.name, file.read())
    for name, value in store_server.environment(store.uri()).items():
        monkeypatch.setenv(name, value)
    return store


def contents(store: Store) -> dict[str, int]:
    return {info.key: info.size_bytes for info in store.list()}


def kitae(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None, done.output
    return done.output


def test_an_earlier_layout_is_refused_until_it_is_moved(earlier: Store) -> None:
    before = contents(earlier)
    with pytest.raises(StoreError, match="kitae store migrate"):
        migration.require_layout(earlier)
    done = CliRunner().invoke(cli, ["status"])
    assert isinstance(done.exception, StoreError)
    assert "would be copied" in kitae("store", "migrate", "--dry-run")
    assert contents(earlier) == before, "nothing is written"
    with pytest.raises(StoreError, match="not moved yet"):
        CliRunner().invoke(cli, ["store", "migrate", "--delete-earlier"], catch_exceptions=False)
    kitae("store", "migrate", "--yes")
    migration.require_layout(earlier)
    assert before.items() <= contents(earlier).items() | {
        (key, size) for key, size in before.items() if key.startswith("catalogue/")
    }, "the earlier keys stay"
    assert "has the present layout" in kitae("store", "migrate")
    assert CHAT in kitae("models")


def test_a_move_goes_on_where_it_stopped_and_ends_the_same(
    earlier: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = migration.plan(earlier)
    whole, copied = Store.copy, list[str]()

    def interrupted(store: Store, key: str, target: str) -> None:
        if len(copied) >= len(plan.copies) // 2:
            raise StoreError("the store went away")
        copied.append(key)
        whole(store, key, target)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "copy", interrupted)
        with pytest.raises(StoreError, match="went away"):
            migration.run(earlier, plan)
    assert migration.read_layout(earlier) is None
    with pytest.raises(StoreError, match="kitae store migrate"):
        migration.require_layout(earlier)
    again = migration.plan(earlier)
    assert sorted(again.copies) == sorted(plan.copies)
    migration.run(earlier, again)
    sizes = contents(earlier)
    assert all(sizes[key] == sizes[target] for key, target in plan.copies)
    assert plan.left == []
    assert owners.claimed_by(earlier, CHAT) == "default"
    entry = catalogue.find(earlier, BASE)
    assert entry is not None
    assert earlier.read_manifest(entry.key) is not None


def test_earlier_keys_are_deleted_on_request(earlier: Store) -> None:
    kitae("store", "migrate", "--yes")
    moved = {target for _, target in migration.plan(earlier).copies}
    gone = set(migration.earlier_keys(earlier))
    assert gone
    assert not gone & moved
    kitae("store", "migrate", "--delete-earlier", "--yes")
    assert migration.earlier_keys(earlier) == []
    assert moved <= set(contents(earlier))
    assert CHAT in kitae("models")


def test_an_empty_store_has_the_present_layout(earlier: Store) -> None:
    empty = earlier.at(f"{earlier.uri()}-empty")
    migration.require_layout(empty)
    assert migration.read_layout(empty) == migration.LAYOUT
    empty.put_json(migration.MARK, {"layout": migration.LAYOUT + 1})
    with pytest.raises(StoreError, match="use a newer one"):
        migration.require_layout(empty)
