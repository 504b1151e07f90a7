"""Requests that name another team's things, for every operation of the API.

`test_team_isolation` checks that no operation is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from serving.inference.generation_request import CHAT_FIELDS, COMPLETION_FIELDS
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


def with_model(path: str, **body: Any) -> list[Probe]:
    return [Probe(models, lambda client, name: client.post(path, json={"model": name, **body}))]


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
    "POST /v1/batches": [Probe(files, batching, 400, "input_file_id")],
    "GET /v1/batches/{batch_id}": [at("GET", "/v1/batches/{}", batches)],
    "POST /v1/batches/{batch_id}/cancel": [at("POST", "/v1/batches/{}/cancel", batches)],
    "GET /v1/models/{model}": [at("GET", "/v1/models/{}", models)],
    "DELETE /v1/models/{model}": [at("DELETE", "/v1/models/{}", models)],
    "POST /v1/chat/completions": with_model("/v1/chat/completions", messages=QUESTION),
    "POST /v1/completions": with_model("/v1/completions", prompt="who are you"),
    "POST /v1/embeddings": with_model("/v1/embeddings", input="who are you"),
    "POST /v1/classify": with_model("/v1/classify", input="who are you"),
}


LISTS = {
    "GET /v1/models": [""],
    "GET /v1/files": ["", "?purpose=fine-tune-results", "?order=asc", "?after={file}", "?order=asc&after={file}"],
    "GET /v1/batches": ["", "?after={batch}"],
    "GET /v1/fine_tuning/jobs": ["", "?after={job}", "?metadata[of]=bravos-metadata"],
}


FIELDS = {
    "POST /v1/files": {"model"},
    "POST /v1/uploads/{upload_id}/parts": {"data"},
    "POST /v1/uploads/{upload_id}/complete": {"part_ids"},
    "POST /v1/fine_tuning/jobs": {"model", "training_file", "validation_file", "search", "data", "team"},
    "POST /v1/batches": {"input_file_id"},
    "POST /v1/chat/completions": {"model"},
    "POST /v1/completions": {"model"},
    "POST /v1/embeddings": {"model"},
    "POST /v1/classify": {"model"},
}
"""Body fields that can name a thing; each has a probe."""


HARMLESS = {
    *("file", "purpose", "task", "expires_after", "expires_after[anchor]", "expires_after[seconds]", "md5"),
    *("filename", "bytes", "mime_type", "suffix", "seed", "metadata", "integrations", "method"),
    *("hyperparameters", "lora_rank", "training", "compute", "evaluation", "serving", "priority", "dry_run"),
    *("input", "encoding_format", "user"),
    *("endpoint", "completion_window", "output_expires_after"),
    *(CHAT_FIELDS.keys() | COMPLETION_FIELDS.keys()) - {"model"},
}
"""Body fields that cannot name a thing."""


NAMES_NOTHING = {"POST /v1/uploads", "GET /healthz", "GET /readyz", "GET /metrics"}
