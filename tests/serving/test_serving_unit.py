"""The endpoint without Ray and without engines: names, keys, sizes, the shape of errors, streams.

Over 400 lines: one application without engines stands behind all of it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from ray_jobs import registry
from ray_jobs.deploy import needed_records, records
from ray_jobs.deploy.records import Deployment
from ray_jobs.errors import SpecError, StoreUnreachable
from ray_jobs.registry import Lineage, ModelVersion
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Store
from serving.access.auth import OPERATOR, key_matches
from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Route
from serving.inference.router import Router, RoutingSnapshot, resolve
from serving.routes.inference import _stream
from serving.settings import EndpointSettings
from tests.builders import make_spec
from tests.serving.api_harness import make_app
from tests.serving.fake_backend import FakeBackend

KEY = "a-key-of-the-tests"
ASK = {"model": "greeter", "messages": [{"role": "user", "content": "good day to you"}]}


def make_version(number: str = "1", *, name: str = "greeter", task: str = "chat", **changes: Any) -> ModelVersion:
    lineage = Lineage("d" * 16, "b" * 16, make_spec(name, task=task), "0.1.0", "job", {}, ("ham", "spam"))
    version = ModelVersion(
        name, number, f"models/{name}/{number}", task, "adapter", "base", "b" * 16, lineage.labels, {}, lineage
    )
    return replace(version, **changes)


def make_snapshot(*versions: ModelVersion, aliases: dict[str, dict[str, str]] | None = None) -> RoutingSnapshot:
    """The last version of each name is the deployed one."""
    deployed: dict[str, Deployment] = {}
    by_name: dict[str, tuple[ModelVersion, ...]] = {}
    for version in versions:
        rank = 8 if version.kind == "adapter" else None
        for record in needed_records(version, None, ServingSection(), lora_rank=rank):
            deployed[record.name] = record
        by_name[version.name] = (*by_name.get(version.name, ()), version)
    return RoutingSnapshot(deployed, by_name, aliases or {})


ADAPTERS = make_snapshot(make_version("1"), make_version("2"), make_version("10"))


class FixedRouter(Router):
    """A router whose snapshot is given."""

    def __init__(self, snapshot: RoutingSnapshot) -> None:
        self._given = snapshot

    async def snapshot(self, *, max_age_s: float | None = None) -> RoutingSnapshot:
        return self._given


def make_client(
    backend: FakeBackend | None = None, snapshot: RoutingSnapshot = ADAPTERS, **settings: Any
) -> TestClient:
    app = make_app(FixedRouter(snapshot), backend, **{"api_key": KEY} | settings)
    return TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with make_client() as client:
        yield client


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_the_newest_version_and_a_base_is_itself() -> None:
    assert resolve(ADAPTERS, "greeter", OPERATOR) == Route("greeter@10", "kitae-base", "chat", adapter="greeter@10")
    assert resolve(ADAPTERS, "base", OPERATOR) == Route("base", "kitae-base", "chat")


def test_a_bare_name_is_the_champion_where_there_is_one() -> None:
    snapshot = replace(ADAPTERS, aliases={"greeter": {"champion": "2", "old": "1"}})
    assert resolve(snapshot, "greeter", OPERATOR).model == "greeter@2"
    assert resolve(snapshot, "greeter@old", OPERATOR).model == "greeter@1"
    assert resolve(snapshot, "greeter@10", OPERATOR).model == "greeter@10"


def test_a_name_deployed_with_a_label_means_that_one() -> None:
    pinned = ADAPTERS.records | {"greeter": ADAPTERS.records["greeter"].model_copy(update={"label": "1"})}
    assert resolve(replace(ADAPTERS, records=pinned), "greeter", OPERATOR).model == "greeter@1"


@pytest.mark.parametrize(
    "model", ["nobody", "greeter@3", "greeter@", "base@1", "", "@1", "greeter@champion", "greeter@1@2"]
)
def test_an_unknown_name_is_not_found(model: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(ADAPTERS, model, OPERATOR)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_an_unknown_name_brings_the_near_ones() -> None:
    with pytest.raises(ApiError, match=r"did you mean .*greeter@1"):
        resolve(ADAPTERS, "greter@1", OPERATOR)


def test_a_version_from_another_base_is_not_answered_by_this_one() -> None:
    stranger = make_version("11", base_digest="c" * 16)
    snapshot = replace(ADAPTERS, versions={"greeter": (*ADAPTERS.versions["greeter"], stranger)})
    with pytest.raises(ApiError, match="another base"):
        resolve(snapshot, "greeter@11", OPERATOR)


def test_a_model_with_its_own_engine_answers_only_for_the_version_that_runs() -> None:
    snapshot = make_snapshot(make_version("1", kind="full"), make_version("2", kind="full"))
    assert resolve(snapshot, "greeter", OPERATOR) == Route("greeter@2", "kitae-greeter", "chat")
    newer = replace(snapshot, versions={"greeter": (*snapshot.versions["greeter"], make_version("3", kind="full"))})
    assert resolve(newer, "greeter", OPERATOR).model == "greeter@2"
    with pytest.raises(ApiError, match=r"the endpoint runs greeter@2.*kitae deploy greeter@3"):
        resolve(newer, "greeter@3", OPERATOR)


def test_all_names_of_the_list_can_be_asked_for() -> None:
    names = ADAPTERS.names(OPERATOR)
    assert sorted(names) == ["base", "greeter", "greeter@1", "greeter@10", "greeter@2"]
    for name in names:
        resolve(ADAPTERS, name, OPERATOR)


# --- the router and its store ----------------------------------------------------------------------------------------


def register(store: Store, directory: Path, mark: str) -> ModelVersion:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 8}))
    save_file({"w": np.zeros(1, dtype=np.float32)}, directory / "adapter_model.safetensors", {"mark": mark})
    lineage = Lineage("d" * 16, "b" * 16, make_spec(), "0.1.0", "job", {})
    return registry.register(store, "greeter", directory, lineage=lineage, lineage_digest=mark)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_new_versions_and_moved_aliases_count_after_the_time_to_live(store: Store, tmp_path: Path) -> None:
    now = 0.0
    first = register(store, tmp_path / "weights", "one")
    for record in needed_records(first, None, ServingSection(), lora_rank=8):
        records.write(store, record)
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"
    register(store, tmp_path / "weights", "two")
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"
    now = 2.5
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@2"
    registry.set_alias(store, "greeter", "champion", "1")
    now = 5.0
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"


@pytest.mark.anyio
async def test_while_requests_come_none_waits_for_what_is_deployed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read beside them, before the time to live is over; a store that is away holds nobody up for long."""
    now, may_read, reads = 0.0, threading.Event(), 0

    def read(store: Store) -> RoutingSnapshot:
        nonlocal reads
        reads += 1
        assert may_read.wait(10)
        return replace(ADAPTERS)

    monkeypatch.setattr("serving.inference.router.read_snapshot", read)
    monkeypatch.setattr("serving.inference.router._PATIENCE_S", 0.05)
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    may_read.set()
    first = await router.snapshot()
    may_read.clear()
    now = 0.9
    assert await router.snapshot() is first
    now = 1.8
    assert all([await router.snapshot() is first for _ in range(5)])
    await asyncio.sleep(0.01)
    assert reads == 2
    now = 9.0  # the store does not answer
    assert await router.snapshot() is first
    may_read.set()
    while (second := await router.snapshot()) is first:
        await asyncio.sleep(0.01)
    assert await router.snapshot(max_age_s=0.25) is not first
    router.forget()
    assert await router.snapshot() is not second


@pytest.mark.anyio
async def test_a_name_deployed_a_moment_ago_is_found_at_once(store: Store, tmp_path: Path) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    with pytest.raises(ApiError, match="nothing yet"):
        await router.resolve("greeter", "/v1/chat/completions", OPERATOR)
    for record in needed_records(register(store, tmp_path / "w", "one"), None, ServingSection(), lora_rank=8):
        records.write(store, record)
    now = 0.5
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"


@pytest.mark.anyio
async def test_what_was_known_answers_while_the_store_is_away(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    first = register(store, tmp_path / "weights", "one")
    for record in needed_records(first, None, ServingSection(), lora_rank=8):
        records.write(store, record)
    reached = await router.snapshot()

    def away(store: Store) -> RoutingSnapshot:
        raise StoreUnreachable("no answer")

    monkeypatch.setattr("serving.inference.router.read_snapshot", away)
    now = 10.0
    assert await router.snapshot() is reached
    with pytest.raises(ApiError) as caught:
        await Router(store, ttl_s=2.0).snapshot()
    assert (caught.value.status, caught.value.code) == (503, "store_unreachable")


# --- keys, sizes, errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (f"Bearer {KEY}", True),
        (f"bearer {KEY}", True),
        (f"Bearer {KEY}x", False),
        (f"Basic {KEY}", False),
        (KEY, False),
        ("Bearer ", False),
        ("", False),
        (None, False),
        ("Bearer ключ", False),
    ],
)
def test_only_the_key_itself_opens(header: str | None, right: bool) -> None:
    assert key_matches(header, KEY) is right


def test_every_path_but_the_probes_needs_the_key() -> None:
    backend = FakeBackend(states={"kitae": "RUNNING", "kitae-base": "RUNNING"})
    with make_client(backend) as client:
        client.headers.pop("authorization")
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/nowhere"),
            ("GET", "/docs"),
        ]:
            error = error_of(client.request(method, path), 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200


def test_no_key_is_needed_only_where_the_settings_say_so() -> None:
    with make_client(api_key=None) as client:
        client.headers.pop("authorization")
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({}, "KITAE_API_KEY has 0 characters"),
        ({"KITAE_API_KEY": "short"}, "KITAE_API_KEY has 5 characters"),
        ({"KITAE_AUTH": "maybe", "KITAE_API_KEY": KEY}, "KITAE_AUTH is 'maybe'"),
        ({"KITAE_API_KEY": KEY, "KITAE_MAX_BODY_BYTES": "-1"}, "KITAE_MAX_BODY_BYTES is '-1'"),
        ({"KITAE_API_KEY": KEY, "KITAE_MAX_ONGOING_REQUESTS": "0"}, "KITAE_MAX_ONGOING_REQUESTS is '0'"),
    ],
)
def test_unusable_settings_are_refused(environment: dict[str, str], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        EndpointSettings.from_env(environment)


def test_settings_come_from_the_environment() -> None:
    assert EndpointSettings.from_env({"KITAE_AUTH": "off"}).api_key is None
    settings = EndpointSettings.from_env({"KITAE_API_KEY": KEY, "KITAE_MAX_BODY_BYTES": "2048"})
    assert (settings.api_key, settings.max_body_bytes) == (KEY, 2048)


def test_a_request_over_the_limit_is_refused_announced_or_not() -> None:
    with make_client(max_body_bytes=2000) as client:
        body = json.dumps(ASK | {"user": "x" * 3000}).encode()
        assert error_of(client.post("/v1/chat/completions", content=body), 413)["code"] == "request_too_large"
        chunked = client.post("/v1/chat/completions", content=iter([body[:1500], body[1500:]]))
        assert error_of(chunked, 413)["code"] == "request_too_large"
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


@pytest.mark.parametrize("content", [b"{oops", b"[1]", b"", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_a_bad_request(client: TestClient, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/classify"):
        error = error_of(client.post(path, content=content), 400)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, change: dict[str, Any], param: str) -> None:
    error = error_of(client.post("/v1/chat/completions", json=ASK | change), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_have_the_same_shape(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["message"] == "no such path: GET /v1/nothing"
    assert error_of(client.get("/v1/chat/completions"), 405)["type"] == "invalid_request_error"


def test_a_request_id_is_kept_or_given(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    given = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(given) == 3


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_engine_is_asked_for_the_exact_version_under_an_id_of_ours() -> None:
    backend = FakeBackend()
    with make_client(backend) as client:
        answer = client.post("/v1/chat/completions", json=ASK | {"request_id": "theirs"}).json()
    ((route, method, body),) = backend.calls
    assert (route.adapter, method, body["model"]) == ("greeter@10", "chat", "greeter@10")
    assert body["request_id"] != "theirs"
    assert answer["model"] == "greeter@10"
    assert answer["choices"][0]["message"]["content"] == "good day to you"
    assert backend.closed == 1


def test_a_stream_is_passed_on_piece_by_piece() -> None:
    backend = FakeBackend()
    with make_client(backend) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:-1]]
    assert words == ["good", "day", "to", "you"]
    assert backend.closed == 1


@pytest.mark.anyio
async def test_a_client_that_goes_away_ends_the_request() -> None:
    backend = FakeBackend()
    body = ASK | {"stream": True}
    pieces = backend.generate(Route("m", "a", "chat"), "chat", body)
    first = await anext(pieces)
    assert isinstance(first, str)
    async with aclosing(_stream(first, pieces)) as stream:  # type: ignore[type-var]  # an async generator, typed by its protocol
        await anext(stream)
    assert backend.closed == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (errors.queue_full("greeter"), 429, "queue_full", "1"),
        (errors.not_ready("greeter"), 503, "model_not_ready", "5"),
        (RuntimeError("secret internals"), 500, None, None),
    ],
)
def test_failures_before_the_first_piece_have_a_status(
    stream: bool, failure: Exception, status: int, code: str | None, retry_after: str | None
) -> None:
    with make_client(FakeBackend(failure=failure)) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": stream})
    error = error_of(response, status)
    assert error["code"] == code
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in response.text


def test_a_failure_inside_a_stream_is_told_in_the_stream() -> None:
    with make_client(FakeBackend(failure=RuntimeError("secret internals"), fail_after=2)) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": True})
    last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_the_engines_refusals_keep_status_and_words() -> None:
    refusal = {"message": "This model's maximum context length is 64 tokens", "code": 400, "param": "messages"}
    with make_client(FakeBackend(refusal=refusal)) as client:
        error = error_of(client.post("/v1/chat/completions", json=ASK), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    with make_client(FakeBackend(refusal={"message": "secret internals", "code": 500})) as client:
        assert "secret" not in error_of(client.post("/v1/chat/completions", json=ASK), 500)["message"]
    with make_client(FakeBackend(refusal={"message": "EngineDeadError", "code": 503})) as client:
        assert error_of(client.post("/v1/chat/completions", json=ASK), 503)["code"] == "model_not_ready"


def test_completions_need_a_prompt_and_answer_it(client: TestClient) -> None:
    assert error_of(client.post("/v1/completions", json={"model": "base"}), 400)["param"] == "prompt"
    answer = client.post("/v1/completions", json={"model": "base", "prompt": "one two"}).json()
    assert answer["choices"][0]["message"]["content"] == "one two"


CLASSIFIER = make_snapshot(
    make_version("1"), make_version("1", name="spam", task="text_classification", kind="predictor")
)


def test_classification_answers_with_labels_scores_and_usage() -> None:
    with make_client(snapshot=CLASSIFIER) as client:
        answer = client.post("/v1/classify", json={"model": "spam", "input": ["buy now", "hi"]}).json()
        single = client.post("/v1/classify", json={"model": "spam@1", "input": "buy now"}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "spam@1"
    assert answer["data"][1] == {"index": 1, "label": "spam", "scores": {"ham": 0.25, "spam": 0.75}}
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert len(single["data"]) == 1


@pytest.mark.parametrize("given", [None, [], 3, [1], ["a"] * 1025, {"a": 1}])
def test_classification_needs_texts(given: Any) -> None:
    with make_client(snapshot=CLASSIFIER) as client:
        assert error_of(client.post("/v1/classify", json={"model": "spam", "input": given}), 400)["param"] == "input"


def test_a_model_is_asked_only_for_what_it_does() -> None:
    with make_client(snapshot=CLASSIFIER) as client:
        error = error_of(client.post("/v1/chat/completions", json=ASK | {"model": "spam"}), 400)
        assert error["code"] == "wrong_task"
        assert "/v1/classify" in error["message"]
        error = error_of(client.post("/v1/classify", json={"model": "greeter", "input": "hi"}), 400)
        assert "/v1/chat/completions" in error["message"]


def test_models_are_listed_and_described(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["base", "greeter", "greeter@1", "greeter@2", "greeter@10"]
    card = client.get("/v1/models/greeter@2").json()
    assert (card["id"], card["object"], card["owned_by"]) == ("greeter@2", "model", "default")
    assert card["created"] > 1_700_000_000
    assert error_of(client.get("/v1/models/nobody"), 404)["code"] == "model_not_found"


def test_ready_means_everything_deployed_runs() -> None:
    backend = FakeBackend(states={"kitae": "RUNNING", "kitae-base": "DEPLOYING"})
    with make_client(backend) as client:
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["waits_for"] == {"kitae-base": "DEPLOYING"}
        backend.states["kitae-base"] = "RUNNING"
        assert client.get("/readyz").status_code == 200


def test_the_official_client_reads_the_errors() -> None:
    """`e.code`, `e.param` and `e.type` are filled, which FastAPI's own bodies leave empty."""
    with make_client() as http:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key=KEY, http_client=http, max_retries=0)
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
        assert (caught.value.code, caught.value.param, caught.value.type) == (
            "model_not_found",
            "model",
            "not_found_error",
        )
        assert [model.id for model in client.models.list()][:2] == ["base", "greeter"]
        assert client.models.retrieve("greeter@1").id == "greeter@1"
