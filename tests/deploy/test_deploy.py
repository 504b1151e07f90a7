"""Deploying without Ray: needed records, how they merge, and every answer of the Serve API.

Over 400 lines: the tests share one fake of the Serve API and its records.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ray_jobs import registry
from ray_jobs.deploy import ServeSettings, deploy, needed_records, reapply, reconcile, records, undeploy
from ray_jobs.deploy.records import Deployment, merge
from ray_jobs.deploy.serve_api import differing, failure, require_free_port, serve_config, with_running
from ray_jobs.errors import CorruptObject, MachineError, RegistryError, ServingError, SpecError
from ray_jobs.registry.model import Lineage, ModelVersion
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Workspace
from tests.builders import make_spec

TOKEN = "a-token"


@dataclass
class Dashboard:
    """Serve's part of a Ray dashboard, with the answers of Ray 2.60: a server with a state that a test sets."""

    config: dict[str, Any] | None = None
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    foreign: dict[str, dict[str, Any]] = field(default_factory=dict)
    puts: int = 0
    url: str = ""

    def details(self) -> dict[str, Any]:
        if self.config is None:
            return {"controller_info": {}, "proxies": {}, "applications": self.foreign, "target_capacity": None}
        configured = {application["name"]: application for application in self.config["applications"]}
        applications = {
            name: self.states.get(name, {"status": "RUNNING", "deployments": {}, "deployed_app_config": application})
            for name, application in configured.items()
        }
        options = self.config["http_options"]
        proxies = {"node": {"status": "HEALTHY"}}
        return {"proxies": proxies, "applications": applications | self.foreign, "http_options": options}

    @property
    def running(self) -> dict[str, dict[str, Any]]:
        """Arguments of each configured application."""
        assert self.config is not None
        return {application["name"]: application["args"] for application in self.config["applications"]}


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    state = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, b"Unauthorized: Missing authentication token")
                return
            assert self.path == "/api/serve/applications/"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT":
                state.config, state.puts = json.loads(body), state.puts + 1
            elif self.command == "DELETE":
                state.config = None
            self.answer(200, json.dumps(state.details()).encode() if self.command == "GET" else b"")

        do_GET = do_PUT = do_DELETE = handle_one  # names called by http.server

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(dashboard: Dashboard) -> ServeSettings:
    return ServeSettings(dashboard.url, TOKEN, port=free_port(), timeout_s=2.0)


def register(
    store: Workspace, tmp_path: Path, name: str = "greeter", *, rank: int | None = 8, **spec: Any
) -> ModelVersion:
    """A new version: an adapter of that rank, or (None) a whole model."""
    mark = f"{name}-{len(registry.versions(store, name))}"
    directory = tmp_path / mark
    directory.mkdir()
    if rank is not None:
        (directory / "adapter_config.json").write_text(json.dumps({"r": rank}))
    save_file({"w": np.zeros(1, dtype=np.float32)}, directory / "model.safetensors", {"mark": mark})
    lineage = Lineage("d" * 16, "b" * 16, make_spec(name, base_model="org/Base", **spec), "0.1.0", "job", {})
    return registry.register(store, name, directory, lineage=lineage, lineage_digest=mark)


# --- needed records --------------------------------------------------------------------------------------------------


def test_an_adapter_needs_its_bases_engine(store: Workspace, tmp_path: Path) -> None:
    base, adapter = needed_records(register(store, tmp_path), "2", ServingSection(max_loras=2), lora_rank=12)
    assert (base.kind, base.name, base.key, base.max_lora_rank) == ("base", "base", f"bases/{'b' * 16}", 16)
    assert (adapter.kind, adapter.base, adapter.label, adapter.key) == ("adapter", "base", "2", None)
    assert adapter.application == base.application == "kitae-base"


def test_other_models_have_their_own_application(store: Workspace, tmp_path: Path) -> None:
    (full,) = needed_records(register(store, tmp_path, rank=None), None, ServingSection(), lora_rank=None)
    assert (full.kind, full.key, full.version) == ("full", "models/greeter/1", "1")
    spam = register(store, tmp_path, "spam", rank=None, task="text_classification")
    (predictor,) = needed_records(spam, None, ServingSection(), lora_rank=None)
    assert (predictor.kind, predictor.base_key) == ("predictor", None)
    ham = register(store, tmp_path, "ham", rank=8, task="text_classification")
    (predictor,) = needed_records(ham, None, ServingSection(), lora_rank=8)
    assert (predictor.kind, predictor.base_key) == ("predictor", f"bases/{'b' * 16}")


def test_a_model_named_as_its_base_is_refused(store: Workspace, tmp_path: Path) -> None:
    version = register(store, tmp_path, "base")
    with pytest.raises(ServingError, match="the name of its own base"):
        needed_records(version, None, ServingSection(), lora_rank=8)


BASE = Deployment(name="base", kind="base", task="chat", key="bases/b", max_lora_rank=8)


def test_the_limits_of_a_base_are_the_largest_of_its_adapters() -> None:
    larger = BASE.model_copy(update={"max_lora_rank": 64, "serving": ServingSection(max_model_len=512)})
    merged = merge(BASE, larger)
    assert merged.max_lora_rank == 64
    assert merged.serving == BASE.serving
    assert merge(merged, BASE) == merged


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key": "bases/c"}, "another base model is deployed as 'base'"),
        ({"precision": "bf16"}, "serves auto, and this model was trained in bf16"),
        ({"kind": "full"}, "the name 'base' is taken by a deployed base"),
    ],
)
def test_a_base_is_not_replaced_under_its_adapters(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ServingError, match=match):
        merge(BASE, BASE.model_copy(update=change))


def test_the_arguments_of_an_application_exclude_its_label(settings: ServeSettings) -> None:
    full = Deployment(name="greeter", kind="full", task="chat", key="models/greeter/1", version="1")
    one, other = (serve_config([full.model_copy(update={"label": label})], settings) for label in ("1", "champion"))
    assert one == other
    assert [application["name"] for application in one["applications"]] == ["kitae", "kitae-greeter"]
    assert one["http_options"] == {"host": "127.0.0.1", "port": settings.port}


def test_a_record_of_an_unknown_task_is_an_error_that_names_it(settings: ServeSettings) -> None:
    later = Deployment(name="painter", kind="predictor", task="painting", key="models/painter/1", version="1")
    with pytest.raises(ServingError, match="'painter' is deployed for the task 'painting', which this version"):
        serve_config([later], settings)


# --- deploying -------------------------------------------------------------------------------------------------------


def test_deploying_an_adapter_starts_base_and_ingress(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    lines: list[str] = []
    done = deploy(store, "greeter", settings, progress=lambda line, seconds: lines.append(line))
    assert (done.model, done.version, done.base) == ("greeter", "1", "base")
    assert done.url == f"http://127.0.0.1:{settings.port}/v1"
    assert list(dashboard.running) == ["kitae", "kitae-base"]
    assert lines == ["kitae running, kitae-base running"]
    assert list(records.read_all(store)) == ["base", "greeter"]


def test_another_version_restarts_nothing(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    deploy(store, "greeter", settings)
    before = dashboard.config
    register(store, tmp_path)
    assert deploy(store, "greeter@2", settings).version == "2"
    assert dashboard.config == before
    record = records.read(store, "greeter")
    assert record is not None
    assert record.label == "2"


def test_an_adapter_of_a_larger_rank_raises_the_limit(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    deploy(store, "greeter", settings)
    register(store, tmp_path, "writer", rank=33)
    deploy(store, "writer", settings)
    assert dashboard.running["kitae-base"]["max_lora_rank"] == 64


def test_two_concurrent_deployments_both_apply(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    names = [f"model-{i}" for i in range(6)]
    for name in names:
        register(store, tmp_path, name, rank=None)
    deploy(store, names[0], settings)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda name: deploy(store, name, settings), names[1:]))
    assert set(dashboard.running) == {"kitae", *(f"kitae-{name}" for name in names)}


def test_undeploying_removes_only_that_name(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    register(store, tmp_path, "writer")
    for name in ("greeter", "writer"):
        deploy(store, name, settings)
    with pytest.raises(ServingError, match="is the base of greeter, writer"):
        undeploy(store, "base", settings)
    undeploy(store, "writer", settings)
    assert list(records.read_all(store)) == ["base", "greeter"]
    with pytest.raises(ServingError, match=r"'writer' is not deployed; deployed: base, greeter"):
        undeploy(store, "writer", settings)
    undeploy(store, "greeter", settings)
    assert list(dashboard.running) == ["kitae", "kitae-base"]
    undeploy(store, "base", settings)
    assert list(dashboard.running) == ["kitae"]  # the API still accepts jobs


def test_reapply_starts_every_record(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    reapply(store, settings)
    assert list(dashboard.running) == ["kitae"]
    register(store, tmp_path)
    deploy(store, "greeter", settings)
    dashboard.config = None
    reapply(store, settings)
    assert list(dashboard.running) == ["kitae", "kitae-base"]


def test_reconcile_restores_removed_applications(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    elsewhere = replace(settings, endpoint_url="https://kitae.example")
    recorded = deploy(store, "greeter", elsewhere)
    assert recorded.url == "https://kitae.example/v1"
    assert "answers" not in str(recorded)
    assert "is recorded: the endpoint https://kitae.example/v1 starts it" in str(recorded)
    assert dashboard.puts == 0, "only recorded: the endpoint elsewhere sees to the rest"
    assert reconcile(store, settings) == ["kitae", "kitae-base"]
    assert reconcile(store, settings) == []
    dashboard.config = serve_config([], settings)  # as KubeRay does, since it knows the ingress alone
    assert reconcile(store, settings) == ["kitae-base"]
    register(store, tmp_path, rank=32)
    deploy(store, "greeter", elsewhere)
    assert reconcile(store, settings) == ["kitae-base"], "other arguments"
    undeploy(store, "greeter", elsewhere)
    undeploy(store, "base", elsewhere)
    assert reconcile(store, settings) == ["kitae-base"]
    assert list(dashboard.running) == ["kitae"]
    assert dashboard.puts == 4


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_unregistered_model_is_refused_before_anything_is_written(
    store: Workspace, dashboard: Dashboard, settings: ServeSettings
) -> None:
    with pytest.raises(RegistryError, match="unknown"):
        deploy(store, "unknown", settings)
    assert records.read_all(store) == {}
    assert dashboard.puts == 0


def test_a_taken_port_is_refused_before_anything_is_written(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(MachineError, match=rf"127\.0\.0\.1:{port} .*KITAE_PORT"):
            deploy(store, "greeter", replace(settings, port=port))
    assert records.read_all(store) == {}


def test_the_port_of_a_running_endpoint_cannot_be_changed(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    deploy(store, "greeter", settings)
    with pytest.raises(ServingError, match=rf"listens on port {settings.port}, and KITAE_PORT says 1234"):
        deploy(store, "greeter", replace(settings, port=1234))


def test_foreign_applications_are_not_removed(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    dashboard.foreign = {"translator": {"status": "RUNNING"}}
    with pytest.raises(ServingError, match="already serves translator"):
        deploy(store, "greeter", settings)
    assert dashboard.puts == 0


def test_a_refused_token_names_the_variable(store: Workspace, tmp_path: Path, settings: ServeSettings) -> None:
    register(store, tmp_path)
    with pytest.raises(ServingError, match="RAY_AUTH_TOKEN_PATH"):
        deploy(store, "greeter", replace(settings, token="wrong"))


def test_an_absent_ray_names_the_variable(store: Workspace, tmp_path: Path) -> None:
    register(store, tmp_path)
    with pytest.raises(ServingError, match=r"Ray does not answer at .* RAY_ADDRESS"):
        deploy(store, "greeter", ServeSettings(f"http://127.0.0.1:{free_port()}", TOKEN))


def test_the_message_of_a_failed_replica_is_shown(
    store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings
) -> None:
    register(store, tmp_path)
    message = "The deployment failed to start 1 times in a row.\n\nValueError: no such architecture"
    dashboard.states["kitae-base"] = {"status": "DEPLOY_FAILED", "deployments": {"Engine": {"message": message}}}
    with pytest.raises(ServingError, match="kitae-base did not start") as caught:
        deploy(store, "greeter", settings)
    assert caught.value.details[-1] == "ValueError: no such architecture"


def test_the_message_of_a_failed_application_is_shown() -> None:
    error = failure("kitae-base", {"status": "DEPLOY_FAILED", "message": "Traceback\nImportError: serving"})
    assert error.details == ("Traceback", "ImportError: serving")
    assert "no reason" in failure("kitae", {"status": "UNHEALTHY"}).details[0]


def test_waiting_times_out(store: Workspace, tmp_path: Path, dashboard: Dashboard, settings: ServeSettings) -> None:
    register(store, tmp_path)
    dashboard.states["kitae-base"] = {"status": "DEPLOYING", "deployments": {"Engine": {"message": "no free GPU"}}}
    with pytest.raises(ServingError, match=r"after 1 s: kitae running, kitae-base deploying") as caught:
        deploy(store, "greeter", replace(settings, timeout_s=1.0))
    assert caught.value.details == ("no free GPU",)


def test_an_invalid_record_is_skipped_and_can_be_removed(store: Workspace) -> None:
    store.put_json("deployments/greeter.json", {"name": "greeter", "kind": "spaceship", "task": "chat"})
    with pytest.raises(CorruptObject, match=r"deployments/greeter\.json"):
        records.read(store, "greeter")
    records.write(store, BASE)
    assert list(records.read_all(store)) == ["base"], "the others are read"
    assert records.unreadable(store) == ["greeter"]
    records.remove(store, "greeter")
    records.read_all(store)
    assert records.unreadable(store) == []


def test_the_application_of_an_unreadable_record_keeps_running() -> None:
    running = {"name": "kitae-greeter", "import_path": "serving.inference.llm:build", "args": {"name": "greeter"}}
    details = {"applications": {"kitae-greeter": {"status": "RUNNING", "deployed_app_config": running}}}
    config = serve_config([BASE], ServeSettings("", None))
    kept = with_running(config, details, ["greeter", "unknown"])
    assert [application["name"] for application in kept["applications"]] == ["kitae", "kitae-base", "kitae-greeter"]
    assert "kitae-greeter" not in differing(details, kept)
    assert with_running(config, details, []) == config


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://10.0.0.1:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("KITAE_PORT", "9000")
    monkeypatch.setenv("KITAE_HOST", "0.0.0.0")
    settings = ServeSettings.from_env()
    assert (settings.dashboard_url, settings.token, settings.port) == ("http://10.0.0.1:8265", "abc", 9000)
    assert settings.url == "http://127.0.0.1:9000/v1"
    monkeypatch.setenv("KITAE_INGRESS_OPTIONS", '{"num_replicas": 2}')
    assert serve_config([], ServeSettings.from_env())["applications"][0]["deployments"] == [
        {"name": "Ingress", "num_replicas": 2}
    ]
    monkeypatch.setenv("KITAE_INGRESS_OPTIONS", "[2]")
    with pytest.raises(SpecError, match="KITAE_INGRESS_OPTIONS is not a JSON object"):
        ServeSettings.from_env()
    monkeypatch.setenv("KITAE_ENDPOINT_URL", "kitae.example")
    with pytest.raises(SpecError, match=r"KITAE_ENDPOINT_URL is 'kitae\.example'"):
        ServeSettings.from_env()
    monkeypatch.setenv("KITAE_PORT", "99999")
    with pytest.raises(SpecError, match="KITAE_PORT is '99999'"):
        ServeSettings.from_env()


def test_a_free_port_is_free() -> None:
    require_free_port("127.0.0.1", free_port())
