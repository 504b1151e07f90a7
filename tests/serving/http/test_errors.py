"""Errors have one shape, which the official client reads; bodies are parsed strictly."""

from __future__ import annotations

import json

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ray_jobs.errors import CorruptObject, StoreError, StoreUnreachable
from serving.http import errors
from tests.serving.routing import ASK, KEY, error_of, make_client


def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length() -> None:
    with make_client(max_body_bytes=2000) as client:
        body = json.dumps(ASK | {"user": "x" * 3000}).encode()
        assert error_of(client.post("/v1/chat/completions", content=body), 413)["code"] == "request_too_large"
        chunked = client.post("/v1/chat/completions", content=iter([body[:1500], body[1500:]]))
        assert error_of(chunked, 413)["code"] == "request_too_large"
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


@pytest.mark.parametrize("content", [b"{oops", b"[1]", b"", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_refused(client: TestClient, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/classify"):
        error = error_of(client.post(path, content=content), 400)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


def test_errors_of_unknown_paths_and_methods_have_the_error_shape(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["message"] == "no such path: GET /v1/nothing"
    assert error_of(client.get("/v1/completions"), 405)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("error", "status", "code", "again"),
    [
        (StoreUnreachable("away"), 503, "store_unreachable", "5"),
        (CorruptObject("secret/key.json is not a record"), 500, "internal_error", None),  # a retry would find the same
    ],
)
def test_a_failing_store_is_503_and_a_damaged_record_is_500(
    error: StoreError, status: int, code: str | None, again: str | None
) -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/fails")
    def fails() -> None:
        raise error

    with TestClient(app) as client:
        answer = client.get("/fails")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == again
    assert "secret" not in answer.text


def test_a_request_id_is_kept_or_generated(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    given = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(given) == 3


def test_the_official_client_reads_the_errors() -> None:
    """`e.code`, `e.param` and `e.type` are filled, which FastAPI's own bodies leave empty."""
    with make_client() as http:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key=KEY, http_client=http, max_retries=0)
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="unknown", messages=[{"role": "user", "content": "hi"}])
        assert (caught.value.code, caught.value.param, caught.value.type) == (
            "model_not_found",
            "model",
            "not_found_error",
        )
        assert [model.id for model in client.models.list()][:2] == ["base", "greeter"]
        assert client.models.retrieve("greeter@1").id == "greeter@1"
