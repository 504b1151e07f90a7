"""Fixtures for every test: an S3 server a test process, an empty store a test, and one Ray cluster for the session.

Also marks the slow tests, and decides which heavy tests run in one process: those that share the cluster, and
otherwise those of one file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from ray_jobs.local import embedded_store, processes
from ray_jobs.local.embedded_store import Credentials, StorePorts
from ray_jobs.local.processes import Process
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.bucket import StoreSettings
from tests.repository import ROOT

if TYPE_CHECKING:
    from tests.pipeline.live_service import Service

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # two tests run at the same time; see `ray_head`
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

HEAVY_ORDER = ("ray_service", "test_end_to_end", "test_endpoint")
"""Groups of heavy tests that start first, the longest in front; `make test` deals groups to two processes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put the heavy ones behind the others, group by group."""
    slow = slow_tests()
    for item in items:
        if any(item.nodeid.startswith(name) for name in slow):
            item.add_marker(pytest.mark.slow)
    order = {group: place for place, group in enumerate(HEAVY_ORDER)}

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("heavy") is None:
            return -1
        return order.get(heavy_group(item.nodeid.partition("::")[0]), len(order))

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal groups of heavy tests to processes with `--dist loadgroup`.

    pytest-xdist's own scheduler reads the group from the test's id, where pytest 9.2 no longer lets it write it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class HeavyGroups(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return heavy_group(nodeid.partition("::")[0])

    return HeavyGroups(config, log) if config.getvalue("dist") == "loadgroup" else None


@cache
def heavy_group(file: str) -> str:
    """The group of a file's heavy tests: files that use the session's Ray cluster share one."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return "ray_service" if "ray_service" in text else Path(file).stem


def slow_tests() -> tuple[str, ...]:
    """The lines of slow.txt: beginnings of test ids."""
    lines = (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


@dataclass
class StoreServer:
    """A running embedded store that a test may kill and start again; its data and address stay."""

    directory: Path
    ports: StorePorts
    credentials: Credentials
    process: Process
    mark: str
    closed: bool = False
    guard: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return embedded_store.endpoint_url(self.ports)

    def settings(self, *, patience_s: float = 60.0) -> StoreSettings:
        return StoreSettings(
            endpoint_url=self.endpoint_url,
            access_key_id=self.credentials.access_key_id,
            secret_access_key=self.credentials.secret_access_key,
            patience_s=patience_s,
        )

    def environment(self, uri: str) -> dict[str, str]:
        """The variables that a process needs for `Store.from_env()` on this server."""
        return {
            "KITAE_STORE": uri,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_access_key,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        assert not self.closed, "the test that used this server has ended"
        log = self.directory / "weed.log"
        environment = {**os.environ, processes.MARK: self.mark}
        self.process = embedded_store.start(
            self.directory / "data", log, self.ports, self.credentials, environment=environment
        )
        # A test run that is killed cannot clean up: its end of this pipe closes, and the shell kills the server.
        command = ["sh", "-c", 'read _; kill -9 "$0"', str(self.process.pid)]
        self.guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        embedded_store.wait_until_ready(self.process, self.ports, self.credentials, log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.guard is not None:  # first: once the server has ended, another process may get its pid
            self.guard.kill()
            self.guard.wait()
            assert self.guard.stdin is not None
            self.guard.stdin.close()
            self.guard = None
        if self.process.alive:
            os.kill(self.process.pid, how)
        processes.stop([self.process], self.mark)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.stop(signal.SIGKILL)


def start_store_server(directory: Path) -> StoreServer:
    server = StoreServer(
        directory,
        embedded_store.choose_ports(),
        Credentials("test-key", uuid.uuid4().hex),
        Process(0, ""),
        uuid.uuid4().hex,
    )
    try:
        server.start()
    except BaseException:
        stop_store_server(server)
        raise
    return server


def stop_store_server(server: StoreServer) -> None:
    server.closed = True
    server.stop()
    embedded_store.remove_sockets(server.ports)


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    """The S3 server of this test process. A test that kills it starts it again."""
    server = start_store_server(tmp_path_factory.mktemp("store"))
    yield server
    stop_store_server(server)


@pytest.fixture
def store(store_server: StoreServer, tmp_path: Path) -> Workspace:
    """The workspace of the team `default` in an empty store with its own cache; `.root` is the whole store."""
    uri = f"s3://{embedded_store.BUCKET}/{uuid.uuid4().hex}"
    return Workspace(Store(uri, store_server.settings(), cache=tmp_path / "cache"), DEFAULT_TEAM)


@pytest.fixture(scope="module")
def module_store(store_server: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """As `store`, for all tests of a module."""
    uri = f"s3://{embedded_store.BUCKET}/{uuid.uuid4().hex}"
    return Workspace(Store(uri, store_server.settings(), cache=tmp_path_factory.mktemp("cache")), DEFAULT_TEAM)


@pytest.fixture
def store_environment(store: Store, store_server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sets the environment so that `Store.from_env()` opens the test's store, here and in child processes."""
    variables = store_server.environment(store.uri())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture(scope="session")
def ray_service(store_server: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Ray cluster with token authentication for the session's heavy tests, and `kitae` commands on it.

    Commands reach the store through a gateway. What a test leaves dead is started again after it.
    """
    from tests.pipeline.live_service import live_service

    with live_service(tmp_path_factory.mktemp("service"), store_server) as service:
        yield service


@pytest.fixture(autouse=True)
def recovered_service(request: pytest.FixtureRequest) -> Iterator[None]:
    service = request.getfixturevalue("ray_service") if "ray_service" in request.fixturenames else None
    yield
    if service is not None:
        service.recover()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 64 KiB in which temporary files are created."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a file may still be mapped
