"""An endpoint over a store in memory, with a deployed model `greeter` that echoes, and clients of two teams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

from ray_jobs import registry
from ray_jobs.registry import shares
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys
from tests.serving.api_harness import ApiServer, add_base, api_server
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import deploy_version, register_next
from tests.storage.memory_store import MemoryClient, memory_store

TEAM, OTHER = "default", "other"
MODEL = "greeter"


@dataclass
class AnswersServer:
    """The endpoint and what tests look at."""

    server: ApiServer
    memory: MemoryClient
    client: openai.OpenAI
    """A client of the team `default`."""
    other: openai.OpenAI
    """A client of another team, with which the model is shared."""

    @property
    def store(self) -> Workspace:
        return self.server.store

    @property
    def backend(self) -> FakeBackend:
        return self.server.backend

    @property
    def asked(self) -> dict[str, Any]:
        """What the engine was asked last."""
        return self.backend.calls[-1][2]

    def wait(self, days: float) -> None:
        """Let time pass at the store."""
        self.memory.clock.at_s += days * 86_400

    def outcome(self, outcome: str) -> float:
        """Count of stored answers with an outcome, as `/metrics` has it."""
        assert self.server.app is not None
        name = "kitae_stored_answers_total"
        return self.server.app._metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


@contextmanager
def answers_server(**settings: Any) -> Iterator[AnswersServer]:
    store, memory = memory_store()
    add_base(store)
    version = register_next(store, MODEL)
    deploy_version(store, registry.get(store, f"{MODEL}@{version.version}"))
    shares.share(store, MODEL, everyone=True)
    with api_server(store, **settings) as server:

        def client(team: str) -> openai.OpenAI:
            key = api_keys.create(store, team, "tests")[1]
            return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

        with client(TEAM) as ours, client(OTHER) as theirs:
            yield AnswersServer(server, memory, ours, theirs)
