"""The service of evals without HTTP: rights, limits, and stored completions as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits, Scope
from serving.access.auth import OPERATOR, Caller
from serving.evals import records, service
from serving.evals.records import OPEN_RUNS
from serving.evals.service import EvalService
from serving.evals.source import StoredAnswers
from serving.files.stored_files import Files
from serving.http.errors import ApiError
from serving.http.eval_types import CreateEval, CreateEvalRun, SourceRow, StoredCompletionsSource, StoredResponsesSource
from tests.serving.api_harness import NoTokens
from tests.storage.memory_store import memory_store

CHECK = {
    "type": "string_check", "name": "g", "operation": "eq", "input": "{{ sample.output_text }}", "reference": "x"
}  # fmt: skip
EVAL: dict[str, Any] = {
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
    "testing_criteria": [CHECK],
}
RUN = {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}}]}}}


def make(stored_answers: StoredAnswers = lambda team, wanted: []) -> tuple[EvalService, Workspace]:
    store, _ = memory_store()
    return EvalService(store, Files(store, NoTokens(store)), stored_answers), store


def create(evals: EvalService, caller: Caller = OPERATOR, **change: Any) -> str:
    return evals.create(CreateEval.model_validate(EVAL | change), caller).id


def start(evals: EvalService, eval_id: str, caller: Caller = OPERATOR, body: dict[str, Any] = RUN) -> str:
    return evals.create_run(eval_id, CreateEvalRun.model_validate(body), caller).id


@pytest.mark.parametrize(("scopes", "allowed"), [(("fine-tuning",), False), (("fine-tuning", "inference"), True)])
def test_a_key_that_may_not_call_models_starts_no_run(scopes: tuple[Scope, ...], allowed: bool) -> None:
    evals, store = make()
    key, _ = api_keys.create(store, "blue", "tests", scopes=scopes)
    caller = Caller(key.id, "blue", Limits(), admin=False)
    made = create(evals, caller)
    if allowed:
        assert start(evals, made, caller)
        return
    with pytest.raises(ApiError, match="needs inference too") as caught:
        start(evals, made, caller)
    assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    evals, _ = make()
    made = create(evals)
    monkeypatch.setattr(service, "MAX_EVALS", 1)
    monkeypatch.setattr(service, "MAX_OPEN_RUNS", 1)
    codes = []
    first = start(evals, made)
    creates: list[Callable[[], str]] = [lambda: create(evals), lambda: start(evals, made)]
    for refused in creates:
        with pytest.raises(ApiError) as caught:
            refused()
        codes.append((caught.value.status, caught.value.code))
    evals.cancel_run(OPERATOR.team, made, first, retried=False)
    assert start(evals, made)
    monkeypatch.setattr(service, "MAX_RUNS", 2)
    with pytest.raises(ApiError) as caught:
        start(evals, made)
    codes.append((caught.value.status, caught.value.code))
    assert codes == [(429, "evals_exceeded"), (429, "open_runs_exceeded"), (429, "eval_runs_exceeded")]


def test_a_cancelled_run_is_not_open_and_a_retry_gets_the_same() -> None:
    evals, store = make()
    made = create(evals)
    run = start(evals, made)
    assert evals.cancel_run(OPERATOR.team, made, run, retried=False).status == "canceled"
    assert not OPEN_RUNS.names(store)
    assert evals.cancel_run(OPERATOR.team, made, run, retried=True).status == "canceled"
    with pytest.raises(ApiError, match="cannot be canceled"):
        evals.cancel_run(OPERATOR.team, made, run, retried=False)


def test_stored_completions_are_rows_once_there_are_some() -> None:
    asked = []

    def stored(team: str, wanted: StoredCompletionsSource | StoredResponsesSource) -> list[SourceRow]:
        asked.append((team, wanted.metadata))
        return [SourceRow(item={}, sample={"output_text": "x"})] if wanted.metadata else []

    evals, store = make(stored_answers=stored)
    made = create(evals, data_source_config={"type": "logs", "metadata": {"app": "chat"}})
    assert evals.get(OPERATOR.team, made).data_source_config["metadata"] == {"app": "chat"}
    source = {"type": "stored_completions", "metadata": {"app": "chat"}}
    run = start(evals, made, body={"data_source": {"type": "completions", "source": source}})
    rows = records.read_rows(store, records.load_run(store, OPERATOR.team, made, run))
    assert [row.sample for row in rows] == [{"output_text": "x"}]
    assert asked == [(OPERATOR.team, {"app": "chat"})]
    with pytest.raises(ApiError, match="no stored completion"):
        start(evals, made, body={"data_source": {"type": "completions", "source": {"type": "stored_completions"}}})
    own = {"type": "completions", "source": RUN["data_source"]["source"]}
    with pytest.raises(ApiError, match="model is required"):
        start(evals, made, body={"data_source": own})


def test_rows_are_bounded() -> None:
    evals, _ = make()
    made = create(evals)
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    for item, message in ((deep, "nested deeper"), ({"a": "b" * 70_000}, "a row may have 65536")):
        content = [{"item": {}}, {"item": item}]
        with pytest.raises(ApiError, match=f"item 1: .*{message}"):
            start(
                evals,
                made,
                body={"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": content}}},
            )


def test_an_output_item_that_does_not_exist_is_404() -> None:
    evals, _ = make()
    made = create(evals)
    run = start(evals, made)
    for item in ("nothing", f"{records.item_prefix(run)}000000", f"{records.item_prefix(run)}-00001"):
        with pytest.raises(ApiError) as caught:
            evals.item(OPERATOR.team, made, run, item)
        assert (caught.value.status, caught.value.code) == (404, "output_item_not_found")
