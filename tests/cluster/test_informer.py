"""The informer: lists, watches, and recovery from every fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ray_jobs.cluster.informer import Informer
from ray_jobs.cluster.kinds import CONFIG_MAP, Object
from ray_jobs.errors import ClusterError, ClusterUnreachable, Expired
from tests.cluster.fake_kubernetes import FakeKubernetes, fake_kubernetes


@pytest.fixture
def server() -> Iterator[FakeKubernetes]:
    with fake_kubernetes(watch_ends_when_idle=True) as running:
        yield running


@pytest.fixture
def informer(server: FakeKubernetes) -> Informer:
    return Informer(server.connect(), CONFIG_MAP, "blue", {"app": "kitae"})


def add(server: FakeKubernetes, name: str, app: str = "kitae") -> None:
    metadata = {"name": name, "labels": {"app": app}}
    body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}
    server.objects.create(CONFIG_MAP, body, "blue")


def names(informer: Informer) -> list[str] | None:
    items = informer.items()
    return None if items is None else sorted(found["metadata"]["name"] for found in items)


def test_a_list_and_then_changes(server: FakeKubernetes, informer: Informer) -> None:
    assert names(informer) is None  # no answer yet
    add(server, "a")
    informer.step()
    assert names(informer) == ["a"]
    add(server, "b")
    add(server, "c", app="other")
    server.objects.patch(CONFIG_MAP, "a", {"data": {"x": "1"}}, "blue")
    informer.step()
    assert names(informer) == ["a", "b"]
    assert [found["data"] for found in informer.items() or [] if found["metadata"]["name"] == "a"] == [{"x": "1"}]
    server.objects.delete(CONFIG_MAP, "a", "blue")
    server.objects.patch(CONFIG_MAP, "b", {"metadata": {"labels": {"app": "other"}}}, "blue")
    informer.step()
    assert names(informer) == []
    assert [r.verb for r in server.requests] == ["list", "watch", "watch"]


def test_a_deleted_and_recreated_name_is_another_object(server: FakeKubernetes, informer: Informer) -> None:
    add(server, "a")
    informer.step()
    server.objects.delete(CONFIG_MAP, "a", "blue")
    add(server, "a")
    informer.step()
    assert names(informer) == ["a"]


def test_an_expired_version_is_listed_again(server: FakeKubernetes, informer: Informer) -> None:
    add(server, "a")
    informer.step()
    server.objects.delete(CONFIG_MAP, "a", "blue")
    add(server, "b")
    server.objects.forget()
    with pytest.raises(Expired):
        informer.step()
    assert names(informer) == ["a"]  # until the next list
    informer.step()
    assert names(informer) == ["b"]


def test_a_broken_watch_resumes_after_the_last_event(server: FakeKubernetes, informer: Informer) -> None:
    informer.step()
    add(server, "a")
    add(server, "b")
    server.drop(after=True, when=lambda request: request.verb == "watch")
    with pytest.raises(ClusterUnreachable):
        informer.step()
    assert names(informer) == ["a"]
    informer.step()
    assert names(informer) == ["a", "b"]
    assert [r.verb for r in server.requests] == ["list", "watch", "watch"]


def test_an_old_copy_is_not_given_out(server: FakeKubernetes, informer: Informer) -> None:
    informer.step()
    assert names(informer) == []
    server.down = True
    with pytest.raises(ClusterError):
        informer.step()
    informer.fresh_s = -1.0
    assert names(informer) is None


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_follow_recovers_from_every_fault(server: FakeKubernetes, informer: Informer) -> None:
    informer.longest_wait_s = 0.05
    server.watch_ends_when_idle = False
    stop = threading.Event()
    informer.watch_s = 1.0
    thread = threading.Thread(target=informer.follow, args=(stop,), daemon=True)
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
                eventually(lambda: len(names(informer) or []) == number + 1)  # noqa: B023  # called at once
    finally:
        stop.set()
        server.objects.create(
            CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "end"}, "data": {}}, "blue"
        )
        thread.join(timeout=20)
    assert not thread.is_alive()
