"""Unusual values in every position of a request: an error in the error shape, never a 5xx."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from ray_jobs.spec import (
    ComputeSection,
    DataSection,
    EvaluationSection,
    SearchSection,
    ServingSection,
    SpecSection,
    TrainingSection,
)
from ray_jobs.storage import Workspace
from serving.http import openai_types
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, rows
from tests.serving.error_shape import check_error

TEXTS = {
    "an empty text": "",
    "a blank": " ",
    "a NUL": "\x00",
    "a line break": "a\r\nX-Injected: yes",
    "an escape": "\x1b[31m",
    "a right-to-left mark": "\u202e",
    "emoji": "🙂" * 100,
    "not normalized": "e\u0301\uff21",
    "a parent path": "../../../../etc/passwd",
    "a wildcard": "*",
    "per cent": "%00%2e%2e%2f%zz",
    "an at sign": "@",
    "a name and an at sign": f"{BASE}@",
    "colons": "ft::::",
    "5,000 digits": "9" * 5000,
    "a million": "a" * 10_000,
    "quotes": "\"'`;<>&{}$(x)",
}
VALUES = {
    # as JSON
    **{name: json.dumps(text) for name, text in TEXTS.items()},
    "a high surrogate": r'"\ud800"',
    "a low surrogate": r'"a\udfff"',
    "a surrogate pair": r'"\ud83d\ude42"',
    "NaN": "NaN",
    "infinity": "-Infinity",
    "1e999": "1e999",
    "1e308": "1e308",
    "1e-320": "1e-320",
    "minus zero": "-0.0",
    "a huge number": "1" + "0" * 400,
    "a number of 5,000 digits": "9" * 5000,
    "a negative number": "-1",
    "true": "true",
    "null": "null",
    "an empty object": "{}",
    "an object": r'{"\u0000": {"a": [null]}}',
    "an object with a surrogate": r'{"\ud800": 1}',
    "an empty list": "[]",
    "a list": "[[1, null, {}]]",
    "100 lists": "[" * 100 + "]" * 100,
    "900 lists": "[" * 900 + "]" * 900,
    "100,000 lists": "[" * 100_000 + "]" * 100_000,
    "10,000 nulls": "[" + "null," * 9_999 + "null]",
}
SECTIONS: dict[str, type[SpecSection]] = {
    "training": TrainingSection,
    "data": DataSection,
    "compute": ComputeSection,
    "evaluation": EvaluationSection,
    "serving": ServingSection,
    "search": SearchSection,
}


@dataclass(frozen=True)
class World:
    server: ApiServer
    client: httpx.Client
    file: str

    def ask(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> httpx.Response:
        content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        kind = {"Content-Type": "application/json"} if body is not None else {}
        return self.client.request(method, path, content=content, headers={**kind, **headers})


@pytest.fixture(scope="module")
def world(module_store: Workspace) -> Iterator[World]:
    add_base(module_store)
    with (
        api_server(module_store) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        file = client.post("/v1/files", files={"file": ("x.jsonl", rows())}, data={"purpose": "fine-tune"}).json()
        yield World(server, client, file["id"])


def fine(answer: httpx.Response) -> None:
    """Assert success or an error in the error shape."""
    if answer.status_code != 200:
        check_error(answer)


PATHS = [
    ("GET", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("DELETE", "/v1/files/{}"),
    ("POST", "/v1/uploads/{}/cancel"),
    ("GET", "/v1/fine_tuning/jobs/{}"),
    ("POST", "/v1/fine_tuning/jobs/{}/cancel"),
    ("GET", "/v1/fine_tuning/jobs/{}/events"),
    ("GET", "/v1/models/{}"),
    ("DELETE", "/v1/models/{}"),
]
QUERIES = [
    "/v1/files?after={}",
    "/v1/files?limit={}",
    "/v1/files?order={}",
    "/v1/files?purpose={}",
    "/v1/files?{}=x",
    "/v1/fine_tuning/jobs?after={}",
    "/v1/fine_tuning/jobs?limit={}",
    "/v1/fine_tuning/jobs?metadata[{}]=x",
    "/v1/fine_tuning/jobs?metadata{}=x",
    "/v1/models?limit={}",
]
HEADERS = ["Authorization", "Idempotency-Key", "X-Stainless-Retry-Count", "X-Request-Id", "Content-Type", "Accept"]


@pytest.mark.parametrize("name", TEXTS)
def test_odd_texts_in_paths(world: World, name: str) -> None:
    for method, path in PATHS:
        answer = world.ask(method, path.format(quote(TEXTS[name], safe="")))
        assert answer.status_code != 200 or TEXTS[name] == "", (method, path)
        fine(answer)
        fine(world.ask(method, path.format(quote(f"file-{TEXTS[name]}", safe="/"))))
    assert world.ask("GET", f"/v1/files/{world.file}").status_code == 200  # no request has deleted it


@pytest.mark.parametrize("name", TEXTS)
def test_odd_texts_in_queries(world: World, name: str) -> None:
    for query in QUERIES:
        fine(world.ask("GET", query.format(quote(TEXTS[name], safe=""))))


def test_odd_bytes_in_paths_and_queries(world: World) -> None:
    for given in ("%ff%fe", "%c0%80", "%ed%a0%80", "%00", "%", "%%%", "%u0000"):
        for method, path in PATHS:
            fine(world.ask(method, path.format(given)))
        for query in QUERIES:
            fine(world.ask("GET", query.format(given)))


@pytest.mark.parametrize("header", HEADERS)
def test_odd_headers(world: World, header: str) -> None:
    for value in ("", "a" * 5000, "Bearer", "Bearer \xff\xfe", "\xff", "9" * 5000, "-1", "a, b", '"'):
        body = json.dumps({"model": BASE, "training_file": world.file, "dry_run": True})
        for method, path, content in (("POST", "/v1/fine_tuning/jobs", body), ("GET", "/v1/models", None)):
            sent = [(header.encode(), value.encode("latin-1"))]
            if header != "Content-Type":
                sent.append((b"Content-Type", b"application/json"))
            fine(world.client.request(method, path, content=content, headers=sent))


def test_an_invalid_host_header(world: World) -> None:
    """Causes neither a 5xx nor a redirect to it."""
    for host in ("[", "a b", "", "evil.example", "\xff", "x" * 5000, "a:99999999"):
        for path, statuses in (
            ("/nowhere", (b"404", b"400")),
            ("/v1/files/", (b"200", b"400")),
            ("/v1/models/x/", (b"404", b"400")),
        ):
            with socket.create_connection(("127.0.0.1", world.server.port), timeout=10) as connection:
                lines = [f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {KEY}", "Connection: close"]
                connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.split(b" ")[1] in statuses, answer
            assert b"location:" not in answer.lower()


def bodies(world: World) -> dict[str, dict[str, Any]]:
    """Return a valid body for each operation that takes JSON."""
    question = [{"role": "user", "content": "x"}]
    return {
        "/v1/fine_tuning/jobs": {"model": BASE, "training_file": world.file, "dry_run": True},
        "/v1/uploads": {"filename": "x.jsonl", "purpose": "fine-tune", "bytes": 5},
        "/v1/uploads/upload-x/complete": {"part_ids": ["part-x"]},
        "/v1/chat/completions": {"model": BASE, "messages": question},
        "/v1/completions": {"model": BASE, "prompt": "x"},
        "/v1/embeddings": {"model": BASE, "input": "x"},
        "/v1/classify": {"model": BASE, "input": "x"},
    }


FIELDS: dict[str, list[str]] = {
    "/v1/fine_tuning/jobs": list(openai_types.CreateFineTuningJob.model_fields),
    "/v1/uploads": list(openai_types.CreateUpload.model_fields),
    "/v1/uploads/upload-x/complete": list(openai_types.CompleteUpload.model_fields),
    "/v1/chat/completions": ["model", "messages", "stream", "n", "stream_options", "logit_bias", "tools"],
    "/v1/completions": ["model", "prompt", "stream", "n", "max_tokens", "temperature"],
    "/v1/embeddings": ["model", "input", "encoding_format", "dimensions"],
    "/v1/classify": ["model", "input"],
}


def with_value(body: dict[str, Any], field: str, value: str) -> str:
    """Return a body as JSON with a field set to raw JSON text."""
    rest = json.dumps({name: given for name, given in body.items() if name != field})
    return f"{{{json.dumps(field)}: {value}, {rest.removeprefix('{')}".replace(", }", "}")


@pytest.mark.parametrize("name", VALUES)
def test_odd_values_in_bodies(world: World, name: str) -> None:
    for path, body in bodies(world).items():
        for field in [*FIELDS[path], "unknown", "\x00"]:
            fine(world.ask("POST", path, with_value(body, field, VALUES[name])))
        fine(world.ask("POST", path, VALUES[name]))


@pytest.mark.parametrize("section", SECTIONS)
def test_odd_values_in_sections_of_the_job_file(world: World, section: str) -> None:
    body = bodies(world)["/v1/fine_tuning/jobs"]
    fields = [*SECTIONS[section].model_fields, "unknown", "\x00"]
    for value in VALUES.values():  # all fields at once: their errors are reported together
        wrong = "{" + ", ".join(f"{json.dumps(field)}: {value}" for field in fields) + "}"
        fine(world.ask("POST", "/v1/fine_tuning/jobs", with_value(body, section, wrong)))
    for field in fields:  # one field at a time: a valid one is resolved further
        for name in ("1e308", "1e-320", "a huge number", "true", "emoji"):
            wrong = with_value({}, field, VALUES[name])
            fine(world.ask("POST", "/v1/fine_tuning/jobs", with_value(body, section, wrong)))


def test_bodies_that_are_not_json(world: World) -> None:
    for path, body in bodies(world).items():
        text = json.dumps(body)
        for content in (
            b"",
            b"{",
            b"\xff\xfe",
            b"\x00",
            text.encode("utf-16"),
            text[:-3].encode(),
            f"{text}{text}".encode(),
            f'{text[:-1]}, "metadata": {{"a": "\ud800"}}}}'.encode("utf-8", "surrogatepass"),
            b'{"model": "\x00"}',
            b'{"a":' * 100_000,
        ):
            assert check_error(world.ask("POST", path, content)).status == 400, (path, content[:40])
        assert world.ask("POST", path, b"\xef\xbb\xbf" + text.encode()).status_code != 500
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
            fine(world.client.post(path, content=text, headers={"Content-Type": kind}))


def test_many_errors_get_a_short_response(world: World) -> None:
    many = json.dumps({f"field-{i}": i for i in range(40_000)})
    values = with_value({}, "search", json.dumps({"space": {"epochs": list(range(100_000))}}))
    for value in (
        with_value({}, "training", many),
        with_value({}, "metadata", many),
        with_value({}, "search", with_value({}, "space", many)),
        with_value({}, "search", values),
        many,
    ):
        body = bodies(world)["/v1/fine_tuning/jobs"]
        text = value if value == many else json.dumps({**json.loads(value), **body})
        answer = world.ask("POST", "/v1/fine_tuning/jobs", text)
        assert check_error(answer).status == 400
        assert len(answer.content) < 100_000


def test_any_suffix_makes_a_usable_model_name(world: World) -> None:
    """The model is found by the name that the job reports, for any characters of the suffix."""
    for suffix in ("my model: v1", "a/b/Ünï", "::", "\x00"):
        body = {"model": BASE, "training_file": world.file, "suffix": suffix}
        job = world.ask("POST", "/v1/fine_tuning/jobs", json.dumps(body)).json()
        for _ in range(200):
            found = world.ask("GET", f"/v1/fine_tuning/jobs/{job['id']}").json()
            if found["status"] == "succeeded":
                break
            world.server.run_launched()
        name = found["fine_tuned_model"]
        assert name.count(":") == 4
        asked = json.dumps({"model": name, "messages": [{"role": "user", "content": "hello"}]})
        deadline = time.monotonic() + 10
        while (answer := world.ask("POST", "/v1/chat/completions", asked)).status_code == 404:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)  # an unknown name is cached for a moment, and this runner takes no longer
        assert (answer.status_code, answer.json().get("model")) == (200, name), answer.text
        assert world.ask("GET", f"/v1/models/{quote(name, safe='')}").json()["id"] == name
