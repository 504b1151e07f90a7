"""Requests of the Responses API become chat completions; what cannot be done is refused with what to use instead."""

from __future__ import annotations

from typing import Any

import pytest

from serving.http.errors import ApiError
from serving.responses.request import ResponseRequest, parse, parse_fields, replace_names

TOOL = {"type": "function", "name": "find", "parameters": {"type": "object", "properties": {}}, "strict": True}
CHAT_TOOL = {"type": "function", "function": {name: value for name, value in TOOL.items() if name != "type"}}


def asked(earlier: tuple[dict[str, Any], ...] = (), **fields: Any) -> ResponseRequest:
    return parse(parse_fields({"model": "m", "input": "hello", **fields}), list(earlier))


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked(input=list(items), **fields).chat["messages"]
    return found


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [CHAT_TOOL], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "find"}},
            {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "find"}}},
        ),
        ({"tools": [{**TOOL, "description": None}]}, {"tools": [CHAT_TOOL]}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"user": "u", "metadata": {"a": "b"}, "store": False, "truncation": "disabled"}, {}),
    ],
)
def test_fields_become_those_of_a_chat_completion(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    expected = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **chat}
    assert asked(**fields).chat == expected


def test_a_conversation_with_tools_becomes_chat_messages() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "find", "arguments": "{}"}
    found = messages(
        {"role": "developer", "content": "dev"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "wait", "annotations": [], "logprobs": []}],
        },
        call,
        {**call, "call_id": "c2", "status": "completed", "parsed_arguments": None},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        instructions="be short",
    )
    function = {"name": "find", "arguments": "{}"}
    assert found == [
        {"role": "system", "content": "be short"},
        {"role": "developer", "content": "dev"},
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [{"id": name, "type": "function", "function": function} for name in ("c1", "c2")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]


def test_a_call_after_a_question_is_a_message_of_its_own() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"}
    user, assistant = messages({"role": "user", "content": "q"}, call)
    assert (user["role"], assistant["role"], assistant["content"]) == ("user", "assistant", None)


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"background": True}, "background", "unsupported", "stream: true"),
        ({"conversation": "conv_1"}, "conversation", "unsupported", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported", "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported", "search in your own code"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type", "unsupported", "search in your own code"),
        ({"tools": [TOOL, {"type": "file_search"}]}, "tools[1].type", "unsupported", "/v1/embeddings"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "unsupported", "runs code"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type", "unsupported", "computer"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "unsupported", "MCP server"),
        ({"tools": [{"type": "image_generation"}]}, "tools[0].type", "unsupported", "type function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", None, "missing"),
        ({"tools": [CHAT_TOOL]}, "tools[0].function", "unknown_field", "function"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "unsupported", "function"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type",
         "unsupported", "the models read text"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type",
         "unsupported", "text of the file"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "unsupported", "item itself"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported", "built-in tools"),
        ({"input": [{"role": "user"}]}, "input[0].content", None, "missing"),
        ({"input": [{"content": "x"}]}, "input[0].type", None, "role"),
        ({"input": []}, "input", None, "1 to"),
        ({"input": None}, "input", None, "missing"),
        ({"model": None}, "model", None, "missing"),
        ({"stream_options": {}}, "stream_options", None, "stream: true"),
        ({"truncation": "some"}, "truncation", None, "auto"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", None, "513"),
        ({"messages": []}, "messages", "unsupported", "input"),
        ({"temprature": 1}, "temprature", "unknown_field", "temperature"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_name(
    fields: dict[str, Any], param: str, code: str | None, says: str
) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, code)
    assert says in error.message


def test_an_error_of_the_chat_completion_has_the_names_of_the_response() -> None:
    request = asked(earlier=({"type": "message", "role": "user", "content": "a"},), instructions="i")
    origins = request.origins
    assert origins == ["instructions", "previous_response_id", "input[0]"]

    def renamed(param: str) -> str | None:
        error = replace_names(ApiError(400, f"{param} is wrong", param=param), origins)
        assert error.message == f"{error.param} is wrong"
        return error.param

    assert renamed("messages[2].content") == "input[0].content"
    assert renamed("messages[0].content") == "instructions.content"
    assert renamed("max_completion_tokens") == "max_output_tokens"
    assert renamed("response_format.json_schema.schema") == "text.format.schema"
    assert renamed("tools[3].function.name") == "tools[3].name"
    assert renamed("reasoning_effort") == "reasoning.effort"
    assert renamed("tool_choice") == "tool_choice"


def test_the_oldest_turns_are_left_out_and_instructions_stay() -> None:
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(9) for role in ("user", "assistant")]
    request: ResponseRequest | None = asked(input=[*turns, {"role": "user", "content": "last"}], instructions="i")
    seen = []
    while request is not None:
        shown = request.chat["messages"]
        assert shown[0] == {"role": "system", "content": "i"}
        assert shown[1]["role"] == "user"
        assert shown[-1] == {"role": "user", "content": "last"}
        assert len(request.origins) == len(shown)
        seen.append(len(shown))
        request = request.shortened()
    assert seen == sorted(set(seen), reverse=True)
    assert seen[:2] == [20, 14], "the oldest quarter of the turns"
    assert seen[-1] == 2, "instructions and the last question"
