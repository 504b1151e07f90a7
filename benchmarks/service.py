"""Two servers of one model side by side: the endpoint, started by `kitae local up` and a deployment, and vLLM's own.

Owns their start with the same engine settings, adapters with random weights, and the endpoint's processes. Sends no
requests (`load` does).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.load import Server
from benchmarks.workbench import MODEL, Workbench, make_spec
from ray_jobs import deploy, local, registry
from ray_jobs.deploy import needed_records, records
from ray_jobs.deploy.serve_api import INGRESS, ServeClient, ServeSettings
from ray_jobs.engine import cpu_hardware, engine_environment, engine_kwargs
from ray_jobs.errors import MachineError
from ray_jobs.local import processes
from ray_jobs.local.embedded_store import tail
from ray_jobs.models import bases
from ray_jobs.registry.model import Lineage, ModelVersion
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Workspace
from serving.inference.llm import engine_settings

ADAPTER = "tuned"
SERVING = ServingSection(max_ongoing_requests=16, max_queued_requests=16, max_model_len=1024, kv_cache_gib=0.5)
"""Engine settings: as many concurrent requests as clients, and as many queued, which this machine answers in a few
seconds."""
RANK = 16
_START_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Sides:
    """Both servers, ready."""

    endpoint: Server
    direct: Server
    store: Workspace
    settings: ServeSettings
    base: bases.Base
    base_directory: Path
    scratch: Path

    def register(self, name: str, seed: int) -> ModelVersion:
        """Register a new adapter that is not deployed yet."""
        directory = write_adapter(self.scratch / name, self.base_directory, seed)
        spec = make_spec(name=name, steps=1, batch_size=1).model_copy(update={"serving": SERVING})
        lineage = Lineage("d" * 16, self.base.digest, spec, "benchmark", "job", {})
        return registry.register(self.store, name, directory, lineage=lineage, lineage_digest=name)

    def record(self, version: ModelVersion) -> None:
        """Write the deployment records, as a job's last stage does when its base's engine runs."""
        for record in needed_records(version, None, SERVING, lora_rank=RANK):
            records.write(self.store, record)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The endpoint's processes: Serve's proxy, the ingress and the engine, each with its children."""
        with ServeClient(self.settings) as serve:
            applications = serve.details()["applications"]
        pids = {
            "ingress" if name == INGRESS else "engine": replica["pid"]
            for name, application in applications.items()
            for deployment in application["deployments"].values()
            for replica in deployment["replicas"]
        }
        found = {name: psutil.Process(pid) for name, pid in pids.items()}
        beside = found["ingress"].parent()
        assert beside is not None  # Ray's node manager, which starts every worker
        found["proxy"] = next(child for child in beside.children() if "ProxyActor" in " ".join(child.cmdline()))
        return {name: [process, *process.children(recursive=True)] for name, process in found.items()}


@contextmanager
def side_by_side(bench: Workbench) -> Iterator[Sides]:
    """Start both servers and stop them afterwards. Raises MachineError if one does not start."""
    root = bench.directory / "service"
    root.mkdir()
    (port,) = processes.free_ports(1)
    mark = uuid.uuid4().hex
    started: list[processes.Process] = []
    with bench.without_ray(), patch.dict(os.environ):
        os.environ.pop("KITAE_PORT", None)
        try:
            local.up(root, port=port, log=lambda _: None)
            os.environ.update(local.environment(root))
            store, settings = Workspace.from_env(check=False), ServeSettings.from_env()
            base = bases.prepare(store, str(bench.assets / MODEL), "chat")
            directory = store.fetch(base.key)
            endpoint = Server(settings.url, os.environ["KITAE_API_KEY"], ADAPTER)
            (direct_port,) = processes.free_ports(1)
            direct = Server(f"http://127.0.0.1:{direct_port}/v1", "none", ADAPTER)
            sides = Sides(endpoint, direct, store, settings, base, directory, root)
            version = sides.register(ADAPTER, seed=0)
            deploy.deploy(store, ADAPTER, settings)
            started.append(_start_direct(sides, direct_port, store.fetch(version.key), mark))
            _wait_for(direct, started[0], _log(root))
            yield sides
        finally:
            processes.stop(started, mark)
            local.down(root, log=lambda _: None)


def server_flags(kwargs: Mapping[str, Any]) -> list[str]:
    """vLLM's engine arguments as command-line flags. Pure."""
    flags = []
    for name, value in kwargs.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def _start_direct(sides: Sides, port: int, adapter: Path, mark: str) -> processes.Process:
    """Start vLLM's server with the engine settings of the endpoint's deployment."""
    record = records.read(sides.store, sides.base.name)
    assert record is not None
    settings = engine_settings(record, cpu_hardware())
    (engine, *_) = sides.processes()["engine"]
    command = [
        *("nice", "-n", str(engine.nice())),  # Ray's workers run niced; this server must too
        sys.executable,
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(sides.base_directory)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", sides.base.name),
        *("--lora-modules", f"{ADAPTER}={adapter}"),
        *server_flags(engine_kwargs(settings)),
    ]
    environment = os.environ | engine_environment(settings) | {processes.MARK: mark}
    return processes.spawn(command, environment=environment, log=_log(sides.scratch), directory=Path.cwd())


def _log(root: Path) -> Path:
    return root / "direct.log"


def _wait_for(server: Server, process: processes.Process, log: Path) -> None:
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        try:
            if httpx.get(server.url.removesuffix("/v1") + "/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if not process.alive or time.monotonic() > deadline:
            raise MachineError("vLLM's own server did not start", details=tail(log))
        time.sleep(0.5)


def write_adapter(directory: Path, base: Path, seed: int) -> Path:
    """Write a LoRA adapter for all linear layers of a Llama base, with random weights that change the output."""
    config = json.loads((base / "config.json").read_text())
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or hidden // heads
    shapes = {
        "self_attn.q_proj": (hidden, heads * width),
        "self_attn.k_proj": (hidden, groups * width),
        "self_attn.v_proj": (hidden, groups * width),
        "self_attn.o_proj": (heads * width, hidden),
        "mlp.gate_proj": (hidden, middle),
        "mlp.up_proj": (hidden, middle),
        "mlp.down_proj": (middle, hidden),
    }
    dice = np.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{path}.lora_A.weight"] = dice.normal(0, 0.02, (RANK, inputs)).astype(np.float32)
            weights[f"{path}.lora_B.weight"] = dice.normal(0, 0.02, (outputs, RANK)).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors")
    modules = [name.rpartition(".")[2] for name in shapes]
    document = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(document | {"target_modules": modules}))
    return directory


class MemoryWatch:
    """Context manager that samples the resident memory of processes every second."""

    def __init__(self, watched: Mapping[str, list[psutil.Process]]) -> None:
        self._watched = watched
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bytes: dict[str, list[int]] = {name: [] for name in watched}
        """Samples of each part in bytes, oldest first."""

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for name, members in self._watched.items():
                self.bytes[name].append(sum(process.memory_info().rss for process in members))
            if self._stop.wait(1.0):
                return
