"""The official client drives batches on the in-process API with fake engines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys, audit, usage
from serving.http.errors import not_ready
from tests.builders import make_spec
from tests.serving.api_harness import BASE, ApiServer, add_base, api_server, register, write_deployment
from tests.serving.batches.batch_store import CHAT, jsonl, request_line


@pytest.fixture
def server(store: Workspace) -> Iterator[ApiServer]:
    """A running endpoint with a deployed base; a new key is known at once."""
    add_base(store)
    home = Workspace(store, "blue")
    register(home, make_spec("greeter", base_model=BASE), "greeter")
    write_deployment(home, "greeter")
    with api_server(store, key_ttl_s=0.01, usage_every_s=0.2) as running:
        yield running


def client_of(server: ApiServer, team: str, **options: Any) -> openai.OpenAI:
    _, secret = api_keys.create(server.store, team, "tests", **options)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)


def upload(client: openai.OpenAI, lines: list[dict[str, Any]], purpose: Any = "batch") -> str:
    return client.files.create(file=("in.jsonl", jsonl(lines)), purpose=purpose).id


def create(client: openai.OpenAI, file: str, endpoint: Any = CHAT, **more: Any) -> Batch:
    """Create a batch; `endpoint` may be one that OpenAI does not have."""
    return client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **more)


def ended(client: openai.OpenAI, identifier: str) -> Batch:
    deadline = time.monotonic() + 60
    while (batch := client.batches.retrieve(identifier)).status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in lines}


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"hello from {custom_id}"}]
    return request_line(custom_id, body={"model": BASE, "messages": messages} | body)


def test_upload_create_poll_download(server: ApiServer) -> None:
    client = client_of(server, "blue")
    lines = [chat("a"), chat("b", temperature=9.0), chat("c", model="retired"), chat("d")]
    made = create(client, upload(client, lines), metadata={"of": "tests"})
    assert (made.object, made.metadata) == ("batch", {"of": "tests"})
    done = ended(client, made.id)
    assert done.status == "completed"
    assert done.model == BASE
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 2, 2)
    output, errors = lines_of(client, done.output_file_id), lines_of(client, done.error_file_id)
    assert output.keys() == {"a", "d"}
    assert output["a"]["response"]["body"]["choices"][0]["message"]["content"] == "hello from a"
    refused = {name: line["response"] for name, line in errors.items()}
    assert {name: each["status_code"] for name, each in refused.items()} == {"b": 400, "c": 404}
    assert refused["b"]["body"]["error"]["param"] == "temperature"
    assert refused["c"]["body"]["error"]["code"] == "model_not_found"
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (6, 6, 12)
    assert [batch.id for batch in client.batches.list()] == [made.id]
    assert {file.purpose for file in client.files.list()} == {"batch", "batch_output"}


def test_each_line_is_counted_once_for_the_key_and_team(server: ApiServer) -> None:
    client = client_of(server, "blue")
    lines = [chat(f"line-{i}") for i in range(20)]
    made = create(client, upload(client, lines))
    assert ended(client, made.id).status == "completed"
    today = datetime.now(UTC).date()
    deadline = time.monotonic() + 60
    while not (rows := usage.read(server.store, "blue", today, today)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (row,) = rows
    key = server.store.get_json(f"teams/blue/batches/{made.id}.json")["key_id"]
    assert (row.key_id, row.requests, row.prompt_tokens, row.completion_tokens) == (key, 20, 60, 60)


def test_other_endpoints(server: ApiServer) -> None:
    server.deploy_classifier("labels")
    client = client_of(server, "blue", scopes=["admin"])
    for endpoint, body in (
        ("/v1/completions", {"model": BASE, "prompt": "hello"}),
        ("/v1/responses", {"model": BASE, "input": "hello"}),
        ("/v1/embeddings", {"model": "labels", "input": "hello"}),
        ("/v1/classify", {"model": "labels", "input": "hello"}),
    ):
        file = upload(client, [request_line("a", url=endpoint, body=body)])
        made = create(client, file, endpoint)
        done = ended(client, made.id)
        assert done.error_file_id is None, lines_of(client, done.error_file_id)
        assert lines_of(client, done.output_file_id)["a"]["response"]["status_code"] == 200
        assert done.usage is not None
        assert done.usage.input_tokens > 0


def test_an_invalid_file_has_its_errors_by_line(server: ApiServer) -> None:
    client = client_of(server, "blue")
    file = upload(client, [chat("a"), chat("b", stream=True)])
    done = ended(client, create(client, file).id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(error.code, error.line, error.param) for error in done.errors.data] == [("unsupported", 2, "body.stream")]
    with pytest.raises(openai.BadRequestError, match="is failed and cannot be cancelled"):
        client.batches.cancel(done.id)


def test_what_cannot_be_a_batch_is_refused(server: ApiServer) -> None:
    client, other = client_of(server, "blue"), client_of(server, "green")
    file, theirs = upload(client, [chat("a")]), upload(other, [chat("a")])
    rows = upload(client, [{"messages": [{"role": "user", "content": "a"}]}], purpose="user_data")
    for given, code, param in (
        ({"input_file_id": "file-nothing"}, "file_not_found", "input_file_id"),
        ({"input_file_id": theirs}, "file_not_found", "input_file_id"),
        ({"input_file_id": rows}, "wrong_purpose", "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "invalid_request", "endpoint"),
        ({"completion_window": "1h"}, "invalid_request", "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "invalid_request", "metadata.k"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "invalid_request",
            "output_expires_after.seconds",
        ),
    ):
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"} | given
        with pytest.raises(openai.BadRequestError) as refused:
            client.post("/batches", body=body, cast_to=httpx.Response)
        assert (refused.value.code, refused.value.param) == (code, param)
    with pytest.raises(openai.BadRequestError):
        client.post("/files", body={"purpose": "batch_output"}, files={"file": b"{}"}, cast_to=httpx.Response)


def test_a_team_has_its_own_batches_only(server: ApiServer) -> None:
    ours, theirs = client_of(server, "blue"), client_of(server, "green")
    made = create(theirs, upload(theirs, [chat("a")]))
    done = ended(theirs, made.id)
    for call in (ours.batches.retrieve, ours.batches.cancel):
        with pytest.raises(openai.NotFoundError) as refused:
            call(made.id)
        assert refused.value.code == "batch_not_found"
    with pytest.raises(openai.NotFoundError):
        ours.files.content(str(done.output_file_id))
    assert list(ours.batches.list()) == []


def test_the_scopes_of_a_key(server: ApiServer) -> None:
    whole = client_of(server, "blue")
    file = upload(whole, [chat("a")])
    asked: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for scope in ("read", "fine-tuning"):
        with pytest.raises(openai.PermissionDeniedError):
            client_of(server, "blue", scopes=[scope]).batches.create(**asked)
    made = client_of(server, "blue", scopes=["inference"]).batches.create(**asked)
    assert client_of(server, "blue", scopes=["read"]).batches.retrieve(made.id).id == made.id
    assert ended(whole, made.id).status == "completed"


def test_a_repeated_create_makes_one_batch_and_the_log_has_it(server: ApiServer) -> None:
    client = client_of(server, "blue")
    file = upload(client, [chat("a")])
    asked: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    made = [client.batches.create(**asked, extra_headers={"Idempotency-Key": "one"}).id for _ in range(2)]
    made.append(client.batches.create(**asked).id)
    made.append(client.batches.create(**asked, extra_headers={"x-stainless-retry-count": "1"}).id)
    assert (made[0] == made[1], made[2] == made[3], len(set(made))) == (True, True, 2)
    with pytest.raises(openai.ConflictError):
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers={"Idempotency-Key": "one"})
    today = datetime.now(UTC).date()
    entries = audit.read(server.store, today, today, action="batch")
    assert sorted(entry.target for entry in entries if entry.failed is None) == sorted({*made})
    for identifier in set(made):
        ended(client, identifier)


def test_an_input_file_stays_while_its_batch_is_open(server: ApiServer) -> None:
    client = client_of(server, "blue")
    file = upload(client, [chat("a")])
    server.backend.failure = not_ready(BASE)  # a line waits for an engine that starts
    made = create(client, file)
    with pytest.raises(openai.ConflictError, match="cancel the batch first") as refused:
        client.files.delete(file)
    assert refused.value.code == "file_in_use"
    client.batches.cancel(made.id)
    assert ended(client, made.id).status == "cancelled"
    assert client.files.delete(file).deleted
