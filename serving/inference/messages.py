"""The conversation and the tools of a chat completion: their shape and bounds.

Models read text: other content is refused here. Does not know a model's chat template, which may refuse an order of
roles that this module accepts.
"""

from __future__ import annotations

import json
from typing import Any

from serving.http.fields import (
    FieldType,
    anything,
    array,
    boolean,
    either,
    integer,
    known_fields,
    missing,
    number,
    object_schema,
    one_of,
    record,
    text,
    wrong,
)

MAX_MESSAGES = 4096
MAX_TOOLS = 128
_TEXT = 4 * 2**20
_NAME = text(64, 1, r"[A-Za-z0-9_.-]+")

_PART = record({"type": one_of("text", "refusal"), "text": text(_TEXT), "refusal": text(_TEXT)}, ["type"])
_CALL = record(
    {
        "id": text(256),
        "type": one_of("function"),
        "index": integer(0, MAX_TOOLS),
        "function": record({"name": _NAME, "arguments": text(_TEXT)}, ["name"]),
    },
    ["function"],
)
_MESSAGE_FIELDS: dict[str, FieldType] = {
    "role": one_of("system", "developer", "user", "assistant", "tool"),
    "content": either(text(_TEXT), array(_PART, 1024, 0)),
    "name": text(256),
    "tool_calls": array(_CALL, MAX_TOOLS, 0),
    "tool_call_id": text(256),
    # Fields of answers, which clients send back.
    "refusal": text(_TEXT),
    "annotations": array(anything(2**16, 8), 1024, 0),
    "reasoning": text(_TEXT),
    "reasoning_content": text(_TEXT),
    "weight": number(0, 1),
}
_UNSUPPORTED = {
    "audio": "the models read text",
    "function_call": "send tool_calls",
    "images": "the models read text",
    "thinking": "send reasoning",
}
_FUNCTION = {
    "name": _NAME,
    "description": text(2**14),
    "parameters": anything(2**17, 96),
    "strict": boolean(),
}
_DROPPED = ("annotations", "weight")


def _message(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise wrong(where, f"{where} must be an object with a role")
    if not isinstance(value.get("role"), str):
        raise wrong(f"{where}.role", f"{where} must be an object with a role")
    content = value.get("content")
    for i, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in ("text", "refusal"):
            what = part["type"][:40]
            raise wrong(f"{where}.content[{i}].type", f"{where}.content[{i}] is {what!r}; the models read text")
    known_fields(value, _MESSAGE_FIELDS, _UNSUPPORTED, where, ["role"])


_MESSAGE = FieldType(object_schema(_MESSAGE_FIELDS, ["role"]), "an object with a role", _message)
MESSAGES = array(_MESSAGE, MAX_MESSAGES)
TOOLS = array(
    record({"type": one_of("function"), "function": record(_FUNCTION, ["name"])}, ["type", "function"]), MAX_TOOLS
)
TOOL_CHOICE = either(
    one_of("none", "auto", "required"),
    record({"type": one_of("function"), "function": record({"name": _NAME}, ["name"])}, ["type", "function"]),
)


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Check what a message of each role needs, and drop what no template reads. The fields are already checked."""
    for i, message in enumerate(messages):
        where, role = f"messages[{i}]", message["role"]
        if role == "assistant" and not message.get("content") and message.get("refusal"):
            message["content"] = message["refusal"]  # as in rows; the engine leaves it out
        content, calls = message.get("content"), message.get("tool_calls")
        if calls and role != "assistant":
            raise wrong(f"{where}.tool_calls", f"{where} is of the {role}; only the assistant calls tools")
        if content is None and (role != "assistant" or not calls):
            raise wrong(f"{where}.content", f"{where} has no content")
        if role == "tool" and message.get("tool_call_id") is None:
            raise missing(f"{where}.tool_call_id")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if part.get(part["type"]) is None:
                raise missing(f"{where}.content[{j}].{part['type']}")
        for j, call in enumerate(calls or ()):
            _check_arguments(call["function"].get("arguments"), f"{where}.tool_calls[{j}].function.arguments")
        for name in _DROPPED:
            message.pop(name, None)


def check_tools(given: dict[str, Any]) -> None:
    """Check that `tools` and `tool_choice` go together. Sets OpenAI's default, and drops a choice without an effect."""
    tools, choice = given.get("tools"), given.get("tool_choice")
    names = [tool["function"]["name"] for tool in tools or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise wrong(f"tools[{i}].function.name", f"tools has two functions {name!r}")
    if tools is None:
        if choice not in (None, "none"):
            raise wrong("tool_choice", "tool_choice needs tools")
        given.pop("tool_choice", None)
        given.pop("parallel_tool_calls", None)
    elif choice is None:
        given["tool_choice"] = "auto"
    elif isinstance(choice, dict) and choice["function"]["name"] not in names:
        raise wrong("tool_choice.function.name", f"tool_choice names {choice['function']['name']!r}, not one of tools")


def _check_arguments(arguments: Any, where: str) -> None:
    if arguments in (None, ""):
        return
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise wrong(where, f"{where} must be a JSON object, written as a text")
