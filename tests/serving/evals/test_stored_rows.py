"""Stored chat completions as the rows of an eval's run, by the official client."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from serving.evals import stored_rows
from tests.serving.answers_server import MODEL, AnswersServer, answers_server


def finished(client: openai.OpenAI, eval_id: str, source: dict[str, Any]) -> Any:
    """A run of the eval, once it has ended."""
    run: Any = client.evals.runs.create(eval_id, data_source={"type": "completions", **source})  # type: ignore[arg-type]
    deadline = time.monotonic() + 30
    while run.status not in ("completed", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        run = client.evals.runs.retrieve(run.id, eval_id=eval_id)
    return run


def store(here: AnswersServer, text: str, **metadata: str) -> None:
    """Store an answer, which repeats the question."""
    messages: Any = [{"role": "user", "content": text}]
    here.client.chat.completions.create(model=MODEL, messages=messages, store=True, metadata=metadata)


def counts(run: Any) -> tuple[int, int, int]:
    return run.result_counts.total, run.result_counts.passed, run.result_counts.failed


def test_stored_answers_are_graded_as_they_are_or_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers_server(key_ttl_s=60.0) as here:
        for text in ("good day", "good night", "bye"):
            store(here, text, app="desk")
        store(here, "good day", app="other")
        criterion: Any = {"type": "string_check", "name": "good", "operation": "ilike", "reference": "good"}
        made = here.client.evals.create(
            name="politeness",
            data_source_config={"type": "stored_completions", "metadata": {"app": "desk"}},
            testing_criteria=[criterion | {"input": "{{ sample.output_text }}"}],
        )
        source: dict[str, Any] = {"type": "stored_completions", "metadata": {"app": "desk"}}
        assert counts(finished(here.client, made.id, {"source": source})) == (3, 2, 1)
        assert counts(finished(here.client, made.id, {"source": source | {"limit": 1}}))[0] == 1
        assert counts(finished(here.client, made.id, {"source": source | {"metadata": {"app": "other"}}})) == (1, 1, 0)
        asked = len(here.backend.calls)
        again = {"type": "item_reference", "item_reference": "item.input"}
        run = finished(here.client, made.id, {"source": source, "model": MODEL, "input_messages": again})
        assert counts(run) == (3, 2, 1)
        assert len(here.backend.calls) == asked + 3
        with pytest.raises(openai.BadRequestError, match="no stored completion"):
            finished(here.client, made.id, {"source": source | {"metadata": {"app": "nothing"}}})
        theirs = here.other.evals.create(
            data_source_config={"type": "stored_completions"},
            testing_criteria=[criterion | {"input": "{{ sample.output_text }}"}],
        )
        with pytest.raises(openai.BadRequestError, match="no stored completion"):
            finished(here.other, theirs.id, {"source": source})
        monkeypatch.setattr(stored_rows, "MAX_ROWS_BYTES", 100)
        with pytest.raises(openai.BadRequestError, match="over 100 bytes"):
            finished(here.client, made.id, {"source": source})


def test_stored_responses_are_graded_or_asked_again() -> None:
    with answers_server(key_ttl_s=60.0) as here:
        ask = here.client.responses.create
        first = ask(model=MODEL, input="good day", instructions="Be kind.", metadata={"a": "b"})
        ask(model=MODEL, input="good night", previous_response_id=first.id)
        ask(model=MODEL, input="bye", store=False)
        criterion: Any = {"type": "string_check", "name": "good", "operation": "ilike", "reference": "good night"}
        made = here.client.evals.create(
            data_source_config={"type": "logs"}, testing_criteria=[criterion | {"input": "{{ sample.output_text }}"}]
        )
        source: dict[str, Any] = {"type": "responses"}
        run = finished(here.client, made.id, {"type": "responses", "source": source})
        assert counts(run) == (2, 1, 1)
        asked = len(here.backend.calls)
        again = {"type": "item_reference", "item_reference": "item.input"}
        named = source | {"metadata": {"a": "b"}, "model": MODEL, "created_after": first.created_at}
        question = {"type": "responses", "source": named, "model": MODEL, "input_messages": again}
        assert counts(finished(here.client, made.id, question)) == (1, 0, 1)
        assert len(here.backend.calls) == asked + 1
        sent = here.backend.calls[-1][2]["messages"]
        assert [(message["role"], message["content"]) for message in sent] == [
            ("system", "Be kind."),
            ("user", "good day"),
        ]
        late = source | {"created_before": int(first.created_at) - 1}
        with pytest.raises(openai.BadRequestError, match="no stored response"):
            finished(here.client, made.id, {"type": "responses", "source": late})
