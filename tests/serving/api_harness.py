"""The endpoint in this process, on a real port and a real store; engines and runners are fakes.

`run_job` does to the store what a runner does: it starts an attempt, adds events, registers versions, and finishes.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from safetensors.numpy import save_file
from starlette.types import ASGIApp

from ray_jobs import jobs, registry
from ray_jobs.data.row_validation import check_rows
from ray_jobs.deploy import needed_records, records
from ray_jobs.errors import JobError
from ray_jobs.jobs import Job, Launched
from ray_jobs.launch.launcher import Runner
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.model import Lineage
from ray_jobs.spec import DEFAULT_TEAM, JobSpec, ServingSection
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.bucket import StoreSettings
from ray_jobs.storage.workspace import teams
from serving.access.keys import StoredKeys
from serving.app import create_app
from serving.inference.router import Router
from serving.inference.traffic import Traffic
from serving.observability.middleware import ObservabilityMiddleware
from serving.settings import EndpointSettings
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.fake_backend import FakeBackend

KEY = "the-operators-key-of-the-tests"
UNPACED = 1e6
"""Refusals a second: some tests are refused thousands of times."""
_SETTINGS: dict[str, Any] = {"api_key": KEY, "refusals_per_s": UNPACED}
BASE = "tiny-chat"
DIGEST = "b" * 16


@dataclass
class ApiServer:
    """A running endpoint."""

    store: Workspace
    port: int
    launcher: FakeLauncher = field(default_factory=FakeLauncher)
    backend: FakeBackend = field(default_factory=FakeBackend)
    settings: EndpointSettings = field(default_factory=lambda: EndpointSettings(api_key=KEY, refusals_per_s=UNPACED))
    app: ObservabilityMiddleware | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def paths(self) -> set[str]:
        """Paths of all routes, as in the OpenAPI document."""
        assert self.app is not None
        return {re.sub(r":\w+}", "}", getattr(route, "path", "")) for route in self.app.routes()}

    def deploy_classifier(self, name: str) -> None:
        """Register and deploy a text classifier without training it."""
        register(self.store, make_spec(name, task="text_classification", base_model=BASE), name)
        write_deployment(self.store, name)

    def run_launched(self, *, epochs: int = 2) -> list[str]:
        """Run every pending runner to its end. Returns the ids of their jobs."""
        done = []
        for runner_id, runner in list(self.launcher.known.items()):
            if runner.state != "pending":
                continue
            self.launcher.known[runner_id] = Runner("running")
            arguments = self.launcher.arguments[runner_id]
            paused_at = arguments[arguments.index("--paused-at") + 1] if "--paused-at" in arguments else None
            with suppress(JobError):  # stopped before it began
                run_job(home_of(self.store, arguments[1]), arguments[1], Launched(paused_at), epochs=epochs)
            self.launcher.known[runner_id] = Runner("ended")
            done.append(arguments[1])
        return done


def home_of(store: Workspace, job_id: str) -> Workspace:
    """The workspace of the team that a job belongs to."""
    homes = (Workspace(store, team) for team in teams(store))
    return next(home for home in homes if jobs.find(home, job_id) is not None)


def begin_job(store: Workspace, job_id: str, launched: Launched | None = None) -> Job:
    """Start an attempt, as a runner does first."""
    spec = JobSpec.model_validate(jobs.load(store, job_id).spec)
    job = jobs.start_attempt(store, spec, launched=launched or Launched())
    job.event("info", f"attempt {job.attempt} started")
    return job


def run_job(store: Workspace, job_id: str, launched: Launched | None = None, *, epochs: int = 2) -> None:
    """Do what a runner does to the store, without training: events, versions, deployment records, result."""
    job = begin_job(store, job_id, launched)
    spec = JobSpec.model_validate(job.record.spec)
    checkpoints: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        metrics = {"step": 10 * epoch, "train_loss": 2.0 / epoch, "valid_loss": 2.5 / epoch}
        job.event("info", f"step {10 * epoch}", metrics, kind="metrics")
        version = register(store, spec, f"{job_id}-{epoch}", gated=epoch == epochs)
        registry.set_alias(store, spec.name, f"ckpt-step-{10 * epoch}", version)
        checkpoints.append(metrics | {"version": version})
    registry.set_alias(store, spec.name, "champion", checkpoints[-1]["version"])
    store.put(f"jobs/{job_id}/metrics.csv", b"step,train_loss\n10,2.0\n20,1.0\n")
    write_deployment(store, spec.name)
    job.finish(
        "succeeded",
        result={
            "model": spec.name,
            "version": checkpoints[-1]["version"],
            "base": {"loss": 3.0},
            "tuned": {"loss": 1.2},
            "base_is": "the base model",
            "checkpoints": checkpoints,
            "trained_tokens": 1234,
            "metrics_csv": f"jobs/{job_id}/metrics.csv",
        },
    )


def write_deployment(store: Workspace, name: str) -> None:
    """Write the records that a deployment writes: a base of the catalogue has none."""
    version = registry.get(store, name)
    entry = catalogue.find_base(store, version.base_name, version.base_digest)
    for record in needed_records(version, None, ServingSection(), lora_rank=8, entry=entry):
        if record.team is not None:
            records.write(store, record)


def register(store: Workspace, spec: JobSpec, mark: str, *, adapter: bool = True, gated: bool = True) -> str:
    """Register a version with placeholder weights that contain `mark`. Returns its number."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if adapter:
            (directory / "adapter_config.json").write_text(json.dumps({"r": 8}))
        save_file({"w": np.zeros(1, dtype=np.float32)}, directory / "adapter_model.safetensors", {"mark": mark})
        lineage = Lineage("d" * 16, DIGEST, spec, "0.1.0", spec.job_id, {"loss": 1.0}, gated=gated)
        return registry.register(store, spec.name, directory, lineage=lineage, lineage_digest=mark).version


def add_base(store: Workspace, name: str = BASE, tasks: tuple[str, ...] = ("chat",)) -> CatalogueEntry:
    """Add a base to the catalogue without its files, so that no tokens can be counted."""
    entry = CatalogueEntry(name=name, digest=DIGEST, source="tests", architecture="LlamaForCausalLM", tasks=tasks)
    return catalogue.add(store, entry)


class NoTokens:
    """Validates rows without counting tokens, since the base of these tests has no files."""

    def __init__(self, store: Workspace) -> None:
        self._store = store

    def __call__(
        self, key: str, filename: str, task: str | None, base: CatalogueEntry | None, columns: Any = None
    ) -> Any:
        return check_rows(self._store, key, filename, task, None, columns)


def nowhere() -> Workspace:
    """Return a store that never answers."""
    return Workspace(
        Store("s3://nowhere/x", StoreSettings(endpoint_url="http://127.0.0.1:9", patience_s=0.1)), DEFAULT_TEAM
    )


def make_app(
    router: Router, backend: FakeBackend | None = None, traffic: Traffic | None = None, **more: Any
) -> ASGIApp:
    """Create the endpoint over a given router, without a store.

    `more`: `keys`, `limiter`, `reconcile_deployments`, and settings.
    """
    given = {name: more.pop(name) for name in ("keys", "limiter", "reconcile_deployments") if name in more}
    return create_app(
        EndpointSettings(**_SETTINGS | more),
        nowhere(),
        backend or FakeBackend(),
        check_rows=NoTokens(nowhere()),
        launcher=FakeLauncher(),
        router=router,
        traffic=traffic or Traffic(),
        **given,
    )


@contextmanager
def api_server(
    store: Workspace, *, port: int | None = None, launcher: FakeLauncher | None = None, **settings: Any
) -> Iterator[ApiServer]:
    """Run the endpoint on a free port until the block ends."""
    server = ApiServer(
        store,
        port or free_port(),
        launcher or FakeLauncher(),
        settings=EndpointSettings(**_SETTINGS | settings),
    )
    app = server.app = create_app(
        server.settings,
        store,
        server.backend,
        check_rows=NoTokens(store),
        launcher=server.launcher,
        keys=StoredKeys(store, ttl_s=server.settings.key_ttl_s),
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=server.port, log_level="error", lifespan="on")
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not process.started:
        assert time.monotonic() < deadline, "the endpoint did not start"
        time.sleep(0.02)
    try:
        yield server
    finally:
        process.should_exit = True
        thread.join(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(count: int = 12, *, start: int = 0) -> bytes:
    """Return conversations as JSON Lines."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"question {i}"},
                    {"role": "assistant", "content": f"answer {i}"},
                ]
            }
        )
        for i in range(start, start + count)
    ]
    return "\n".join(lines).encode() + b"\n"
