"""Malformed and hostile bodies of the inference routes, each with the field that its refusal names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.http.fields import FieldType
from serving.inference.generation_request import CHAT_FIELDS, COMPLETION_FIELDS
from serving.responses.request import IGNORED, RESPONSE_FIELDS

CHAT, COMPLETIONS, EMBEDDINGS, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"
RESPONSES = "/v1/responses"
USER = {"role": "user", "content": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "greeter", "messages": [USER]},
    COMPLETIONS: {"model": "greeter", "prompt": "hello"},
    EMBEDDINGS: {"model": "spam", "input": "hello"},
    CLASSIFY: {"model": "spam", "input": "hello"},
    RESPONSES: {"model": "greeter", "input": "hello"},
}


@dataclass(frozen=True)
class Hostile:
    path: str
    change: dict[str, Any]
    """Fields set in a valid body."""
    param: str
    """The field that the refusal names."""

    @property
    def body(self) -> dict[str, Any]:
        return BODIES[self.path] | self.change

    def __str__(self) -> str:
        return f"{self.path.rpartition('/')[2]} {str(self.change)[:80]}"


def _tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}} | function}


def _flat(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}} | more


def _image() -> dict[str, Any]:
    return {"type": "input_image", "image_url": "http://169.254.169.254/"}


def _choose(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _assistant(**call: Any) -> dict[str, Any]:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"} | call}]
    return {"messages": [USER, {"role": "assistant", "tool_calls": calls}]}


def _part(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


RELATED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"tools": []}, "tools"),
    (CHAT, {"tools": [], "tool_choice": "auto"}, "tools"),
    (CHAT, {"tool_choice": "auto"}, "tool_choice"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"tool_choice": _choose("f")}, "tool_choice"),
    (CHAT, {"tools": [_tool()], "tool_choice": "f"}, "tool_choice"),
    (CHAT, {"tools": [_tool()], "tool_choice": _choose("g")}, "tool_choice.function.name"),
    (CHAT, {"tools": [_tool()], "tool_choice": {}}, "tool_choice.type"),
    (CHAT, {"tools": [_tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (CHAT, {"tools": [_tool()], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    (CHAT, {"tools": [_tool()], "tool_choice": {"type": "tool", "function": {}}}, "tool_choice.type"),
    (CHAT, {"tools": [_tool()], "tool_choice": 3}, "tool_choice"),
    (CHAT, {"tools": [_tool(), _tool()], "tool_choice": "required"}, "tools[1].function.name"),
    (CHAT, {"tools": [_tool()] * 129}, "tools"),
    (CHAT, {"tools": "f"}, "tools"),
    (CHAT, {"tools": ["f"]}, "tools[0]"),
    (CHAT, {"tools": [{}]}, "tools[0].type"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (CHAT, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": 3}}]}, "tools[0].function.name"),
    (CHAT, {"tools": [_tool("two words")]}, "tools[0].function.name"),
    (CHAT, {"tools": [_tool(parameters="{}")]}, "tools[0].function.parameters"),
    (CHAT, {"tools": [_tool(parameters=[])]}, "tools[0].function.parameters"),
    (CHAT, {"tools": [_tool(arguments={})]}, "tools[0].function.arguments"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
    (CHAT, {"logprobs": 3}, "logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"stream_options": {}, "stream": False}, "stream_options"),
    (CHAT, {"stream_options": {"include_usage": "yes"}, "stream": True}, "stream_options.include_usage"),
    (CHAT, {"stream_options": {"usage": True}, "stream": True}, "stream_options.usage"),
    (CHAT, {"stream_options": [], "stream": True}, "stream_options"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    (CHAT, {"min_tokens": 30, "max_tokens": 3}, "min_tokens"),
    (CHAT, {"n": 2, "temperature": 0}, "n"),
    (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (CHAT, {"truncation_side": "left"}, "truncation_side"),
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
    (COMPLETIONS, {"logprobs": -2}, "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    (COMPLETIONS, {"prompt": ["hello"] * 2000}, "prompt"),
    (COMPLETIONS, {"prompt": ["hello"] * 200, "n": 16}, "prompt"),
    (COMPLETIONS, {"prompt": ["hello"] * 20, "n": 16}, "prompt"),
    (COMPLETIONS, {"prompt": ["hello", 3]}, "prompt"),
    (COMPLETIONS, {"prompt": [[1], 3]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [[1, -1]]}, "prompt[0][1]"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [2**40]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [True]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [None]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": {}}, "prompt"),
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"suffix": "end"}, "suffix"),
    (COMPLETIONS, {"best_of": 4}, "best_of"),
    (COMPLETIONS, {"best_of": 2, "n": 4}, "best_of"),
    (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"stream_options": {}}, "stream_options"),
    (COMPLETIONS, {"messages": [USER]}, "messages"),
    (COMPLETIONS, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
    (EMBEDDINGS, {"dimensions": 2}, "dimensions"),
    (EMBEDDINGS, {"encoding_format": "hex"}, "encoding_format"),
    (EMBEDDINGS, {"input": [1, 2]}, "input"),
    (EMBEDDINGS, {"input": [[1, 2]]}, "input"),
    (EMBEDDINGS, {"input": "a" * 100_001}, "input"),
    (EMBEDDINGS, {"input": ["a"] * 1025}, "input"),
    (EMBEDDINGS, {"input": None}, "input"),
    (EMBEDDINGS, {"inputs": "a"}, "inputs"),
    (CLASSIFY, {"input": {}}, "input"),
    (CLASSIFY, {"input": ["a", None]}, "input[1]"),
    (CLASSIFY, {"text": "a"}, "text"),
    (CLASSIFY, {"model": None}, "model"),
    (RESPONSES, {"tools": [_flat()] * 129}, "tools"),
    (RESPONSES, {"tools": [3]}, "tools[0]"),
    (RESPONSES, {"tools": [{}]}, "tools[0].type"),
    (RESPONSES, {"tools": [{"type": "mcp", "server_url": "http://169.254.169.254/"}]}, "tools[0].type"),
    (RESPONSES, {"tools": [{"type": "function"}]}, "tools[0].name"),
    (RESPONSES, {"tools": [_flat("two words")]}, "tools[0].name"),
    (RESPONSES, {"tools": [_flat(parameters="{}")]}, "tools[0].parameters"),
    (RESPONSES, {"tools": [_flat(), _flat()], "tool_choice": "required"}, "tools[1].name"),
    (RESPONSES, {"tool_choice": "required"}, "tool_choice"),
    (RESPONSES, {"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    (RESPONSES, {"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    (RESPONSES, {"tool_choice": {"type": "function"}}, "tool_choice.name"),
    (RESPONSES, {"tools": [_flat()], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a", "schema": []}}}, "text.format.schema"),
    (RESPONSES, {"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    (RESPONSES, {"text": {"format": 3}}, "text.format"),
    (RESPONSES, {"text": {"verbosity": "loud"}}, "text.verbosity"),
    (RESPONSES, {"text": {"form": {}}}, "text.form"),
    (RESPONSES, {"reasoning": {"effort": "most"}}, "reasoning.effort"),
    (RESPONSES, {"stream_options": {}}, "stream_options"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"conversation": "c"}, "conversation"),
    (RESPONSES, {"messages": [USER]}, "messages"),
    (RESPONSES, {"include": ["everything"]}, "include[0]"),
    (RESPONSES, {"previous_response_id": "../../keys"}, "previous_response_id"),
    (RESPONSES, {"input": None}, "input"),
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": [3]}, "input[0]"),
    (RESPONSES, {"input": [{}]}, "input[0].type"),
    (RESPONSES, {"input": [{"type": "wizard"}]}, "input[0].type"),
    (RESPONSES, {"input": [{"role": "wizard", "content": "a"}]}, "input[0].role"),
    (RESPONSES, {"input": [{"role": "user", "content": 3}]}, "input[0].content"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    (RESPONSES, {"input": [{"role": "user", "content": [_image()]}]}, "input[0].content[0].type"),
    (RESPONSES, {"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
    (RESPONSES, {"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "../x"}]}, "input[0].type"),
]
MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"),
    (None, "messages"),
    ("hello", "messages"),
    ({}, "messages"),
    ([USER] * 4097, "messages"),
    ([None], "messages[0]"),
    ([[]], "messages[0]"),
    (["hello"], "messages[0]"),
    ([{}], "messages[0].role"),
    ([{"role": None, "content": "a"}], "messages[0].role"),
    ([{"role": 3, "content": "a"}], "messages[0].role"),
    ([{"role": "wizard", "content": "a"}], "messages[0].role"),
    ([{"role": "function", "name": "f", "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "user", "content": {}}], "messages[0].content"),
    ([{"role": "system", "content": None}], "messages[0].content"),
    ([USER, {"role": "assistant"}], "messages[1].content"),
    ([USER, {"role": "assistant", "tool_calls": []}], "messages[1].content"),
    ([USER, {"role": "tool", "content": "a"}], "messages[1].tool_call_id"),
    ([USER, {"role": "tool", "tool_call_id": 3, "content": "a"}], "messages[1].tool_call_id"),
    ([USER | {"name": 3}], "messages[0].name"),
    ([USER | {"contents": "a"}], "messages[0].contents"),
    ([USER | {"audio": {}}], "messages[0].audio"),
    ([USER | {"function_call": {}}], "messages[0].function_call"),
    ([USER | {"tool_calls": [{"function": {"name": "f"}}]}], "messages[0].tool_calls"),
]
PARTS: list[tuple[Any, str]] = [
    ("hello", "messages[0].content[0]"),
    (None, "messages[0].content[0]"),
    ({}, "messages[0].content[0].type"),
    ({"type": 3}, "messages[0].content[0].type"),
    ({"type": "text"}, "messages[0].content[0].text"),
    ({"type": "text", "text": 3}, "messages[0].content[0].text"),
    ({"type": "text", "text": None}, "messages[0].content[0].text"),
    ({"type": "text", "text": "a", "lang": "en"}, "messages[0].content[0].lang"),
    ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, "messages[0].content[0].type"),
    ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "messages[0].content[0].type"),
    ({"type": "input_audio", "input_audio": {"data": ""}}, "messages[0].content[0].type"),
    ({"type": "file", "file": {"file_id": "f"}}, "messages[0].content[0].type"),
    ({"type": "wizard"}, "messages[0].content[0].type"),
]
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"arguments": "{"}, "function.arguments"),
    ({"arguments": "[]"}, "function.arguments"),
    ({"arguments": "3"}, "function.arguments"),
    ({"arguments": "[" * 100_000}, "function.arguments"),
    ({"arguments": {}}, "function.arguments"),
    ({"name": 3}, "function.name"),
    ({"name": ""}, "function.name"),
    ({"name": None}, "function.name"),
    ({"extra": 3}, "function.extra"),
]
UNKNOWN = {
    CHAT: [
        "temprature",
        "max_token",
        "chat_template",
        "priority",
        "use_beam_search",
        "mm_processor_kwargs",
        "functions",
        "audio",
    ],
    RESPONSES: ["imput", "max_tokens", "n", "logprobs", "chat_template_kwargs", "functions", ""],
    COMPLETIONS: ["promt", "top_logprobs", "kv_transfer_params", "guided_json", "echo_prompt", "tools", "\x00", ""],
}
WRONG_BY_TYPE: dict[str, list[Any]] = {
    "number": ["1", True, [], {}, 1e308, -1e308],
    "integer": ["1", True, 1.5, [], 2**70, -(2**70)],
    "boolean": ["true", 1, [], {}],
    "string": [3, True, [], {}],
    "array": [3, True, {}, ["x"] * 5000],
    "object": [3, True, "x", []],
}


def _wrong_values(path: str, fields: dict[str, FieldType]) -> Iterator[Hostile]:
    for name, kind in fields.items():
        for value in WRONG_BY_TYPE.get(str(kind.schema.get("type")), [3.5, True]):
            yield Hostile(path, {name: value}, name)


def hostile_requests() -> list[Hostile]:
    """Every request; none may reach an engine."""
    found = [Hostile(*given) for given in RELATED]
    found += [Hostile(CHAT, {"messages": messages}, param) for messages, param in MESSAGES]
    found += [Hostile(CHAT, _part(part), param) for part, param in PARTS]
    found += [Hostile(CHAT, _assistant(**call), f"messages[1].tool_calls[0].{param}") for call, param in CALLS]
    found += [Hostile(path, {name: 1}, name) for path, names in UNKNOWN.items() for name in names]
    found += _wrong_values(CHAT, CHAT_FIELDS)
    found += _wrong_values(COMPLETIONS, COMPLETION_FIELDS)
    found += _wrong_values(RESPONSES, {name: kind for name, kind in RESPONSE_FIELDS.items() if name not in IGNORED})
    return found
