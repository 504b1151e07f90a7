"""Fixtures every test may use: a real S3 server for each test process, and an empty store on it for each test."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_jobs.local import embedded_store, processes
from ray_jobs.local.embedded_store import Credentials, StorePorts
from ray_jobs.local.processes import Process
from ray_jobs.storage import Store
from ray_jobs.storage.bucket import Settings


@dataclass
class StoreServer:
    """A running embedded store that a test may kill and start again; its data and address stay the same."""

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

    def settings(self, *, patience_s: float = 60.0) -> Settings:
        return Settings(
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
        assert not self.closed, "the test that this server was for is over"
        log = self.directory / "weed.log"
        environment = {**os.environ, processes.MARK: self.mark}
        self.process = embedded_store.start(
            self.directory / "data", log, self.ports, self.credentials, environment=environment
        )
        # A test run that is killed cannot clean up: its end of this pipe closes, and the shell goes on to the kill.
        command = ["sh", "-c", 'read _; kill -9 "$0"', str(self.process.pid)]
        self.guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        embedded_store.wait_until_ready(self.process, self.ports, self.credentials, log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.guard is not None:  # first, for once the server has ended its pid may be another's
            self.guard.kill()
            self.guard.wait()
            assert self.guard.stdin is not None
            self.guard.stdin.close()
            self.guard = None
        if self.process.alive:
            os.kill(self.process.pid, how)
        processes.stop([self.process], self.mark)

    def kill(self) -> None:
        """As kill -9 does it."""
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
    """The S3 server of this test process. Whoever kills it starts it again."""
    server = start_store_server(tmp_path_factory.mktemp("store"))
    yield server
    stop_store_server(server)


@pytest.fixture
def store(store_server: StoreServer, tmp_path: Path) -> Store:
    """An empty store, with a cache of its own."""
    uri = f"s3://{embedded_store.BUCKET}/{uuid.uuid4().hex}"
    return Store(uri, store_server.settings(), cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def module_store(store_server: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for all tests of a module."""
    uri = f"s3://{embedded_store.BUCKET}/{uuid.uuid4().hex}"
    return Store(uri, store_server.settings(), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def store_environment(store: Store, store_server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment names the test's store, so that `Store.from_env()` here and in child processes opens it."""
    variables = store_server.environment(store.uri())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of 64 KiB, in which temporary files are made."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a file may still be mapped
