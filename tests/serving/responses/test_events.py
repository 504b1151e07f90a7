"""The events of a response, for any answer in any pieces: their order, their numbers, and what they add up to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from serving.http.errors import ApiError
from serving.responses.events import Event, ResponseAnswer, as_chunk, as_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.sampled_from(["find", "send"])
CALLS = st.lists(st.tuples(NAMES, TEXTS), max_size=3)
REASONS = st.sampled_from(["stop", "length", "tool_calls", "content_filter", None])
ADAPTER: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def message(reasoning: str, content: str, calls: list[tuple[str, str]]) -> dict[str, Any]:
    made = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "reasoning_content": reasoning, "content": content, "tool_calls": made}


def answer_of() -> ResponseAnswer:
    numbers = iter(range(1000))
    response = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "in_progress",
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None,
        "store": True, "instructions": None, "metadata": {}, "temperature": None, "top_p": None, "usage": None,
    }  # fmt: skip
    return ResponseAnswer(response, lambda prefix: f"{prefix}{next(numbers)}")


def pieces(whole: dict[str, Any], cuts: list[int], reason: str | None) -> list[dict[str, Any]]:
    """A message in deltas whose lengths repeat `cuts`."""
    sizes = [size for size in cuts if size] or [4]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]

    def cut(text: str) -> list[str]:
        found: list[str] = []
        while text:
            size = sizes[len(found) % len(sizes)]
            found.append(text[:size])
            text = text[size:]
        return found

    for name in ("reasoning_content", "content"):
        deltas += [{name: piece} for piece in cut(whole[name])]
    for index, call in enumerate(whole["tool_calls"]):
        head = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, "id": call["id"], "function": head}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in cut(call["function"]["arguments"])
        ]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return [*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}]


def stream(chunks: list[dict[str, Any]]) -> tuple[list[Event], ResponseAnswer]:
    answer = answer_of()
    events = answer.begin()
    for chunk in chunks:
        events += answer.add(chunk)
    return [*events, *answer.end_items(), answer.end(2.0)], answer


@given(TEXTS, TEXTS, CALLS, st.lists(st.integers(0, 5), max_size=4), REASONS)
def test_any_answer_has_ordered_events_that_add_up(
    reasoning: str, content: str, calls: list[tuple[str, str]], cuts: list[int], reason: str | None
) -> None:
    whole = message(reasoning, content, calls)
    events, answer = stream(pieces(whole, cuts, reason))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    status = {"length": "incomplete", "content_filter": "incomplete"}.get(reason or "", "completed")
    assert events[-1]["type"] == f"response.{status}"
    for event in events:
        ADAPTER.validate_python(event)
        assert as_text(event).startswith(f"event: {event['type']}\ndata: {{")
    assert Response.model_validate(answer.response).status == status
    check_items(events, answer.response["output"])
    shown = [item for item in answer.response["output"] if item["type"] == "message"]
    assert "".join(item["content"][0]["text"] for item in shown) == content
    made = [item for item in answer.response["output"] if item["type"] == "function_call"]
    assert [(item["name"], item["arguments"], item["call_id"]) for item in made] == [
        (name, arguments, f"call_{i}") for i, (name, arguments) in enumerate(calls)
    ]
    thought = [item["content"][0]["text"] for item in answer.response["output"] if item["type"] == "reasoning"]
    assert "".join(thought) == reasoning


def check_items(events: list[Event], output: list[dict[str, Any]]) -> None:
    """Each item is added, grows, and is done once; nothing of it comes before or after."""
    assert output, "a response has at least one item"
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    assert added == list(range(len(output)))
    for index, item in enumerate(output):
        mine = [event for event in events if event.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[0]["item"]["status"] == "in_progress"
        assert mine[-1]["type"] == "response.output_item.done"
        assert mine[-1]["item"] == item
        assert {event["item_id"] for event in mine[1:-1]} <= {item["id"]}
        text = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        kinds = [event["type"].removeprefix("response.") for event in mine[1:-1]]
        grown = [kind for kind in kinds if not kind.endswith(".delta")]
        if item["type"] == "function_call":
            assert grown == ["function_call_arguments.done"] == kinds[-1:]
            assert text == item["arguments"] == mine[-2]["arguments"]
        else:
            name = "output_text" if item["type"] == "message" else "reasoning_text"
            assert grown == ["content_part.added", f"{name}.done", "content_part.done"]
            assert kinds[0] == "content_part.added"
            assert kinds[-2:] == [f"{name}.done", "content_part.done"]
            assert text == item["content"][0]["text"] == mine[-3]["text"]
            assert mine[1]["part"]["text"] == "", "a part is empty when it is added"


@given(TEXTS, TEXTS, CALLS, REASONS)
def test_a_whole_answer_is_the_same_as_a_stream(
    reasoning: str, content: str, calls: list[tuple[str, str]], reason: str | None
) -> None:
    whole = message(reasoning, content, calls)
    _, streamed = stream(pieces(whole, [3], reason))
    _, at_once = stream([as_chunk({"choices": [{"index": 0, "message": whole, "finish_reason": reason}]})])
    assert at_once.response == streamed.response


def test_a_response_that_breaks_off_keeps_what_it_has() -> None:
    answer = answer_of()
    answer.begin()
    answer.add({"choices": [{"delta": {"content": "half"}}]})
    event = answer.fail(ApiError(500, "the engine failed", code="engine_failed"))
    assert event["type"] == "response.failed"
    found = Response.model_validate(event["response"])
    assert (found.status, found.output_text) == ("failed", "half")
    assert found.error is not None
    assert (found.error.code, found.error.message) == ("server_error", "the engine failed")
    assert event["response"]["store"] is False


def test_log_probabilities_and_usage_are_passed_on() -> None:
    answer = answer_of()
    logprob = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}
    (_, _, delta) = answer.add({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [logprob]}}]})
    assert delta["logprobs"] == [logprob]
    answer.add({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": None}})
    answer.end_items()
    assert answer.response["output"][0]["content"][0]["logprobs"] == [logprob]
    assert {name: answer.response["usage"][name] for name in ("input_tokens", "output_tokens", "total_tokens")} == {
        "input_tokens": 3,
        "output_tokens": 1,
        "total_tokens": 4,
    }
