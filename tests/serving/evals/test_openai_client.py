"""The unmodified official client drives evals, runs and graders; models are fakes that echo the last message."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, register, write_deployment

MODEL = "greeter"

ROWS: list[dict[str, Any]] = [
    {"item": {"question": "東京", "answer": "東京"}},
    {"item": {"question": "京都", "answer": "京都府"}},
    {"item": {"question": "Osaka", "answer": "osaka"}},
]
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
CUSTOM: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
TEXTS = {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
EXACT: Any = {"type": "string_check", "name": "exact", "operation": "eq", **TEXTS}
NEAR: Any = {
    "type": "text_similarity",
    "name": "near",
    "evaluation_metric": "rouge_1",
    "pass_threshold": 0.75,
    **TEXTS,
}
ASK: Any = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}


def data_source(rows: list[dict[str, Any]] = ROWS, **more: Any) -> Any:
    source = {"type": "file_content", "content": rows}
    return {"type": "completions", "source": source, "input_messages": ASK, "model": MODEL, **more}


@pytest.fixture(scope="module")
def server(module_store: Workspace) -> Iterator[ApiServer]:
    add_base(module_store)
    register(module_store, make_spec(MODEL, base_model=BASE), MODEL)
    write_deployment(module_store, MODEL)
    with api_server(module_store) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def finished(client: openai.OpenAI, eval_id: str, run_id: str) -> Any:
    deadline = time.monotonic() + 30
    while (run := client.evals.runs.retrieve(run_id, eval_id=eval_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, run
        time.sleep(0.02)
    return run


def refused(create: Any, **body: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        create(**body)
    return caught.value


def test_an_eval_of_a_model(client: openai.OpenAI) -> None:
    made = client.evals.create(
        name="capitals", data_source_config=CUSTOM, testing_criteria=[EXACT, NEAR], metadata={"of": "tests"}
    )
    assert (made.object, made.name, made.metadata) == ("eval", "capitals", {"of": "tests"})
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA  # type: ignore[index]
    run = client.evals.runs.create(
        made.id,
        name="base",
        data_source=data_source(sampling_params={"temperature": 0.5, "max_completion_tokens": 8}),
    )
    assert run.status == "queued"
    run = finished(client, made.id, run.id)
    assert (run.status, run.error, run.model, run.name) == ("completed", None, MODEL, "base")
    assert run.report_url == f"/v1/evals/{made.id}/runs/{run.id}"
    # exact: 東京; near: 東京 1, 京都 of 京都府 2·2/5, osaka 1
    assert run.result_counts.to_dict() == {"total": 3, "passed": 1, "failed": 2, "errored": 0}
    assert [each.to_dict() for each in run.per_testing_criteria_results] == [
        {"testing_criteria": "exact", "passed": 1, "failed": 2},
        {"testing_criteria": "near", "passed": 3, "failed": 0},
    ]
    (usage,) = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count, usage.total_tokens) == (MODEL, 3, 6)
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert [item.datasource_item_id for item in items] == [0, 1, 2]
    assert [item.status for item in items] == ["pass", "fail", "fail"]
    assert items[1].datasource_item == ROWS[1]["item"]
    assert [result.score for result in items[1].results] == [0.0, pytest.approx(0.8)]
    sample = items[1].sample
    assert (sample.input[0].content, sample.output[0].content, sample.model) == ("京都", "京都", MODEL)
    assert (sample.temperature, sample.seed, sample.max_completion_tokens) == (0.5, 42, 8)
    failed = client.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail", order="desc")
    assert [item.datasource_item_id for item in failed] == [2, 1]
    one = client.evals.runs.output_items.retrieve(items[2].id, eval_id=made.id, run_id=run.id)
    assert one.to_dict() == items[2].to_dict()


def test_evals_and_runs_are_listed_changed_and_deleted(client: openai.OpenAI) -> None:
    first, second = (client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT]) for _ in range(2))
    assert [found.id for found in client.evals.list(limit=1)][-2:] == [first.id, second.id]
    assert [found.id for found in client.evals.list(order="desc")][:2] == [second.id, first.id]
    assert [found.id for found in client.evals.list(after=first.id)] == [second.id]
    time.sleep(1.1)  # a store lists the second of a write
    changed = client.evals.update(first.id, name="renamed", metadata={"a": "b"})
    assert (changed.name, client.evals.retrieve(first.id).metadata) == ("renamed", {"a": "b"})
    assert client.evals.update(first.id, metadata=None).name == "renamed"
    assert [found.id for found in client.evals.list(order_by="updated_at")][-2:] == [second.id, first.id]
    assert next(found.id for found in client.evals.list(order_by="updated_at", order="desc", limit=1)) == first.id
    assert [found.id for found in client.evals.list(order_by="updated_at", after=second.id)] == [first.id]
    runs = [client.evals.runs.create(first.id, data_source=data_source()) for _ in range(2)]
    for run in runs:
        finished(client, first.id, run.id)
    assert [run.id for run in client.evals.runs.list(first.id, status="completed")] == [run.id for run in runs]
    assert not list(client.evals.runs.list(first.id, status="failed"))
    assert client.evals.runs.delete(runs[0].id, eval_id=first.id).deleted
    assert [run.id for run in client.evals.runs.list(first.id)] == [runs[1].id]
    assert client.evals.delete(first.id).deleted
    for gone in (
        lambda: client.evals.retrieve(first.id),
        lambda: client.evals.runs.retrieve(runs[1].id, eval_id=first.id),
        lambda: client.evals.runs.output_items.list(runs[1].id, eval_id=first.id),
    ):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            gone()


def test_a_run_with_the_names_of_the_responses_api(client: openai.OpenAI) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    text = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    sampling = {"max_completion_tokens": 9, "seed": 3, "temperature": 0.5, "text": text}
    source: Any = data_source() | {"type": "responses", "sampling_params": sampling}
    run = finished(client, made.id, client.evals.runs.create(made.id, data_source=source).id)
    assert run.result_counts.errored == 0
    assert run.data_source.to_dict()["sampling_params"] == sampling
    plain: Any = data_source()
    same = finished(client, made.id, client.evals.runs.create(made.id, data_source=plain).id)
    assert run.result_counts == same.result_counts


def test_rows_of_a_file_that_have_their_answers(client: openai.OpenAI) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    rows = [
        {"item": {"question": "a", "answer": "b"}, "sample": {"output_text": "b"}},
        {"item": {"question": "a", "answer": "b"}},
    ]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="evals")
    source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    run = client.evals.runs.create(made.id, data_source=source)
    run = finished(client, made.id, run.id)
    assert run.result_counts.to_dict() == {"total": 2, "passed": 1, "failed": 0, "errored": 1}
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id))
    assert items[0].sample.output[0].content == "b"
    assert items[1].results[0].to_dict()["error"]["code"] == "unknown_variable"  # type: ignore[index]
    assert "sample" in items[1].results[0].to_dict()["error"]["message"]  # type: ignore[index]


def test_model_graders_and_conversations_of_rows(client: openai.OpenAI) -> None:
    label: Any = {
        "type": "label_model",
        "name": "label",
        "model": MODEL,
        "labels": ["good", "bad"],
        "passing_labels": ["good"],
        "input": [{"role": "user", "content": {"type": "input_text", "text": "{{ item.label }}"}}],
    }
    score: Any = {
        "type": "score_model",
        "name": "score",
        "model": MODEL,
        "range": [0, 10],
        "pass_threshold": 7,
        "input": [{"role": "user", "content": "{{ item.score }}"}],
    }
    multi: Any = {
        "type": "multi",
        "name": "both",
        "graders": {"label": label, "score": score},
        "calculate_output": "label * score / 10",
        "pass_threshold": 0.75,
    }
    schema = {"type": "object"}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = client.evals.create(data_source_config=config, testing_criteria=[label, score, multi])
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello there"}]
    rows: list[dict[str, Any]] = [
        {"item": {"label": "good", "score": "8", "talk": talk}},
        {"item": {"label": "bad", "score": "7.5", "talk": talk}},
        {"item": {"label": "unsure", "score": 11, "talk": talk}},
        {"item": {"label": "good", "score": 7, "talk": "no conversation"}},
    ]
    source = data_source(rows) | {"input_messages": {"type": "item_reference", "item_reference": "item.talk"}}
    run = finished(client, made.id, client.evals.runs.create(made.id, data_source=source).id)
    assert run.result_counts.to_dict() == {"total": 4, "passed": 1, "failed": 1, "errored": 2}
    assert run.per_model_usage[0].invocation_count == 3 + 2 * 4 + 0  # samples, and the graders that answered
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id))
    assert [[result.score for result in item.results] for item in items] == [[1, 8, 0.8], [0, 7.5, 0], [0, 0, 0], []]
    assert items[0].sample.output[0].content == "hello there"
    assert items[0].results[0].sample["input"] == [{"role": "user", "content": "good"}]  # type: ignore[index]
    assert items[2].results[0].to_dict()["error"]["code"] == "model_grader_unclear"  # type: ignore[index]
    assert items[3].sample.error.message == "item.talk is not a list of messages"


def test_a_run_whose_rows_all_fail_has_failed(client: openai.OpenAI, server: ApiServer) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    server.backend.refusal = {"code": 400, "message": "maximum context length"}
    run = finished(client, made.id, client.evals.runs.create(made.id, data_source=data_source()).id)
    assert (run.status, run.error.code) == ("failed", "context_length_exceeded")
    assert run.result_counts.errored == 3
    server.backend.refusal, server.backend.failure = None, RuntimeError("a bug")
    run = finished(client, made.id, client.evals.runs.create(made.id, data_source=data_source()).id)
    server.backend.failure = None
    assert (run.status, run.error.code) == ("failed", "internal_error")
    assert "bug" not in run.error.message


def test_an_ended_run_is_not_cancelled(client: openai.OpenAI) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    run = finished(client, made.id, client.evals.runs.create(made.id, data_source=data_source()).id)
    error = refused(client.evals.runs.cancel, run_id=run.id, eval_id=made.id)
    assert error.code == "invalid_state"


MULTI: Any = {"type": "multi", "name": "m", "graders": {"a": EXACT}, "pass_threshold": 1}


@pytest.mark.parametrize(
    ("criterion", "param", "code", "message"),
    [
        ({"type": "python", "name": "p", "source": "x"}, "testing_criteria[0].type", "unsupported", "runs no code"),
        (NEAR | {"evaluation_metric": "meteor"}, "testing_criteria[0].evaluation_metric", "unsupported", "word net"),
        (MULTI | {"calculate_output": "__import__('os')"}, "testing_criteria[0]", "invalid_request", "not a number"),
        (MULTI | {"calculate_output": "(" * 400 + "a" + ")" * 400}, "testing_criteria[0]", "invalid_request", "deeper"),
        (EXACT | {"operation": "regex"}, "testing_criteria[0].operation", "invalid_request", "'eq'"),
        (EXACT | {"input": "{{ item.qestion }}"}, "testing_criteria[0].input", "invalid_request", "'question'"),
        (EXACT | {"input": "{{ os.environ }}"}, "testing_criteria[0].input", "invalid_request", "not a variable"),
        (EXACT | {"surprise": 1}, "testing_criteria[0].surprise", "invalid_request", "unknown field"),
        (
            {name: value for name, value in NEAR.items() if name != "pass_threshold"},
            "testing_criteria[0].pass_threshold",
            "invalid_request",
            "required",
        ),
    ],
)
def test_an_invalid_criterion_is_refused(
    client: openai.OpenAI, criterion: Any, param: str, code: str, message: str
) -> None:
    error = refused(client.evals.create, data_source_config=CUSTOM, testing_criteria=[criterion])
    assert (error.param, error.code) == (param, code)
    assert message in error.message


@pytest.mark.parametrize(
    ("config", "param", "code"),
    [
        ({"type": "custom"}, "data_source_config.item_schema", "invalid_request"),
        (CUSTOM | {"item_schema": {"type": "thing"}}, "data_source_config.item_schema", "invalid_request"),
        (CUSTOM | {"item_schema": {"$ref": "http://x/"}}, "data_source_config.item_schema", "unsupported"),
        (CUSTOM | {"item_schema": {"pattern": "(a+)+$"}}, "data_source_config.item_schema", "unsupported"),
        (CUSTOM | {"item_schema": {"title": "x" * 9000}}, "data_source_config.item_schema", "invalid_request"),
        (CUSTOM | {"include_sample_schema": False}, "testing_criteria[0].input", "invalid_request"),
    ],
)
def test_an_invalid_data_source_config_is_refused(client: openai.OpenAI, config: Any, param: str, code: str) -> None:
    error = refused(client.evals.create, data_source_config=config, testing_criteria=[EXACT])
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        (
            {"type": "responses", "sampling_params": {"response_format": {"type": "json_object"}}},
            "data_source.sampling_params.response_format",
            "unknown_field",
        ),
        (
            {"type": "responses", "sampling_params": {"max_completion_tokens": 0}},
            "data_source.sampling_params.max_completion_tokens",
            "invalid_request",
        ),
        (
            {"type": "responses", "sampling_params": {"tools": [{"type": "web_search"}]}},
            "data_source.sampling_params.tools[0].type",
            "unsupported",
        ),
        (
            {"type": "responses", "source": {"type": "responses", "users": ["u"]}},
            "data_source.source.users",
            "invalid_request",
        ),
        ({"source": {"type": "stored_completions"}}, "data_source.source", "invalid_request"),
        ({"source": {"type": "file_id", "id": "file-none"}}, "data_source.source.id", "invalid_request"),
        ({"source": {"type": "file_content", "content": []}}, "data_source.source.content", "invalid_request"),
        (
            {"source": {"type": "file_content", "content": [{"item": {"question": 1, "answer": "b"}}]}},
            "data_source.source.content",
            "invalid_rows",
        ),
        ({"model": "nothing"}, "data_source.model", "model_not_found"),
        ({"model": None}, "data_source.model", "invalid_request"),
        ({"input_messages": None}, "data_source.input_messages", "invalid_request"),
        (
            {"input_messages": {"type": "item_reference", "item_reference": "sample.x"}},
            "data_source.input_messages",
            "invalid_request",
        ),
        ({"sampling_params": {"temperature": 3}}, "data_source.sampling_params.temperature", "invalid_request"),
        ({"sampling_params": {"messages": []}}, "data_source.sampling_params.messages", "unknown_field"),
    ],
)
def test_an_invalid_run_is_refused(client: openai.OpenAI, change: dict[str, Any], param: str, code: str) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    with pytest.raises(openai.APIStatusError) as caught:
        client.evals.runs.create(made.id, data_source=data_source() | change)
    assert caught.value.status_code in (400, 404)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_every_invalid_row_of_a_file_is_named(client: openai.OpenAI) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    good = json.dumps(ROWS[0])
    lines = ["nonsense", good, '{"item": {"question": "a"}}', '{"question": "a"}', '{"item": {}, "extra": 1}', "", good]
    file = client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="evals")
    source: Any = data_source() | {"source": {"type": "file_id", "id": file.id}}
    error = refused(client.evals.runs.create, eval_id=made.id, data_source=source)
    assert error.code == "invalid_rows"
    assert [detail["line"] for detail in error.body["details"]] == [1, 3, 4, 5]  # type: ignore[index]
    wrong = client.files.create(file=("rows.jsonl", good.encode()), purpose="user_data")
    source = data_source() | {"source": {"type": "file_id", "id": wrong.id}}
    assert "upload it with evals" in refused(client.evals.runs.create, eval_id=made.id, data_source=source).message


def test_graders_are_validated_and_run(client: openai.OpenAI) -> None:
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=EXACT).grader.to_dict()["operation"] == "eq"  # type: ignore[union-attr]
    found = graders.run(grader=NEAR, model_sample="東京都", item={"answer": "東京"})
    assert found.reward == pytest.approx(0.8)
    assert (found.metadata.scores, found.sub_rewards) == ({"near": 0.8}, {})
    multi: Any = {"type": "multi", "name": "m", "graders": {"a": EXACT, "b": NEAR}, "calculate_output": "a + b / 2"}
    found = graders.run(grader=multi, model_sample="東京", item={"answer": "東京"})
    assert (found.reward, found.sub_rewards) == (1.5, {"a": 1.0, "b": 1.0})
    score: Any = {"type": "score_model", "name": "s", "model": MODEL, "input": [{"role": "user", "content": "0.5"}]}
    found = graders.run(grader=score, model_sample="x")
    assert (found.reward, found.metadata.token_usage) == (0.5, 2)
    assert found.api_model_grader_token_usage_per_model == {MODEL: 2}


@pytest.mark.parametrize(
    ("grader", "flag", "message"),
    [
        (EXACT | {"reference": "{{ item.lost }}"}, "invalid_variable_error", "item.lost does not exist"),
        (EXACT | {"input": "{{ sample.output_json.a }}"}, "sample_parse_error", "is not JSON"),
        (MULTI | {"calculate_output": "1 / a"}, "formula_parse_error", "division by zero"),
        (
            {"type": "score_model", "name": "s", "model": MODEL, "input": [{"role": "user", "content": "many"}]},
            "api_model_grader_parse_error",
            "no number from 0 to 1",
        ),
    ],
)
def test_a_grader_that_cannot_grade_says_why(client: openai.OpenAI, grader: Any, flag: str, message: str) -> None:
    found = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x", item={"answer": "b"})
    assert found.reward == 0.0
    errors = found.metadata.errors
    assert getattr(errors, flag) is True
    assert message in errors.details  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("grader", "param", "code"),
    [
        ({"type": "python", "name": "p", "source": "x"}, "grader.type", "unsupported"),
        (NEAR | {"evaluation_metric": "meteor"}, "grader.evaluation_metric", "unsupported"),
        (NEAR | {"evaluation_metric": "cosine"}, "grader", "invalid_request"),
        (MULTI | {"calculate_output": "__import__('os')"}, "grader", "invalid_request"),
        (EXACT | {"input": "{{ env.x }}"}, "grader.input", "invalid_request"),
        ({"type": "magic"}, "grader", "invalid_request"),
    ],
)
def test_an_invalid_grader_is_refused(client: openai.OpenAI, grader: Any, param: str, code: str) -> None:
    graders = client.fine_tuning.alpha.graders
    for error in (refused(graders.validate, grader=grader), refused(graders.run, grader=grader, model_sample="x")):
        assert (error.param, error.code) == (param, code)
