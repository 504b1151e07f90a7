"""Paths as clients spell them, OpenAI's routes that Kitae does not have, and pages of other origins."""

from __future__ import annotations

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletionMessageParam

from ray_jobs.errors import SpecError
from serving.http.absent import INSTEAD, POSTS
from serving.http.paths import canonical
from serving.settings import EndpointSettings
from tests.serving.routing import KEY, error_of, make_client

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "good day to you"}]
PAGE = "https://chat.example.com"


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/v1/models", "/v1/models"),
        ("//v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("///v1/files//", "/v1/files"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1//models", "/v1/models"),
        ("/", "/"),
        ("", "/"),
        ("/v1/models/greeter/", "/v1/models/greeter/"),
        ("/v1/models/org//name", "/v1/models/org//name"),
        ("/openai/v1/models/greeter/", "/v1/models/greeter/"),
        ("//metrics/", "/metrics"),
    ],
)
def test_a_path_is_read_as_it_was_meant(path: str, known: str) -> None:
    assert canonical(path) == known


def test_spellings_of_a_path_reach_its_route_with_its_rules(client: TestClient) -> None:
    for path in ("http://testserver//v1/models", "/v1/models/", "/openai/v1/models?api-version=2025-04-01"):
        assert client.get(path).status_code == 200, path
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401, path
    assert client.get("/healthz/", headers={"authorization": ""}).status_code == 200


def test_head_is_a_get_without_its_body(client: TestClient) -> None:
    head, get = client.head("/v1/models"), client.get("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/v1/nothing").status_code == 404


@pytest.mark.parametrize("path", POSTS)
def test_an_operation_that_does_not_exist_here_says_what_does(client: TestClient, path: str) -> None:
    path = path.replace("{}", "resp_1")
    error = error_of(client.post(path, json={}), 400)
    assert (error["code"], error["message"].split(" ")[0]) == ("unsupported_route", path)


@pytest.mark.parametrize("path", INSTEAD)
def test_a_route_that_does_not_exist_here_says_what_does(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        error = error_of(client.request(method, path, json={}), 400)
        assert error["code"] == "unsupported_route"
        assert path.startswith(error["message"].split(" ")[0])
    assert client.post(path, headers={"authorization": ""}).status_code == 401


def test_azures_client_works_with_its_v1_path() -> None:
    with make_client() as http:
        client = openai.OpenAI(base_url="http://testserver/openai/v1/", api_key=KEY, http_client=http)
        assert client.chat.completions.create(model="greeter", messages=QUESTION).model == "greeter@10"
        azure = openai.AzureOpenAI(
            azure_endpoint="http://testserver", api_key=KEY, api_version="2025-04-01", http_client=http, max_retries=0
        )
        with pytest.raises(openai.BadRequestError, match="/openai/deployments does not exist here: use"):
            azure.chat.completions.create(model="greeter", messages=QUESTION)


def test_pages_of_the_configured_origins_may_call() -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with make_client(cors_origins=(PAGE,)) as client:
        allowed = client.options("/v1/chat/completions", headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        refused = client.get("/v1/models", headers={"origin": PAGE, "authorization": "Bearer wrong"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        other = client.options("/v1/chat/completions", headers=asks | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with make_client() as client:
        assert "access-control-allow-origin" not in client.options("/v1/chat/completions", headers=asks).headers


@pytest.mark.parametrize(
    ("text", "origins"),
    [("", ()), ("*", ("*",)), (f"{PAGE}, http://localhost:3000", (PAGE, "http://localhost:3000"))],
)
def test_origins_are_read_from_the_environment(text: str, origins: tuple[str, ...]) -> None:
    environment = {"KITAE_API_KEY": "k" * 16, "KITAE_CORS_ORIGINS": text}
    assert EndpointSettings.from_env(environment).cors_origins == origins


@pytest.mark.parametrize("text", ["chat.example.com", f"{PAGE}/chat", "null", "https://*.example.com"])
def test_an_origin_that_no_browser_sends_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="KITAE_CORS_ORIGINS"):
        EndpointSettings.from_env({"KITAE_API_KEY": "k" * 16, "KITAE_CORS_ORIGINS": text})
