"""Items of the Responses API, and the chat messages that they become.

Owns the shape of input items and their translation. Items that only OpenAI's own tools make are refused by their kind.
Does not know the other fields of a request (`request`), nor a model's chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.storage.unreadable import nested_deeper
from serving.http.errors import bad_request
from serving.http.fields import FieldType, anything, array, known_fields, one_of, text, wrong

_TEXT = text(4 * 2**20)
_ID = text(256)
_STATUS = one_of("in_progress", "completed", "incomplete")
_NAME = text(64, 1, r"[A-Za-z0-9_.-]+")


def _check_flat(value: Any, where: str) -> None:
    if nested_deeper(value, 16):
        raise wrong(where, f"{where} is nested deeper than 16 levels")


_ANY = FieldType({}, "anything of at most 16 levels", _check_flat)
"""A field of an answer that a client sends back and that does not change the next answer."""
MAX_ITEMS = 4096
_ROLES = one_of("user", "assistant", "system", "developer")

_MESSAGE: dict[str, FieldType] = {
    "type": one_of("message"),
    "role": _ROLES,
    "content": FieldType({"type": ["string", "array"]}, "a text or a list of parts", lambda value, where: None),
    "id": _ID,
    "status": _STATUS,
    "phase": _ANY,
}
_PARTS: dict[str, dict[str, FieldType]] = {
    "input_text": {"type": _ANY, "text": _TEXT, "prompt_cache_breakpoint": _ANY},
    "output_text": {"type": _ANY, "text": _TEXT, "annotations": _ANY, "logprobs": _ANY, "parsed": _ANY},
    "refusal": {"type": _ANY, "refusal": _TEXT},
}
_CALL: dict[str, FieldType] = {
    "type": _ANY,
    "call_id": _ID,
    "name": _NAME,
    "arguments": _TEXT,
    **dict.fromkeys(("id", "status", "caller", "namespace", "async", "parsed_arguments"), _ANY),
}
_OUTPUT: dict[str, FieldType] = {
    "type": _ANY,
    "call_id": _ID,
    "output": FieldType({"type": ["string", "array"]}, "a text or a list of parts", lambda value, where: None),
    "id": _ANY,
    "status": _ANY,
    "caller": _ANY,
}
_REASONING: dict[str, FieldType] = dict.fromkeys(
    ("type", "id", "summary", "content", "encrypted_content", "status"), _ANY
)
_INSTEAD = {
    "item_reference": "send the item itself, or previous_response_id",
    "input_image": "the models read text",
    "input_file": "the models read text; send the text of the file",
    "input_audio": "the models read text",
}
"""Kinds of items and parts that are refused → what to do instead; the other kinds are made by tools of OpenAI's."""
_TOOLS_INSTEAD = "nothing here runs built-in tools; describe your own as type function"

INPUT = FieldType(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "maxItems": MAX_ITEMS}]},
    "a text or a list of items",
    lambda value, where: _check(value, where),
)


@dataclass(frozen=True)
class Conversation:
    """Items as chat messages."""

    messages: list[dict[str, Any]]
    origins: list[str]
    """For each message the place of its first item in the request."""


def _check(value: Any, where: str) -> None:
    if isinstance(value, str):
        _TEXT.check(value, where)
        return
    array(anything(4 * 2**20, 96), MAX_ITEMS).check(value, where)
    for number, item in enumerate(value):
        checked_item(item, f"{where}[{number}]")


def items_of(given: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a checked `input` as items, each with its `type`."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [checked_item(item, f"input[{number}]") for number, item in enumerate(given)]


def checked_item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return an item without fields that are null. Raises ApiError 400."""
    kind = item.get("type")
    if kind is None and "role" in item:
        kind = "message"
    if not isinstance(kind, str):
        raise wrong(f"{where}.type", f"{where} must be an object with a type, or a message with role and content")
    if kind == "message":
        found = known_fields(item, _MESSAGE, {}, where, ["role", "content"])
        return found | {"type": kind, "content": _content(found["content"], f"{where}.content", found["role"])}
    if kind == "function_call":
        return known_fields(item, _CALL, {}, where, ["call_id", "name", "arguments"])
    if kind == "function_call_output":
        found = known_fields(item, _OUTPUT, {}, where, ["call_id", "output"])
        return found | {"output": _content(found["output"], f"{where}.output", "tool")}
    if kind == "reasoning":
        return known_fields(item, _REASONING, {}, where)
    message = f"{where} is of type {kind[:40]!r}: {_INSTEAD.get(kind, _TOOLS_INSTEAD)}"
    raise bad_request(message, param=f"{where}.type", code="unsupported")


def _content(content: Any, where: str, role: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        _TEXT.check(content, where)
        return content
    if not isinstance(content, list):
        raise wrong(where, f"{where} must be a text or a list of parts")
    return [_part(part, f"{where}[{number}]", role) for number, part in enumerate(content)]


def _part(part: Any, where: str, role: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong(f"{where}.type", f"{where} must be an object with a type")
    if kind not in _PARTS:
        instead = _INSTEAD.get(kind, "send input_text, of the assistant output_text")
        raise bad_request(f"{where} is of type {kind[:40]!r}: {instead}", param=f"{where}.type", code="unsupported")
    if kind == "refusal" and role != "assistant":
        raise wrong(f"{where}.type", f"{where} is a refusal of the {role}; only the assistant refuses")
    return known_fields(part, _PARTS[kind], {}, where, ["refusal" if kind == "refusal" else "text"])


def as_messages(items: Sequence[Mapping[str, Any]], instructions: str | None, new_from: int) -> Conversation:
    """Translate checked items. The first `new_from` items are those of an earlier response.

    Function calls that follow each other, or a text of the assistant, are one message, as chat templates expect.
    Reasoning is left out: a chat template shows none of an earlier turn.
    """
    messages: list[dict[str, Any]] = []
    origins: list[str] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
        origins.append("instructions")
    joins = False
    for number, item in enumerate(items):
        origin = "previous_response_id" if number < new_from else f"input[{number - new_from}]"
        kind = item["type"]
        if kind == "reasoning":
            continue
        if kind == "function_call" and joins:
            messages[-1].setdefault("tool_calls", []).append(_tool_call(item))
            continue
        messages.append(_message(item))
        origins.append(origin)
        joins = messages[-1]["role"] == "assistant"
    return Conversation(messages, origins)


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [_tool_call(item)]}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": _chat_content(item["output"])}
    return {"role": item["role"], "content": _chat_content(item["content"])}


def _tool_call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _chat_content(content: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if len(content) == 1 and "text" in content[0]:
        return str(content[0]["text"])
    return [
        {"type": "refusal", "refusal": part["refusal"]}
        if part["type"] == "refusal"
        else {"type": "text", "text": part["text"]}
        for part in content
    ] or ""
