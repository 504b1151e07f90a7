"""Fixtures of the serving tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from ray_jobs.storage import Workspace
from tests.serving.api_harness import KEY, ApiServer, add_base, api_server
from tests.serving.routing import make_client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of an endpoint with three versions of an adapter."""
    with make_client() as client:
        yield client


@pytest.fixture
def server(store: Workspace) -> Iterator[ApiServer]:
    """A running endpoint with one base in the catalogue."""
    add_base(store)
    with api_server(store) as running:
        yield running


@pytest.fixture
def http(server: ApiServer) -> Iterator[httpx.Client]:
    """A client of the running endpoint, with the operator's key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as client:
        yield client
