"""Fixtures every test may use: a real S3 server for each test process, and an empty store on it for each test."""

from __future__ import annotations

import os
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
        log = self.directory / "weed.log"
        environment = {**os.environ, processes.MARK: self.mark}
        self.process = embedded_store.start(
            self.directory / "data", log, self.ports, self.credentials, environment=environment
        )
        embedded_store.wait_until_ready(self.process, self.ports, self.credentials, log)

    def kill(self) -> None:
        """As kill -9 does it."""
        os.kill(self.process.pid, 9)
        processes.stop([self.process], self.mark)


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
    processes.stop([server.process], server.mark)
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


@pytest.fixture
def store_environment(store: Store, store_server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment names the test's store, so that `Store.from_env()` here and in child processes opens it."""
    variables = store_server.environment(store.uri())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables
