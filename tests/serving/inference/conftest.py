"""Fixtures of the inference tests."""

from __future__ import annotations

import pytest

from ray_jobs import registry
from ray_jobs.storage import Workspace
from tests.serving.routing import deploy_version, register_next


@pytest.fixture
def greeter(store: Workspace) -> str:
    """The name of a deployed model with three versions, the first its champion."""
    for _ in range(3):
        deploy_version(store, register_next(store))
    registry.set_alias(store, "greeter", "champion", "1")
    return "greeter"
