"""Killed processes and servers, lost answers and failing stores."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs.errors import (
    ConflictError,
    ObjectNotFound,
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from ray_jobs.storage import Store
from ray_jobs.storage.transfer import PART_BYTES
from tests.conftest import StoreServer, start_store_server, stop_store_server
from tests.repository import ROOT
from tests.storage.builders import MB, contents, make_tree, save
from tests.storage.faulty_store import Forward, Request, Response, error, faulty


@pytest.fixture
def fragile_server(tmp_path: Path) -> Iterator[StoreServer]:
    """A server for one test, to be killed."""
    server = start_store_server(tmp_path / "server")
    yield server
    stop_store_server(server)


def test_a_killed_upload_leaves_nothing_to_read(
    store: Store, store_environment: dict[str, str], tmp_path: Path
) -> None:
    directory = make_tree(tmp_path / "in", a=60 * MB, b=60 * MB, c=1000)
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from ray_jobs.storage import Store

        store = Store.from_env(check=False)
        files = store.upload_tree(Path(sys.argv[1]), "t", progress=lambda done, total: print(done, flush=True))
        store.commit("t", files, {})
        """)
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 30 * MB:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait(30) == -signal.SIGKILL
    assert store.read_manifest("t") is None
    with pytest.raises(ObjectNotFound, match="nothing is committed"):
        store.fetch("t")
    save(store, directory, "t")
    assert contents(store.fetch("t")) == contents(directory)


def kill_in_the_middle(server: StoreServer, *, away_s: float) -> Callable[[int, int], None]:
    """A progress function that kills the server after a third of the bytes and restarts it after `away_s`."""
    killed = threading.Event()

    def restart() -> None:
        server.kill()
        time.sleep(away_s)
        server.start()

    def progress(done: int, total: int) -> None:
        if done > total / 3 and not killed.is_set():
            killed.set()
            thread = threading.Thread(target=restart)
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    progress.threads = threads  # type: ignore[attr-defined]  # to be joined by the test
    return progress


def test_a_transfer_survives_kill_9_of_the_store(fragile_server: StoreServer, tmp_path: Path) -> None:
    store = Store("s3://kitae/x", fragile_server.settings(), cache=tmp_path / "cache")
    directory = make_tree(tmp_path / "in", a=60 * MB, b=30 * MB, c=1000, d=10 * MB)
    up = kill_in_the_middle(fragile_server, away_s=2)
    files = store.upload_tree(directory, "t", progress=up)
    (thread,) = up.threads  # type: ignore[attr-defined]
    thread.join()
    store.commit("t", files, {})
    down = kill_in_the_middle(fragile_server, away_s=2)
    tree = store.fetch("t", progress=down)
    (thread,) = down.threads  # type: ignore[attr-defined]
    thread.join()
    assert contents(tree) == contents(directory)
    store.put("after", b"1", if_absent=True)


def test_an_absent_store_is_reported_after_the_patience(fragile_server: StoreServer, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=3 * PART_BYTES, **{f"n{i}": 10 for i in range(20)})
    store = Store("s3://kitae/x", fragile_server.settings(patience_s=2))
    fragile_server.kill()
    for use in (
        lambda: store.get("a"),
        lambda: store.upload_tree(directory, "t"),
        lambda: list(store.list()),
        store.probe,
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnreachable, match="KITAE_STORE_PATIENCE_S") as caught:
            use()
        assert 2 <= time.monotonic() - started < 10
        assert fragile_server.endpoint_url in str(caught.value)
        assert fragile_server.credentials.secret_access_key not in str(caught.value)


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
def test_a_write_with_a_lost_answer_is_not_a_conflict(store_server: StoreServer, tmp_path: Path, size: int) -> None:
    lost: list[str] = []

    def fault(request: Request, forward: Forward) -> Response | None:
        response = forward(request)
        if "if-none-match" in request.headers and request.path not in lost:
            assert response.status == 200
            lost.append(request.path)
            return None
        return response

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        store.put("claim", b"mine", if_absent=True)
        with pytest.raises(ConflictError):
            store.put("claim", b"yours", if_absent=True)
        manifest = save(store, make_tree(tmp_path / "in", a=size), "t")
        assert store.read_manifest("t") == manifest
    assert len(lost) == 3


def test_requests_to_an_overloaded_store_are_retried(store_server: StoreServer, tmp_path: Path) -> None:
    count = 0

    def fault(request: Request, forward: Forward) -> Response | None:
        nonlocal count
        count += 1
        match count % 4:
            case 0:
                return error(503, "SlowDown")
            case 1:
                return error(500, "InternalError")
            case 2:
                return None
        return forward(request)

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        for number in range(5):
            store.put(f"a{number}", b"x", if_absent=True)
            assert store.get(f"a{number}") == b"x"


@pytest.mark.parametrize(
    ("status", "code", "kind", "message", "again"),
    [
        (500, "InternalError", StoreUnreachable, "its disk may be full", True),
        (507, "XMinioStorageFull", StoreFull, "has no room", False),
        (403, "QuotaExceeded", StoreFull, "has no room", False),
        (400, "InvalidArgument", StoreError, "400 InvalidArgument: made by a test", False),
        (403, "RequestTimeTooSkewed", StoreAccessDenied, "clock", False),
        (400, "IllegalLocationConstraintException", StoreUnreachable, "AWS_REGION", False),
    ],
)
def test_the_answer_of_a_store_becomes_an_error(
    store_server: StoreServer, status: int, code: str, kind: type[StoreError], message: str, again: bool
) -> None:
    asked: list[str] = []

    def fault(request: Request, forward: Forward) -> Response:
        if request.method == "PUT":  # botocore also requests the bucket's region
            asked.append(request.path)
        return error(status, code)

    with faulty(store_server.settings(patience_s=1), fault) as settings, pytest.raises(kind, match=message) as caught:
        Store("s3://kitae/x", settings).put("a", b"1")
    assert type(caught.value) is kind
    assert (len(asked) > 1) == again
