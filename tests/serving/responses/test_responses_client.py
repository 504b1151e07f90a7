"""`/v1/responses` by the unmodified official client: whole, streamed and stored answers, and what continues them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseInputItemParam
from pydantic import BaseModel

from ray_jobs.tenancy.answers import policy
from tests.serving.answers_server import MODEL, OTHER, TEAM, AnswersServer, answers_server

CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"word": "a"}'}}


class Answer(BaseModel):
    word: str


@pytest.fixture(scope="module")
def running() -> Iterator[AnswersServer]:
    with answers_server() as running:
        yield running


@pytest.fixture
def here(running: AnswersServer) -> AnswersServer:
    backend = running.backend
    backend.message, backend.finish_reason, backend.failure, backend.fail_after = None, "stop", None, None
    backend.refusal, backend.context_words = None, None
    return running


def test_create_answers_and_repeats_the_request(here: AnswersServer) -> None:
    answer = here.client.responses.create(
        model=MODEL, input="good day to you", instructions="be kind", metadata={"k": "v"}, max_output_tokens=9
    )
    assert (answer.output_text, answer.status, answer.object) == ("good day to you", "completed", "response")
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("be kind", {"k": "v"}, 9)
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (4, 4, 8)
    assert here.asked["messages"][0] == {"role": "system", "content": "be kind"}
    assert here.asked["max_completion_tokens"] == 9


def test_a_stream_joins_to_the_final_text(here: AnswersServer) -> None:
    with here.client.responses.stream(model=MODEL, input="one two three") as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) == 3
    assert "".join(deltas) == final.output_text == "onetwothree"
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert final.usage is not None
    assert here.client.responses.retrieve(final.id).output_text == final.output_text, "stored once its end is known"


def test_parse_returns_the_object(here: AnswersServer) -> None:
    here.backend.message = {"content": '{"word": "hello"}'}
    parsed = here.client.responses.parse(model=MODEL, input="a word", text_format=Answer)
    assert parsed.output_parsed == Answer(word="hello")
    form = here.asked["response_format"]
    assert (form["type"], form["json_schema"]["name"]) == ("json_schema", "Answer")
    items: list[Any] = [{"role": "user", "content": "a word"}, *parsed.output, {"role": "user", "content": "more"}]
    here.client.responses.create(model=MODEL, input=items)
    assert here.asked["messages"][1] == {"role": "assistant", "content": '{"word": "hello"}'}


def test_tool_calls_become_items_and_their_outputs_messages(here: AnswersServer) -> None:
    here.backend.message, here.backend.finish_reason = {"content": None, "tool_calls": [CALL]}, "tool_calls"
    tools: list[Any] = [{"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}]
    answer = here.client.responses.create(model=MODEL, input="find a", tools=tools, tool_choice="none")
    (call,) = answer.output
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.call_id) == ("find", '{"word": "a"}', "call_1")
    with here.client.responses.stream(model=MODEL, input="find a", tools=tools, tool_choice="none") as stream:
        events = list(stream)
        assert stream.get_final_response().output[0].type == "function_call"
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(pieces) > 1
    assert "".join(pieces) == call.arguments
    here.backend.message, here.backend.finish_reason = None, "stop"
    output: list[ResponseInputItemParam] = [{"type": "function_call_output", "call_id": "call_1", "output": "found it"}]
    here.client.responses.create(model=MODEL, input=output, previous_response_id=answer.id)
    user, assistant, tool = here.asked["messages"]
    assert (user["content"], assistant["tool_calls"]) == ("find a", [CALL])
    assert tool == {"role": "tool", "tool_call_id": "call_1", "content": "found it"}


def test_tools_and_their_choice_reach_the_engine(here: AnswersServer) -> None:
    tools: list[Any] = [{"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}]
    choices: list[tuple[Any, Any]] = [
        ("required", "required"),
        ({"type": "function", "name": "find"}, {"type": "function", "function": {"name": "find"}}),
    ]
    for choice, wanted in choices:
        here.client.responses.create(model=MODEL, input="x", tools=tools, tool_choice=choice)
        assert here.asked["tool_choice"] == wanted
        assert here.asked["tools"][0]["function"]["name"] == "find"
    with pytest.raises(openai.BadRequestError) as caught:
        here.client.responses.create(model=MODEL, input="x", tools=[*tools, *tools])
    assert caught.value.param == "tools[1].name"


def test_previous_response_id_continues_the_whole_conversation(here: AnswersServer) -> None:
    create = here.client.responses.create
    first = create(model=MODEL, input="one", instructions="only here")
    second = create(model=MODEL, input=[{"role": "user", "content": "two"}], previous_response_id=first.id)
    here.client.responses.delete(first.id)
    third = create(model=MODEL, input="three", previous_response_id=second.id)
    assert [(message["role"], message["content"]) for message in here.asked["messages"]] == [
        ("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two"), ("user", "three"),
    ]  # fmt: skip
    assert third.previous_response_id == second.id
    newest = list(here.client.responses.input_items.list(third.id, limit=2))
    assert [getattr(item, "role", "") for item in newest] == ["user", "assistant", "user", "assistant", "user"]
    assert len({item.id for item in newest}) == 5
    oldest = here.client.responses.input_items.list(third.id, order="asc", limit=2)
    assert oldest.has_more
    assert oldest.data[0].to_dict()["content"] == [{"type": "input_text", "text": "one"}]


def test_retrieve_and_delete(here: AnswersServer) -> None:
    answer = here.client.responses.create(model=MODEL, input="keep this", metadata={"a": "b"})
    found = here.client.responses.retrieve(answer.id)
    assert found.to_dict() == answer.to_dict()
    here.client.responses.delete(answer.id)
    for call in (
        here.client.responses.retrieve,
        here.client.responses.delete,
        lambda name: here.client.responses.input_items.list(name),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call(answer.id)
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        here.client.responses.create(model=MODEL, input="x", previous_response_id=answer.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_another_teams_response_is_unknown(here: AnswersServer) -> None:
    answer = here.client.responses.create(model=MODEL, input="secret")
    for call in (here.other.responses.retrieve, here.other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        here.other.responses.create(model=MODEL, input="x", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"
    assert here.client.responses.retrieve(answer.id).id == answer.id


def test_store_false_stores_nothing(here: AnswersServer) -> None:
    before = set(here.memory.objects)
    answer = here.client.responses.create(model=MODEL, input="x", store=False)
    assert answer.to_dict()["store"] is False
    assert set(here.memory.objects) == before


def test_a_team_that_stores_nothing_has_answers_without_storing(here: AnswersServer) -> None:
    policy.set_policy(here.store, OTHER, allowed=False)
    assert here.other.responses.create(model=MODEL, input="x").to_dict()["store"] is False
    with pytest.raises(openai.BadRequestError) as caught:
        here.other.responses.create(model=MODEL, input="x", store=True)
    assert (caught.value.code, caught.value.param) == ("storing_disabled", "store")
    assert not [key for key in here.memory.objects if f"teams/{OTHER}/answers" in key]
    assert here.client.responses.create(model=MODEL, input="x", store=True).to_dict()["store"] is True


def test_an_answer_that_was_cut_off_is_incomplete(here: AnswersServer) -> None:
    here.backend.finish_reason = "length"
    answer = here.client.responses.create(model=MODEL, input="a b")
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(here.client.responses.create(model=MODEL, input="a b", stream=True))
    assert events[-1].type == "response.incomplete"


def test_a_stream_that_breaks_off_ends_with_a_failed_response(here: AnswersServer) -> None:
    here.backend.failure, here.backend.fail_after = RuntimeError("secret detail"), 2
    events = list(here.client.responses.create(model=MODEL, input="a b c d", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.response.output_text == "ab"
    assert last.response.error is not None
    assert "secret" not in last.response.error.message
    with pytest.raises(openai.NotFoundError):
        here.client.responses.retrieve(last.response.id)


def test_an_answer_that_fails_before_it_begins_has_the_errors_status(here: AnswersServer) -> None:
    here.backend.refusal = {"message": "messages[0] is wrong", "code": 400, "param": "messages[0].content"}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            here.client.responses.create(model=MODEL, input="a", stream=stream)
        assert caught.value.param == "input[0].content"
        assert "input[0] is wrong" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_truncation_leaves_out_the_oldest_turns(here: AnswersServer, stream: bool) -> None:
    here.backend.context_words = 5
    items: list[Any] = [{"role": "user", "content": f"word {i}"} for i in range(9)]
    with pytest.raises(openai.BadRequestError) as caught:
        here.client.responses.create(model=MODEL, input=items, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    answer: Any = here.client.responses.create(model=MODEL, input=items, truncation="auto", stream=stream)
    if stream:
        answer = list(answer)[-1].response
    assert answer.output_text.replace(" ", "") == "word8"
    assert 1 <= len(here.asked["messages"]) <= 2
    with pytest.raises(openai.BadRequestError):
        here.client.responses.create(model=MODEL, input="a b c d e f", truncation="auto", stream=stream)


def test_a_conversation_has_a_limit(here: AnswersServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.responses.answering.MAX_CONVERSATION_BYTES", 600)
    answer = here.client.responses.create(model=MODEL, input="short")
    answer = here.client.responses.create(model=MODEL, input="x" * 600, previous_response_id=answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        here.client.responses.create(model=MODEL, input="more", previous_response_id=answer.id)
    assert caught.value.code == "conversation_too_long"


def test_a_response_that_cannot_be_stored_says_so(here: AnswersServer, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = here.outcome("failed")

    def refuse(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("ray_jobs.tenancy.answers.records.write", refuse)
    answer = here.client.responses.create(model=MODEL, input="hello")
    assert (answer.output_text, answer.to_dict()["store"]) == ("hello", False)
    assert here.outcome("failed") == failed + 1


def test_a_response_expires(here: AnswersServer) -> None:
    answer = here.client.responses.create(model=MODEL, input="old")
    here.wait(days=31)
    with pytest.raises(openai.NotFoundError):
        here.client.responses.retrieve(answer.id)


def test_the_record_has_no_more_than_the_conversation(here: AnswersServer) -> None:
    answer = here.client.responses.create(model=MODEL, input="what is kept", user="u1")
    key = next(key for key in here.memory.objects if key.endswith(f"teams/{TEAM}/answers/responses/{answer.id}.json"))
    record = json.loads(here.memory.objects[key].data)
    assert record["request"] == {}
    assert [item["role"] for item in record["input"]] == ["user"]
    assert record["answer"]["id"] == answer.id
