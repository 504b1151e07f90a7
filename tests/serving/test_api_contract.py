"""The endpoint conforms to its OpenAPI document: Schemathesis sends valid and invalid requests to every operation.

Uses a real store and port; engines and runners are fakes. Random identifiers do not exist, so a third of the requests
is changed to name existing things.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core import NotSet
from schemathesis.specs.openapi import checks as openapi

from ray_jobs.deploy import records as deployed
from ray_jobs.deploy.serve_api import INGRESS
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Workspace
from serving.evals import records as eval_records
from serving.evals.records import StoredRun
from serving.http.eval_types import SourceRow
from serving.http.ids import new_id
from serving.inference.router import Router
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, make_app, nowhere, rows
from tests.serving.error_shape import check_error

HEADERS = {"Authorization": f"Bearer {KEY}"}
EXAMPLES = 15
"""Random requests of each operation, in addition to Schemathesis' boundary values."""
CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.response_headers_conformance,
    openapi.negative_data_rejection,
    openapi.missing_required_header,
    openapi.unsupported_method,
    openapi.ignored_auth,
]
"""Without the check that every valid request is accepted: a document does not say which files and models exist."""
EVAL = {
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
    "testing_criteria": [
        {"type": "string_check", "name": "g", "operation": "eq", "input": "{{ item.text }}", "reference": "x"}
    ],
}
DATA: dict[str, Any] = {
    "type": "jsonl",
    "source": {"type": "file_content", "content": [{"item": {"text": "x"}}]},
}
ENGINES = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
"""Paths whose requests an engine validates, which the fake does not."""
GRADED = {
    "/v1/evals",
    "/v1/evals/{eval_id}/runs",
    "/v1/fine_tuning/alpha/graders/run",
    "/v1/fine_tuning/alpha/graders/validate",
}
"""Paths whose bodies contain graders or rows."""
DOCUMENT = TestClient(make_app(Router(nowhere(), ttl_s=1.0)), headers=HEADERS).get("/openapi.json").json()
WITHOUT_BOUNDARY_VALUES = [
    {"include-path": path, "phases": {"coverage": {"enabled": False}}} for path in sorted(ENGINES | GRADED)
]
"""Thousands for the fields of a generation, which `test_hostile_requests` varies with less work, and for graders within
graders, whose fields `tests/serving/evals` varies."""
SCHEMA = schemathesis.openapi.from_dict(
    DOCUMENT, config=SchemathesisConfig.from_dict({"operations": WITHOUT_BOUNDARY_VALUES})
)
OPERATIONS = {f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item}


@dataclass
class World:
    """The endpoint, existing things that requests may name, and counts of responses."""

    server: ApiServer
    client: httpx.Client
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    file: str = ""
    job: str = ""
    model: str = ""
    eval: str = ""
    open_run: str = ""

    def settle(self) -> None:
        """Create a file, a finished job and its model, if they do not exist."""
        if not self.file or self.client.get(f"/v1/files/{self.file}").status_code != 200:
            files = {"file": ("rows.jsonl", rows())}
            self.file = self.client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
        if not self.model or self.client.get(f"/v1/models/{self.model}").status_code != 200:
            asked = {"model": BASE, "training_file": self.file}
            self.job = self.client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
            for _ in range(200):
                found = self.client.get(f"/v1/fine_tuning/jobs/{self.job}").json()
                if found["status"] == "succeeded":
                    break
                self.server.run_launched()
            self.model = found["fine_tuned_model"]

    def make_eval(self) -> str:
        return str(self.client.post("/v1/evals", json=EVAL).json()["id"])

    def make_run(self) -> str:
        """Create a run that another process works on, which does not end, and cancel the last such run."""
        if self.open_run:
            self.client.post(f"{self.open_run}/cancel")
        record = StoredRun(
            id=new_id(eval_records.RUN, now_s=self.server.store.now_s()),
            team=DEFAULT_TEAM,
            eval_id=self.eval,
            key_id="operator",
            admin=True,
            created_at=0,
            name="run",
            data_source=DATA,
            rows=1,
            status="in_progress",
            criteria=[],
            holder="another",
            lease_until_s=1e12,
        )
        eval_records.create_run(self.server.store, record, [SourceRow(item={"text": "x"})])
        self.open_run = f"/v1/evals/{self.eval}/runs/{record.id}"
        return record.id

    def finished_run(self) -> dict[str, Any]:
        run = self.client.post(f"/v1/evals/{self.eval}/runs", json={"data_source": DATA}).json()
        assert "id" in run, run
        path = f"/v1/evals/{self.eval}/runs/{run['id']}"
        deadline = time.monotonic() + 30
        while self.client.get(path).json()["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found: dict[str, Any] = self.client.get(f"{path}/output_items").json()["data"][0]
        return found

    def use_existing_eval(self, case: schemathesis.Case[Any]) -> None:
        parameters = case.path_parameters or {}
        if "eval_id" in parameters:
            self.eval = parameters["eval_id"] = self.make_eval()
        if "run_id" in parameters:
            parameters["run_id"] = self.make_run()
        if "item_id" in parameters:
            item = self.finished_run()
            parameters["run_id"], parameters["item_id"] = item["run_id"], item["id"]
        if case.path.endswith("/output_items"):
            case.query = {}  # few requests are to name a run, and their query may be invalid
        if case.path == "/v1/evals" and isinstance(case.body, dict):
            case.body = cast(Any, EVAL)
        if case.path.endswith("/runs") and isinstance(case.body, dict):
            case.body = cast(Any, {"data_source": DATA})
        if case.path.endswith(("/graders/run", "/graders/validate")) and isinstance(case.body, dict):
            case.body["grader"] = cast(Any, EVAL["testing_criteria"])[0]

    def upload(self) -> str:
        described = {"filename": "x.jsonl", "purpose": "user_data", "bytes": 1}
        return str(self.client.post("/v1/uploads", json=described).json()["id"])

    def batch(self) -> dict[str, Any]:
        """A body that creates a batch."""
        path = "/v1/chat/completions"
        body = {"model": BASE, "messages": [{"role": "user", "content": "hello"}]}
        line = json.dumps({"custom_id": "a", "method": "POST", "url": path, "body": body})
        files = {"file": ("lines.jsonl", line)}
        file = self.client.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
        return {"input_file_id": file, "endpoint": path, "completion_window": "24h"}

    def use_existing_names(self, case: schemathesis.Case[Any]) -> None:
        """Change a request to name an existing file, job, upload or model."""
        self.settle()
        parameters = case.path_parameters or {}
        if "file_id" in parameters:
            parameters["file_id"] = self.file
        if "job_id" in parameters:
            parameters["job_id"] = self.job
            if case.path.endswith(("cancel", "pause", "resume")):
                asked = {"model": BASE, "training_file": self.file, "seed": len(self.statuses)}
                parameters["job_id"] = self.client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
            if case.path.endswith("resume"):
                self.client.post(f"/v1/fine_tuning/jobs/{parameters['job_id']}/pause")
        self.use_existing_eval(case)
        if "upload_id" in parameters:
            parameters["upload_id"] = self.upload()
        if "completion_id" in parameters:
            asked = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "store": True}
            parameters["completion_id"] = self.client.post("/v1/chat/completions", json=asked).json()["id"]
            if isinstance(case.body, dict):
                case.body = cast(Any, {"metadata": {"k": "v"}})
        if "response_id" in parameters:
            asked = {"model": BASE, "input": "x"}
            parameters["response_id"] = self.client.post("/v1/responses", json=asked).json()["id"]
        if "checkpoint" in parameters:
            parameters["checkpoint"] = self.model
            self._use_existing_permission(case, parameters)
        if case.path == "/v1/responses" and isinstance(case.body, dict):
            case.body = cast(Any, {"model": BASE, "input": "hello"})
        if "batch_id" in parameters:
            parameters["batch_id"] = self.client.post("/v1/batches", json=self.batch()).json()["id"]
        if case.path == "/v1/batches" and isinstance(case.body, dict):
            case.body = cast(Any, self.batch())
        if "model" in parameters:
            parameters["model"] = BASE if case.method == "GET" else self.model
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny-labels" if case.path in ("/v1/embeddings", "/v1/classify") else BASE
        if case.path == "/v1/fine_tuning/jobs" and isinstance(case.body, dict):
            case.body = {"model": BASE, "training_file": self.file, "dry_run": True}
        if case.path.endswith("/complete") and isinstance(case.body, dict):
            path = f"/v1/uploads/{parameters['upload_id']}/parts"
            case.body = {"part_ids": [self.client.post(path, files={"data": b"x"}).json()["id"]]}
        if case.path == "/v1/files" and isinstance(case.body, dict):
            case.body = cast(Any, {"file": rows(), "purpose": "user_data"})  # bytes are sent as a file
        if case.path.endswith("/parts") and isinstance(case.body, dict):
            case.body = cast(Any, {"data": b"x"})
        if case.path == "/v1/chat/completions" and isinstance(case.body, dict):
            case.body = cast(Any, {"model": BASE, "messages": [{"role": "user", "content": "hello"}]})
        if case.path == "/v1/completions" and isinstance(case.body, dict):
            case.body = cast(Any, {"model": BASE, "prompt": "hello"})

    def _use_existing_permission(self, case: schemathesis.Case[Any], parameters: dict[str, Any]) -> None:
        if "permission_id" in parameters:
            path = f"/v1/fine_tuning/checkpoints/{self.model}/permissions"
            shared = self.client.post(path, json={"project_ids": ["sales"]}).json()
            parameters["permission_id"] = shared["data"][0]["id"]
        elif isinstance(case.body, dict):
            case.body = cast(Any, {"project_ids": ["sales"]})

    def check_statuses(self) -> None:
        """The requests of each operation were not only refused, and every status is documented."""
        found: dict[str, set[int]] = {}
        for operation, status in self.statuses:
            found.setdefault(operation, set()).add(status)
        print({operation: sorted(statuses) for operation, statuses in found.items()})
        for operation in found.keys() & OPERATIONS:
            method, path = operation.split(" ")
            documented = DOCUMENT["paths"][path][method.lower()]["responses"]
            assert 200 in found[operation], operation
            assert {str(status) for status in found[operation]} <= documented.keys() | {"405"}, operation


@pytest.fixture(scope="module")
def world(module_store: Workspace) -> Iterator[World]:
    add_base(module_store)
    with (
        api_server(module_store, route_ttl_s=0.05) as server,
        httpx.Client(base_url=server.url, headers=HEADERS, timeout=60) as client,
    ):
        world = World(server, client)
        world.settle()
        server.deploy_classifier("tiny-labels")
        applications = [INGRESS, *(record.application for record in deployed.read_all(module_store).values())]
        server.backend.states = dict.fromkeys(applications, "RUNNING")
        yield world
    world.check_statuses()


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_an_operation_is_as_documented(case: schemathesis.Case[Any], world: World) -> None:
    operation = f"{case.method} {case.path}"
    body = None if isinstance(case.body, NotSet) else case.body  # whose repr is its address
    sent = repr((case.path_parameters, case.query, case.headers, body)).encode("utf-8", "backslashreplace")
    documented = {given["name"] for given in case.operation.definition.raw.get("parameters", [])}
    unjudged = case.path in ENGINES or bool(
        (case.query or {}).keys() - documented
    )  # unknown query parameters are ignored, as by OpenAI
    # Which requests are generated depends on the modules that this process has imported (Hypothesis reads their
    # constants): the first ones of an operation name existing things until one succeeds, then a third of them.
    if zlib.crc32(sent) % 3 == 0 or not world.statuses[operation, 200]:
        world.use_existing_names(case)
        unjudged = True
    response = case.call(base_url=world.server.url, headers=HEADERS)
    unjudged |= response.status_code == 413  # a refusal that the check does not know
    checks = [check for check in CHECKS if not (unjudged and check is openapi.negative_data_rejection)]
    world.statuses[operation, response.status_code] += 1
    case.validate_response(response, checks=checks, headers=HEADERS)
    if response.status_code >= 400 and case.path != "/readyz":
        check_error(httpx.Response(response.status_code, headers=flat(response.headers), content=response.content))


def flat(headers: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in headers.items() for value in values]


def test_the_document_has_key_and_errors_of_every_operation(world: World) -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            statuses = operation["responses"].keys()
            assert "422" not in statuses
            assert "500" in statuses
            assert (path in ("/healthz", "/readyz")) == ("security" not in operation) == ("401" not in statuses)
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]
    assert httpx.get(f"{world.server.url}/openapi.json", headers=HEADERS, timeout=60).json() == DOCUMENT
