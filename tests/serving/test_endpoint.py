"""The whole endpoint: real store, real Ray, real vLLM, SmolLM2 with adapters, a classifier, the official client.

Over 400 lines: every test needs the same running endpoint, whose start takes minutes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionMessageParam,
)

from ray_jobs import deploy, local, registry
from ray_jobs.deploy.serve_api import ServeClient, ServeSettings, serve_config
from ray_jobs.local import processes
from ray_jobs.models import bases
from ray_jobs.registry.model import Lineage
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.models.tiny_models import save_encoder, save_tokenizer
from tests.serving.served_models import smollm2, with_adapter

pytestmark = pytest.mark.heavy

BASE = "smollm2-135m-instruct"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
LABELS = ("ham", "spam")
ONGOING, QUEUED = 4, 4


@dataclass(frozen=True)
class Service:
    """A running service with its store, settings and base."""

    store: Workspace
    settings: ServeSettings
    environment: dict[str, str]
    scratch: Path
    base: bases.Base

    @property
    def tuned(self) -> dict[str, Any]:
        """Serving section of all versions of `tuned`: another one would restart the engine."""
        limits = {"max_ongoing_requests": ONGOING, "max_queued_requests": QUEUED}
        return {"serving": limits | {"max_loras": 2, "kv_cache_gib": 0.25, "max_model_len": 1024}}

    @property
    def key(self) -> str:
        return self.environment["KITAE_API_KEY"]

    def client(self, *, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.settings.url, api_key=key or self.key, max_retries=0)

    def register(self, name: str, directory: Path, **spec: Any) -> None:
        # Answers are compared with fp32; `auto` is bf16 where the processor has it.
        task = make_spec(name, base_model=BASE, training={"precision": "fp32"}, **spec)
        lineage = Lineage("d" * 16, self.base.digest, task, "test", "job", {}, LABELS)
        registry.register(self.store, name, directory, lineage=lineage, lineage_digest=directory.name)

    def replicas(self) -> dict[str, int]:
        """Process id of each application's replica."""
        with ServeClient(self.settings) as serve:
            applications = serve.details()["applications"]
        return {
            name: replica["pid"]
            for name, application in applications.items()
            for deployment in application["deployments"].values()
            for replica in deployment["replicas"]
            if replica.get("pid")  # a starting replica has none yet
        }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The module's own store, Ray and endpoint, with version 1 of `tuned` deployed."""
    root = tmp_path_factory.mktemp("service")
    (port,) = processes.free_ports(1)
    before = dict(os.environ)
    try:
        os.environ.pop("KITAE_PORT", None)
        os.environ |= {"KITAE_CACHE": str(root / "cache"), "KITAE_KEEP_DEPLOYMENTS": "on"}
        local.up(root, port=port, log=lambda line: None)
        environment = local.environment(root)
        os.environ.update(environment)
        store = Workspace.from_env(check=False)
        service = Service(
            store, ServeSettings.from_env(), environment, root, bases.prepare(store, str(smollm2()), "chat")
        )
        for seed in (1, 2):
            with_adapter(smollm2(), seed=seed).save_pretrained(str(root / f"adapter-{seed}"))
        service.register("tuned", root / "adapter-1", **service.tuned)
        deploy.deploy(store, "tuned", service.settings, progress=lambda line, s: print(f"{s:5.1f} s  {line}"))
        yield service
    finally:
        local.down(root, log=lambda line: None)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return service.client()


def ask(client: openai.OpenAI, model: str, **options: Any) -> ChatCompletion:
    defaults = {"max_tokens": 8, "temperature": 0.0, "logprobs": True}
    answer = client.chat.completions.create(model=model, messages=QUESTION, **(defaults | options))
    assert isinstance(answer, ChatCompletion)
    return answer


def said(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def logprobs(answer: ChatCompletion) -> list[float]:
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    return [token.logprob for token in found.content]


def test_base_and_adapter_answer_by_their_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [BASE, "tuned", "tuned@1"]
    assert client.models.retrieve("tuned@1").owned_by == "default"
    base, tuned = ask(client, BASE), ask(client, "tuned")
    assert "Paris" in said(base)
    assert (base.model, tuned.model) == (BASE, "tuned@1")
    assert said(tuned) != said(base)
    assert said(ask(client, "tuned@1")) == said(tuned)
    assert base.usage is not None
    assert base.usage.total_tokens == base.usage.prompt_tokens + base.usage.completion_tokens


def test_concurrent_requests_change_no_answer(client: openai.OpenAI) -> None:
    """Base and adapter in one batch answer as they do alone: an adapter does not leak into other answers."""
    names = [BASE, "tuned"]
    alone = {name: logprobs(ask(client, name)) for name in names}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: (name, logprobs(ask(client, name))), names * 2))
    for name, found in together:
        assert found == pytest.approx(alone[name], abs=1e-3)


def test_a_stream_carries_the_same_answer_its_logprobs_and_its_usage(client: openai.OpenAI) -> None:
    whole = ask(client, "tuned")
    chunks = list(
        client.chat.completions.create(
            model="tuned",
            messages=QUESTION,
            max_tokens=8,
            temperature=0.0,
            logprobs=True,
            top_logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len(pieces) > 4
    assert "".join(piece.delta.content or "" for piece in pieces) == said(whole)
    tops = [token.top_logprobs for piece in pieces if piece.logprobs for token in piece.logprobs.content or []]
    assert len(tops) == 8
    assert all(len(top) == 2 for top in tops)
    assert {chunk.model for chunk in chunks} == {"tuned@1"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage == whole.usage


def test_sampling_follows_the_request(client: openai.OpenAI) -> None:
    sampled = [said(ask(client, BASE, temperature=1.0, seed=seed, max_tokens=12)) for seed in (5, 5, 6)]
    assert sampled[0] == sampled[1] != sampled[2]
    stopped = ask(client, BASE, stop=[" France"], max_tokens=12)
    assert "France" not in said(stopped)
    assert stopped.choices[0].finish_reason == "stop"
    assert ask(client, BASE, max_tokens=2).choices[0].finish_reason == "length"
    assert len(ask(client, BASE, n=2, temperature=1.0, max_tokens=2).choices) == 2


def test_completions_continue_a_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0.0, "logprobs": 1}
    base = client.completions.create(model=BASE, **options)
    assert "Paris" in base.choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(model=BASE, stream=True, **options))
    assert streamed == base.choices[0].text
    tuned = client.completions.create(model="tuned", **options)
    assert base.choices[0].logprobs is not None
    assert tuned.choices[0].logprobs is not None
    assert tuned.choices[0].logprobs.token_logprobs != base.choices[0].logprobs.token_logprobs


def test_refusals_reach_the_client(service: Service, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean") as unknown:
        ask(client, "tuned@7")
    assert unknown.value.code == "model_not_found"
    for key in ("wrong", service.key + "x"):
        with pytest.raises(openai.AuthenticationError):
            ask(service.client(key=key), BASE)
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, BASE, max_tokens=4000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError) as hot:
        ask(client, BASE, temperature=9.0)
    assert hot.value.param == "temperature"
    headers = {"Authorization": f"Bearer {service.key}"}
    response = httpx.post(f"{service.settings.url}/chat/completions", content=b"{oops", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert len(response.headers.get_list("x-request-id")) == 1


def test_no_foreign_exception_leaves_the_engine(service: Service, client: openai.OpenAI) -> None:
    """Bodies that vLLM's own validators refuse: each is a 400 without internals, past the endpoint's checks too."""
    script = Path(__file__).parent / "engine_probe.py"
    command = [sys.executable, str(script), f"kitae-{BASE}", BASE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    *answers, imported = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(answers, indent=1))
    assert {"vllm", "torch"}.isdisjoint(imported)
    assert len(answers) > 40
    for name, error in answers:
        if error is not None:
            assert error["code"] == 400, (name, error)
            for inside in ("vllm", "--", "pydantic", "Traceback", "literal"):
                assert inside not in error["message"], (name, error)
    assert sum(error is not None for _, error in answers) >= 0.8 * len(answers)
    assert "Paris" in said(ask(client, BASE))


def test_constraints_are_obeyed(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    answer = ask(client, BASE, response_format=form, max_tokens=40, logprobs=None)
    assert json.loads(said(answer))["city"] in ("Paris", "Rome")
    choice = ask(client, "tuned", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, logprobs=None)
    assert said(choice) in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, BASE, extra_body={"structured_outputs": {"regex": "((a*)*)*b"}})
    assert (refused.value.code, refused.value.param) == ("invalid_constraint", "structured_outputs.regex")


def test_tools_are_called_as_demanded(client: openai.OpenAI) -> None:
    """By guided decoding: the chat template of the base has no tools."""
    cities = ["Paris", "Rome"]
    parameters = {"type": "object", "properties": {"city": {"enum": cities}}, "required": ["city"]}
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("look", "go")]
    create = partial(client.chat.completions.create, messages=QUESTION, tools=tools, max_tokens=80, temperature=0)
    one: Any = {"type": "function", "function": {"name": "go"}}
    choices: list[tuple[str, Any, set[str]]] = [(BASE, "required", {"look", "go"}), ("tuned", one, {"go"})]
    for model, choice, names in choices:
        whole: Any = create(model=model, tool_choice=choice, parallel_tool_calls=False)
        (call,) = whole.choices[0].message.tool_calls
        assert call.function.name in names
        assert json.loads(call.function.arguments)["city"] in cities
        events: Any = list(create(model=model, tool_choice=choice, parallel_tool_calls=False, stream=True))
        deltas = [each for event in events for c in event.choices for each in c.delta.tool_calls or ()]
        assert [each.function.name for each in deltas if each.function.name] == [call.function.name]
        assert "".join(each.function.arguments or "" for each in deltas) == call.function.arguments
    with pytest.raises(openai.BadRequestError) as refused:
        create(model=BASE)
    assert (refused.value.code, refused.value.param) == ("unsupported", "tool_choice")
    plain: Any = create(model=BASE, tool_choice="none", max_tokens=4)
    assert plain.choices[0].message.content


def test_it_is_healthy_and_ready(service: Service) -> None:
    root = service.settings.url.removesuffix("/v1")
    assert httpx.get(f"{root}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{root}/readyz").json() == {"status": "ok"}


def test_a_client_that_goes_away_stops_its_generation(service: Service) -> None:
    stream = service.client().chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    seen = in_flight(service, until_idle=False)
    stream.close()
    assert seen == [1]
    counts = in_flight(service, until_idle=True)
    assert counts[-1] == 0


def in_flight(service: Service, *, until_idle: bool) -> list[int]:
    """Requests the engine is processing: one reading, or readings until none is left."""
    script = """
import ray, sys, time
from ray import serve
ray.init(log_to_driver=False, logging_level="ERROR")
engine = serve.get_app_handle(sys.argv[1])
deadline = time.monotonic() + 20
while True:
    print(count := engine.in_flight.remote().result(), flush=True)
    if count == 0 or sys.argv[2] == "False" or time.monotonic() > deadline:
        break
    time.sleep(0.5)
"""
    command = [sys.executable, "-c", script, f"kitae-{BASE}", str(until_idle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [int(line) for line in done.stdout.split()]


def test_a_full_queue_is_refused_at_once(service: Service) -> None:
    """Requests beyond the running and queued limits are refused with 429; the others are answered."""

    def one(_: int) -> int:
        with httpx.Client(timeout=120) as http:
            body = {"model": BASE, "messages": QUESTION, "max_tokens": 24, "ignore_eos": True}
            headers = {"Authorization": f"Bearer {service.key}"}
            response = http.post(f"{service.settings.url}/chat/completions", json=body, headers=headers)
            if response.status_code == 429:
                assert response.headers["retry-after"]
                assert response.json()["error"]["code"] == "queue_full"
            return response.status_code

    count = 3 * (ONGOING + QUEUED)
    with ThreadPoolExecutor(count) as pool:
        statuses = list(pool.map(one, range(count)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= ONGOING + QUEUED


def test_a_new_version_and_a_moved_alias_answer_without_a_restart(service: Service, client: openai.OpenAI) -> None:
    before, first = service.replicas(), said(ask(client, "tuned"))
    service.register("tuned", service.scratch / "adapter-2", **service.tuned)
    with ThreadPoolExecutor(ONGOING) as pool:  # the engine has not loaded it yet
        firsts = list(pool.map(lambda _: ask(client, "tuned@2"), range(ONGOING)))
    assert {answer.model for answer in firsts} == {"tuned@2"}
    assert said(firsts[0]) != first
    assert wait_for(lambda: ask(client, "tuned").model == "tuned@2")
    registry.set_alias(service.store, "tuned", "champion", "1")
    assert wait_for(lambda: ask(client, "tuned").model == "tuned@1")
    assert said(ask(client, "tuned")) == first
    assert said(ask(client, "tuned@champion")) == first
    assert deploy.deploy(service.store, "tuned@2", service.settings).version == "2"
    assert wait_for(lambda: ask(client, "tuned").model == "tuned@2")
    assert service.replicas() == before
    # Every adapter slot of the engine is taken now, and the base still answers without one.
    assert "Paris" in said(ask(client, BASE))


def wait_for(condition: Any, patience_s: float = 10.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A small encoder with a head, as training publishes it."""
    import torch
    from transformers import AutoTokenizer

    from ray_jobs.models import load_base, save_published

    save_tokenizer(save_encoder(tmp_path / "encoder"), chat_template=None)
    model = load_base(tmp_path / "encoder", "text_classification", LABELS, torch.float32, seed=3)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3.0)  # so that texts differ visibly
    directory = tmp_path / "classifier"
    save_published(model, AutoTokenizer.from_pretrained(tmp_path / "encoder"), directory)
    return directory


def test_a_classifier_is_deployed_beside_what_runs(service: Service, classifier: Path, client: openai.OpenAI) -> None:
    import torch

    from ray_jobs.models import load_processor, load_published
    from ray_jobs.tasks.text_classification import TextClassification

    before = service.replicas()
    service.register("spam", classifier, task="text_classification")
    deploy.deploy(service.store, "spam", service.settings)
    assert service.replicas().items() >= before.items()

    texts = ["buy now", "返品はできますか。", "What is the capital of France?", ""] * 10
    model = load_published(classifier, None, "text_classification", LABELS, torch.float32)
    expected = TextClassification().predict(model, load_processor(classifier, "text_classification"), texts, LABELS)
    url, headers = f"{service.settings.url}/classify", {"Authorization": f"Bearer {service.key}"}
    answer = httpx.post(url, json={"model": "spam", "input": texts}, headers=headers, timeout=60).json()
    assert answer["model"] == "spam@1"
    assert [item["label"] for item in answer["data"]] == [prediction.label for prediction in expected]
    for item, prediction in zip(answer["data"], expected, strict=True):
        assert item["scores"] == pytest.approx(prediction.scores, abs=1e-4)
        assert math.isclose(sum(item["scores"].values()), 1.0, abs_tol=1e-5)
    assert answer["usage"]["total_tokens"] > 0

    embedded = client.embeddings.create(model="spam", input=["free money", "see you at nine"]).data
    assert [round(sum(x * x for x in each.embedding), 4) for each in embedded] == [1, 1]
    floats = client.embeddings.create(model="spam", input="free money", encoding_format="float").data[0].embedding
    assert floats == pytest.approx(embedded[0].embedding, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="/v1/classify") as wrong:
        ask(client, "spam")
    assert wrong.value.code == "wrong_task"
    refused = httpx.post(url, json={"model": "tuned", "input": "hi"}, headers=headers)
    assert "/v1/chat/completions" in refused.json()["error"]["message"]

    deploy.undeploy(service.store, "spam", service.settings)
    assert wait_for(lambda: "spam" not in json.dumps([model.id for model in client.models.list()]))
    assert service.replicas().items() >= before.items()


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_the_api_name_in_every_event_and_its_usage_is_counted(
    service: Service, include_usage: bool
) -> None:
    """Also without `include_usage`; the stream then has no usage event."""
    name = "ftjob-01jstream"
    service.register(name, service.scratch / "adapter-1", **service.tuned)  # the same version the second time
    deploy.deploy(service.store, name, service.settings)
    shown = f"ft:{BASE}:default::01jstream"
    before = counted(service, f"{name}@1")
    body: dict[str, Any] = {"model": shown, "messages": QUESTION, "max_tokens": 6, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}} if include_usage else {}
    headers = {"Authorization": f"Bearer {service.key}"}
    answer = httpx.post(f"{service.settings.url}/chat/completions", json=body, headers=headers, timeout=60)
    *events, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert end == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len(chunks) >= 6
    assert {chunk["model"] for chunk in chunks} == {shown}
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [chunk["choices"] for chunk in chunks].count([]) == len(usages) == int(include_usage)
    if include_usage:
        assert usages[0]["completion_tokens"] == 6
    assert wait_for(lambda: counted(service, f"{name}@1")["completion"] == before["completion"] + 6)
    assert counted(service, f"{name}@1")["prompt"] > before["prompt"]


def counted(service: Service, model: str) -> dict[str, float]:
    """Tokens of a model by kind, from the endpoint's metrics."""
    url, headers = service.settings.url.removesuffix("/v1"), {"Authorization": f"Bearer {service.key}"}
    lines = httpx.get(f"{url}/metrics", headers=headers).text.splitlines()
    found = {"prompt": 0.0, "completion": 0.0}
    for line in lines:
        if line.startswith("kitae_tokens_total{") and f'model="{model}"' in line:
            (kind,) = [kind for kind in found if f'kind="{kind}"' in line]
            found[kind] += float(line.rpartition(" ")[2])
    return found


def test_a_dead_engine_is_not_ready_and_replaced(service: Service, client: openai.OpenAI) -> None:
    """After its process is killed, requests get 503 with Retry-After and no other error until a new engine answers."""
    replica = psutil.Process(service.replicas()[f"kitae-{BASE}"])
    (engine,) = [child for child in replica.children(recursive=True) if "EngineCore" in " ".join(child.cmdline())]
    engine.kill()
    started = time.monotonic()
    refusals = refused_until_it_answers(client)
    print(f"answered again after {time.monotonic() - started:.0f} s")
    assert refusals == {(503, "model_not_ready", "5")}


def refused_until_it_answers(client: openai.OpenAI) -> set[tuple[int, str | None, str | None]]:
    """Status, code and Retry-After of every refusal until the base answers."""
    refusals = set()

    def answers() -> bool:
        try:
            return "Paris" in said(ask(client, BASE))
        except openai.APIStatusError as error:
            refusals.add((error.status_code, error.code, error.response.headers.get("retry-after")))
            return False

    assert wait_for(answers, patience_s=180)
    return refusals


def test_applications_that_kuberay_removes_are_deployed_again(service: Service, client: openai.OpenAI) -> None:
    """Given the endpoint's config alone, as KubeRay does, Serve ends every model; the endpoint deploys them again."""
    before = service.replicas()[f"kitae-{BASE}"]
    with ServeClient(service.settings) as serve:
        serve.apply(serve_config([], service.settings))
    assert wait_for(lambda: service.replicas().get(f"kitae-{BASE}", before) != before, patience_s=180)
    assert {status for status, _, _ in refused_until_it_answers(client)} <= {503}
    assert ask(client, "tuned@1").model == "tuned@1"
