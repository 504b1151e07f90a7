"""A kind kept up to date by watching: what breaks on the way changes nothing but how long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ray_jobs.cluster import informer as mirrors
from ray_jobs.cluster.client import CONFIG_MAP
from ray_jobs.cluster.informer import Mirror
from ray_jobs.errors import ClusterError, ClusterUnreachable, Expired
from tests.cluster.fake_kubernetes import FakeKubernetes, fake_kubernetes
from tests.cluster.kubernetes_objects import Object


@pytest.fixture
def server() -> Iterator[FakeKubernetes]:
    with fake_kubernetes(watch_ends_when_idle=True) as running:
        yield running


@pytest.fixture
def mirror(server: FakeKubernetes) -> Mirror:
    return Mirror(server.connect(), CONFIG_MAP, "blue", {"app": "kitae"})


def add(server: FakeKubernetes, name: str, app: str = "kitae") -> None:
    metadata = {"name": name, "labels": {"app": app}}
    body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}
    server.objects.create(CONFIG_MAP, body, "blue")


def names(mirror: Mirror) -> list[str] | None:
    items = mirror.items()
    return None if items is None else sorted(found["metadata"]["name"] for found in items)


def test_a_list_and_then_what_changes(server: FakeKubernetes, mirror: Mirror) -> None:
    assert names(mirror) is None  # nothing was heard yet
    add(server, "a")
    mirror.step()
    assert names(mirror) == ["a"]
    add(server, "b")
    add(server, "c", app="other")
    server.objects.patch(CONFIG_MAP, "a", {"data": {"x": "1"}}, "blue")
    mirror.step()
    assert names(mirror) == ["a", "b"]
    assert [found["data"] for found in mirror.items() or [] if found["metadata"]["name"] == "a"] == [{"x": "1"}]
    server.objects.delete(CONFIG_MAP, "a", "blue")
    server.objects.patch(CONFIG_MAP, "b", {"metadata": {"labels": {"app": "other"}}}, "blue")
    mirror.step()
    assert names(mirror) == []
    assert [r.verb for r in server.requests] == ["list", "watch", "watch"]


def test_a_name_that_is_deleted_and_made_again_is_another_object(server: FakeKubernetes, mirror: Mirror) -> None:
    add(server, "a")
    mirror.step()
    server.objects.delete(CONFIG_MAP, "a", "blue")
    add(server, "a")
    mirror.step()
    assert names(mirror) == ["a"]


def test_a_version_that_is_no_longer_kept_is_listed_again(server: FakeKubernetes, mirror: Mirror) -> None:
    add(server, "a")
    mirror.step()
    server.objects.delete(CONFIG_MAP, "a", "blue")
    add(server, "b")
    server.objects.forget()
    with pytest.raises(Expired):
        mirror.step()
    assert names(mirror) == ["a"]  # until it is known better
    mirror.step()
    assert names(mirror) == ["b"]


def test_a_broken_watch_goes_on_from_what_it_has_told(server: FakeKubernetes, mirror: Mirror) -> None:
    mirror.step()
    add(server, "a")
    add(server, "b")
    server.drop(after=True, when=lambda request: request.verb == "watch")
    with pytest.raises(ClusterUnreachable):
        mirror.step()
    assert names(mirror) == ["a"]
    mirror.step()
    assert names(mirror) == ["a", "b"]
    assert [r.verb for r in server.requests] == ["list", "watch", "watch"]


def test_after_a_long_silence_nothing_is_said(
    server: FakeKubernetes, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.step()
    assert names(mirror) == []
    server.down = True
    with pytest.raises(ClusterError):
        mirror.step()
    monkeypatch.setattr(mirrors, "BELIEVED_S", -1.0)
    assert names(mirror) is None
    with pytest.raises(ClusterError):
        mirror.list()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_follows_through_everything(server: FakeKubernetes, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_LONGEST_WAIT_S", 0.05)
    server.watch_ends_when_idle = False
    stop = threading.Event()
    mirror.watch_s = 1.0
    thread = threading.Thread(target=mirror.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        for number, trouble in enumerate(
            (
                lambda: None,
                lambda: server.fail(500, times=3),
                lambda: server.drop(times=5),
                server.expire_token,
                server.objects.forget,
                lambda: setattr(server, "down", True),
                server.heal,
            )
        ):
            trouble()
            add(server, f"m{number}")
            if not server.down:
                eventually(lambda: len(names(mirror) or []) == number + 1)  # noqa: B023  # called at once
    finally:
        stop.set()
        server.objects.create(
            CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "end"}, "data": {}}, "blue"
        )
        thread.join(timeout=20)
    assert not thread.is_alive()
