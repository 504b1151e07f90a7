"""Requests that name another team's things, for every operation of the API.

`test_team_isolation` checks that no operation is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from serving.inference.generation_request import CHAT_FIELDS, COMPLETION_FIELDS
from serving.responses.request import RESPONSE_FIELDS
from tests.serving.api_harness import BASE, rows
from tests.serving.two_teams import QUESTION, Team

Ask = Callable[[httpx.Client, str], httpx.Response]


Named = Callable[[Team], list[str]]
"""Names of a team's things to put into a request."""


@dataclass(frozen=True)
class Probe:
    """A request that names one thing."""

    names: Named
    ask: Ask
    status: int = 404
    param: str = ""
    """The error's `param`, if it is set."""


def at(method: str, path: str, names: Named, **arguments: Any) -> Probe:
    return Probe(names, lambda client, name: client.request(method, path.replace("{}", name), **arguments))


def files(team: Team) -> list[str]:
    return [team.file, team.result_file, team.batch_file, team.output_file]


def uploads(team: Team) -> list[str]:
    return [team.upload, team.done_upload]


def jobs(team: Team) -> list[str]:
    return [team.job, team.running_job]


def batches(team: Team) -> list[str]:
    return [team.batch]


def models(team: Team) -> list[str]:
    return team.models


def two_models(team: Team) -> list[str]:
    """The API name and a version, for routes that resolve names as chat completions do: an unknown one waits for the
    store."""
    return [team.model, f"{team.job}@1"]


def completions(team: Team) -> list[str]:
    return [team.completion]


def responses(team: Team) -> list[str]:
    return [team.response]


def evals(team: Team) -> list[str]:
    return [team.eval]


def runs(team: Team) -> list[str]:
    """Their runs below their evals, as in a path."""
    return [f"{team.eval}/runs/{team.run}"]


def items(team: Team) -> list[str]:
    return [f"{team.eval}/runs/{team.run}/output_items/{team.item}"]


def below_own_eval(method: str, path: str, names: Named) -> Probe:
    """Name another team's run below the client's own eval."""

    def ask(client: httpx.Client, name: str) -> httpx.Response:
        own = client.get("/v1/evals?limit=1").json()["data"][0]["id"]
        return client.request(method, f"/v1/evals/{own}/runs/" + path.replace("{}", name))

    return Probe(names, ask)


def running(source: dict[str, Any], field: str, names: Named, status: int) -> Probe:
    """Start a run of the client's own eval; `source` names the thing as NAME."""

    def ask(client: httpx.Client, name: str) -> httpx.Response:
        own = client.get("/v1/evals?limit=1").json()["data"][0]["id"]
        data = json.loads(json.dumps(source).replace("NAME", name))
        return client.post(f"/v1/evals/{own}/runs", json={"data_source": data})

    return Probe(names, ask, status=status, param=field)


def grading(path: str, **more: Any) -> Probe:
    def ask(client: httpx.Client, name: str) -> httpx.Response:
        messages = [{"role": "user", "content": "1"}]
        grader = {"type": "score_model", "name": "s", "model": name, "input": messages}
        return client.post(path, json={"grader": grader, **more})

    return Probe(two_models, ask, param="grader.model")


_ROWS = {"type": "file_content", "content": [{"item": {"text": "x"}}]}
_MESSAGES = {"type": "template", "template": QUESTION}
_GRADERS = "/v1/fine_tuning/alpha/graders"
_A_RUN = "/v1/evals/{eval_id}/runs/{run_id}"


def with_model(path: str, **body: Any) -> list[Probe]:
    names = models if path == "/v1/chat/completions" else two_models
    return [Probe(names, lambda client, name: client.post(path, json={"model": name, **body}))]


def creating(field: str, names: Named, **body: Any) -> Probe:
    def ask(client: httpx.Client, name: str) -> httpx.Response:
        own = client.get("/v1/files?purpose=fine-tune&limit=1").json()["data"][0]["id"]
        return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": own, **body, field: name})

    return Probe(names, ask, status=400, param=field)


def batching(client: httpx.Client, name: str) -> httpx.Response:
    asked = {"input_file_id": name, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=asked)


def searching(client: httpx.Client, name: str) -> httpx.Response:
    own = client.get("/v1/files?purpose=fine-tune&limit=1").json()["data"][0]["id"]
    search = {"space": {"base_model": [BASE, name]}}
    return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": own, "search": search})


def completing(client: httpx.Client, name: str) -> httpx.Response:
    """Complete the client's own upload with another team's part."""
    described = {"filename": "x.jsonl", "purpose": "fine-tune", "bytes": 1}
    upload = client.post("/v1/uploads", json=described).json()["id"]
    answer = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [name]})
    client.post(f"/v1/uploads/{upload}/cancel")
    return answer


def uploading(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": ("x.jsonl", rows())}, data={"purpose": "fine-tune", "model": name})


def reading(client: httpx.Client, name: str) -> httpx.Response:
    """Name rows by store address instead of file id."""
    return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": name, "data": {"train": name}})


def continuing(client: httpx.Client, name: str) -> httpx.Response:
    """Continue another team's response by a model of one's own."""
    own = client.get("/v1/models").json()["data"][0]["id"]
    return client.post("/v1/responses", json={"model": own, "input": "x", "previous_response_id": name})


def permissions(method: str, path: str) -> Ask:
    """Ask for a model's permissions, which takes an admin key."""

    def ask(client: httpx.Client, name: str) -> httpx.Response:
        body = {"project_ids": ["alpha"]} if method == "POST" else None
        where = path.replace("{permission_id}", "cp_1")
        return client.request(method, f"/v1/fine_tuning/checkpoints/{name}/permissions{where}", json=body)

    return ask


PROBES: dict[str, list[Probe]] = {
    "GET /v1/files/{file_id}": [at("GET", "/v1/files/{}", files)],
    "GET /v1/files/{file_id}/content": [at("GET", "/v1/files/{}/content", files)],
    "DELETE /v1/files/{file_id}": [at("DELETE", "/v1/files/{}", files)],
    "POST /v1/files": [Probe(models, uploading, 400, "model")],
    "POST /v1/uploads/{upload_id}/parts": [at("POST", "/v1/uploads/{}/parts", uploads, files={"data": b"x"})],
    "POST /v1/uploads/{upload_id}/complete": [
        at("POST", "/v1/uploads/{}/complete", uploads, json={"part_ids": ["part-x"]}),
        Probe(lambda team: [team.part], completing, 400, "part_ids"),
    ],
    "POST /v1/uploads/{upload_id}/cancel": [at("POST", "/v1/uploads/{}/cancel", uploads)],
    "POST /v1/fine_tuning/jobs": [
        creating("training_file", files),
        creating("validation_file", files),
        creating("model", models),
        Probe(models, searching, 400, "search.space.base_model"),
        Probe(files, reading, 400, "training_file"),
    ],
    **{
        f"{method} /v1/fine_tuning/jobs/{{job_id}}{path}": [at(method, f"/v1/fine_tuning/jobs/{{}}{path}", jobs)]
        for method, path in (
            ("GET", ""),
            ("POST", "/cancel"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("GET", "/events"),
            ("GET", "/checkpoints"),
        )
    },
    "GET /v1/evals/{eval_id}": [at("GET", "/v1/evals/{}", evals)],
    "POST /v1/evals/{eval_id}": [at("POST", "/v1/evals/{}", evals, json={"metadata": {"a": "b"}})],
    "DELETE /v1/evals/{eval_id}": [at("DELETE", "/v1/evals/{}", evals)],
    "GET /v1/evals/{eval_id}/runs": [at("GET", "/v1/evals/{}/runs", evals)],
    "POST /v1/evals/{eval_id}/runs": [
        at("POST", "/v1/evals/{}/runs", evals, json={"data_source": {"type": "jsonl", "source": _ROWS}}),
        running({"type": "jsonl", "source": {"type": "file_id", "id": "NAME"}}, "data_source.source.id", files, 400),
        running(
            {"type": "completions", "source": _ROWS, "input_messages": _MESSAGES, "model": "NAME"},
            "data_source.model",
            two_models,
            404,
        ),
    ],
    **{
        f"{method} {_A_RUN}{path}": [
            at(method, f"/v1/evals/{{}}{path}", runs),
            below_own_eval(method, f"{{}}{path}", lambda team: [team.run]),
        ]
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", ""), ("POST", "/cancel"), ("GET", "/output_items"))
    },
    f"GET {_A_RUN}/output_items/{{item_id}}": [
        at("GET", "/v1/evals/{}", items),
        below_own_eval("GET", "{}", lambda team: [f"{team.run}/output_items/{team.item}"]),
    ],
    f"POST {_GRADERS}/validate": [grading(f"{_GRADERS}/validate")],
    f"POST {_GRADERS}/run": [grading(f"{_GRADERS}/run", model_sample="x")],
    "POST /v1/batches": [Probe(files, batching, 400, "input_file_id")],
    "GET /v1/batches/{batch_id}": [at("GET", "/v1/batches/{}", batches)],
    "POST /v1/batches/{batch_id}/cancel": [at("POST", "/v1/batches/{}/cancel", batches)],
    "GET /v1/models/{model}": [at("GET", "/v1/models/{}", models)],
    "DELETE /v1/models/{model}": [at("DELETE", "/v1/models/{}", models)],
    "POST /v1/chat/completions": with_model("/v1/chat/completions", messages=QUESTION),
    "POST /v1/completions": with_model("/v1/completions", prompt="who are you"),
    "POST /v1/embeddings": with_model("/v1/embeddings", input="who are you"),
    "POST /v1/classify": with_model("/v1/classify", input="who are you"),
    "POST /v1/responses": [
        *with_model("/v1/responses", input="who are you"),
        Probe(responses, continuing, 400, "previous_response_id"),
    ],
    **{
        f"{method} /v1/responses/{{response_id}}{path}": [at(method, f"/v1/responses/{{}}{path}", responses)]
        for method, path in (("GET", ""), ("GET", "/input_items"), ("DELETE", ""))
    },
    **{
        f"{method} /v1/chat/completions/{{completion_id}}{path}": [
            at(method, f"/v1/chat/completions/{{}}{path}", completions, **body)
        ]
        for method, path, body in (
            ("GET", "", {}),
            ("POST", "", {"json": {"metadata": {"k": "v"}}}),
            ("GET", "/messages", {}),
            ("DELETE", "", {}),
        )
    },
    **{
        f"{method} /v1/fine_tuning/checkpoints/{{checkpoint}}/permissions{path}": [
            Probe(models, permissions(method, path), 403)
        ]
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/{permission_id}"))
    },
}


LISTS = {
    "GET /v1/evals": ["", "?order=desc", "?after={eval}", "?order=desc&after={eval}"],
    "GET /v1/models": [""],
    "GET /v1/files": ["", "?purpose=fine-tune-results", "?order=asc", "?after={file}", "?order=asc&after={file}"],
    "GET /v1/chat/completions": ["", "?order=desc", "?metadata[of]=bravos-metadata", "?after={completion}"],
    "GET /v1/batches": ["", "?after={batch}"],
    "GET /v1/fine_tuning/jobs": ["", "?after={job}", "?metadata[of]=bravos-metadata"],
}


FIELDS = {
    "POST /v1/files": {"model"},
    "POST /v1/uploads/{upload_id}/parts": {"data"},
    "POST /v1/uploads/{upload_id}/complete": {"part_ids"},
    "POST /v1/fine_tuning/jobs": {"model", "training_file", "validation_file", "search", "data", "team"},
    "POST /v1/evals/{eval_id}/runs": {"data_source"},
    f"POST {_GRADERS}/validate": {"grader"},
    f"POST {_GRADERS}/run": {"grader"},
    "POST /v1/batches": {"input_file_id"},
    "POST /v1/chat/completions": {"model"},
    "POST /v1/completions": {"model"},
    "POST /v1/embeddings": {"model"},
    "POST /v1/classify": {"model"},
    "POST /v1/responses": {"model", "previous_response_id"},
    "POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions": {"project_ids"},
}
"""Body fields that can name a thing; each has a probe."""


HARMLESS = {
    "columns",
    *("file", "purpose", "task", "expires_after", "expires_after[anchor]", "expires_after[seconds]", "md5"),
    *("filename", "bytes", "mime_type", "suffix", "seed", "metadata", "integrations", "method"),
    *("hyperparameters", "lora_rank", "training", "compute", "evaluation", "serving", "priority", "dry_run"),
    *("input", "encoding_format", "user"),
    *RESPONSE_FIELDS.keys() - {"model", "previous_response_id"},
    *("name", "model_sample", "item", "data_source_config"),
    "testing_criteria",  # its models are looked up by each run
    *("endpoint", "completion_window", "output_expires_after"),
    *(CHAT_FIELDS.keys() | COMPLETION_FIELDS.keys()) - {"model"},
}
"""Body fields that cannot name a thing."""


NAMES_NOTHING = {"POST /v1/uploads", "POST /v1/evals", "GET /healthz", "GET /readyz", "GET /metrics"}
