"""A row's output item: calls of tools in the answer, and the bound of what is stored."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ray_jobs.graders.schema import StringCheckGrader
from serving.access.auth import OPERATOR
from serving.access.in_process import InProcess
from serving.evals.item_grading import MAX_ITEM_BYTES, grade_row
from serving.evals.model_calls import EndpointCalls
from serving.http.eval_types import ModelQuestion, OutputItem, SourceRow
from tests.serving.evals.test_runner import make_world


def graded(message: dict[str, Any], read: str, row: dict[str, Any]) -> OutputItem:
    """Grade the row `row`, which a model answers with `message`; `read` must be equal to `f`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    grader = StringCheckGrader(type="string_check", name="g", operation="eq", input=read, reference="f")
    messages = {"type": "template", "template": [{"role": "user", "content": "{{ item.text }}"}]}
    question = ModelQuestion.model_validate({"input_messages": messages, "model": "m"})
    calls = EndpointCalls(InProcess(app), OPERATOR, background=True)
    item, _ = asyncio.run(grade_row(make_world().run, [grader], question, 0, SourceRow(item=row), calls, 0.0))
    return item


def test_graders_read_calls_of_tools() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    item = graded(message, "{{ sample.output_tools[0].function.name }}", {"text": "x"})
    assert item.status == "pass"
    assert json.loads(item.sample.output[0].content or "") == message["tool_calls"]


def test_graders_read_parts_of_json_answers() -> None:
    item = graded({"content": '{"a": ["f"]}'}, "{{ sample.output_json.a[0] }}", {"text": "x"})
    assert item.status == "pass"
    item = graded({"content": "f"}, "{{ sample.output_json.a[0] }}", {"text": "x"})
    assert item.results[0].error is not None
    assert (item.status, item.results[0].error.code) == ("error", "sample_not_json")


def test_a_stored_item_is_bounded() -> None:
    item = graded({"content": "字" * MAX_ITEM_BYTES}, "f", {"text": "x" * 60_000})
    assert item.status == "pass"
    assert item.sample.input == []
    assert len(item.model_dump_json().encode()) < MAX_ITEM_BYTES
    assert graded({"content": "字"}, "f", {"text": "x"}).sample.input[0].content == "x"
