"""A request of the Responses API as a chat completion.

Owns the fields of `POST /v1/responses`, which of them are refused with what to use instead, and their names in a chat
request. What a chat completion refuses is refused under the name of the field that the client sent. Does not know the
shape of items (`items`), nor the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.http.errors import ApiError, bad_request
from serving.http.fields import (
    FieldType,
    anything,
    array,
    boolean,
    either,
    integer,
    known_fields,
    mapping,
    number,
    one_of,
    record,
    text,
    wrong,
)
from serving.inference.messages import MAX_TOOLS
from serving.responses.items import INPUT, as_messages, items_of

_ANY_TEXT = text(512)
_NAME = text(64, 1, r"[A-Za-z0-9_.-]+")
_FORMAT = anything(2**17, 96)
_EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LOGPROBS = "message.output_text.logprobs"
_INCLUDE = one_of(
    _LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""Only log-probabilities exist here; the others belong to kinds of items that never occur."""

IGNORED: dict[str, FieldType] = {
    "user": _ANY_TEXT,
    "service_tier": _ANY_TEXT,
    "safety_identifier": _ANY_TEXT,
    "prompt_cache_key": _ANY_TEXT,
    "prompt_cache_retention": _ANY_TEXT,
    "prompt_cache_options": anything(4096, 4),
    "max_tool_calls": integer(1, 2**20),
}
"""Fields that real clients send and that do not change the answer; `max_tool_calls` counts OpenAI's own tools."""
RESPONSE_FIELDS: dict[str, FieldType] = {
    "model": text(512, 1),
    "input": INPUT,
    "instructions": text(4 * 2**20),
    "previous_response_id": text(256, 1),
    "max_output_tokens": integer(1, 2**20),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "top_logprobs": integer(0, 20),
    "tools": array(anything(2**17, 96), MAX_TOOLS, 0),
    "tool_choice": either(one_of("none", "auto", "required"), anything(4096, 8)),
    "parallel_tool_calls": boolean(),
    "text": anything(2**17, 96),
    "reasoning": record({"effort": _EFFORT, "summary": _ANY_TEXT, "generate_summary": _ANY_TEXT}),
    "metadata": mapping(text(512), 16),
    "store": boolean(),
    "truncation": one_of("auto", "disabled"),
    "include": array(_INCLUDE, 16, 0),
    "stream": boolean(),
    "stream_options": record({"include_obfuscation": boolean()}),
    "background": boolean(),
    **IGNORED,
}
_REFUSED = {
    "conversation": "send previous_response_id, or the whole conversation as input",
    "prompt": "there are no prompt templates; send instructions and input",
    "context_management": "set truncation to auto, or send fewer items",
    "moderation": "the endpoint has no moderation",
    "background_options": "send stream: true for a long answer",
    "image": "the models read text",
    "access_programs": "the models have no programs",
    "messages": "send input, or use /v1/chat/completions",
}
_FUNCTION = {
    "type": one_of("function"),
    "name": _NAME,
    "description": text(2**14),
    "parameters": anything(2**17, 96),
    "strict": boolean(),
}
_TOOLS_INSTEAD = {
    "web_search": "search in your own code and offer it as a function",
    "file_search": "search in your own code, such as with /v1/embeddings, and offer it as a function",
    "code_interpreter": "nothing here runs code; run it yourself and offer it as a function",
    "computer": "nothing here controls a computer; offer actions as functions",
    "mcp": "call the MCP server in your own code and offer its tools as functions",
    "custom": "describe the tool as a function with parameters",
}
_CHAT_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_FUNCTION_PLACE = re.compile(r"(tools\[\d+\]|tool_choice)\.function\b")
_MESSAGE_PLACE = re.compile(r"messages\[(\d+)\]")


@dataclass(frozen=True)
class ResponseRequest:
    """A validated request."""

    given: dict[str, Any]
    """The fields that are not null."""
    items: list[dict[str, Any]]
    """The whole conversation: the items of earlier responses, then the request's own."""
    chat: dict[str, Any]
    """The chat completion that answers it."""
    origins: list[str]
    """For each chat message its place in the request."""

    @property
    def truncates(self) -> bool:
        return self.given.get("truncation") == "auto"

    @property
    def has_logprobs(self) -> bool:
        return bool(self.chat.get("logprobs"))

    def shortened(self) -> ResponseRequest | None:
        """Return the request without the oldest quarter of its turns. None: only the last turn is left.

        A turn begins with a message of the user; instructions stay.
        """
        messages: list[dict[str, Any]] = self.chat["messages"]
        kept = 0
        while kept < len(messages) and messages[kept]["role"] in ("system", "developer"):
            kept += 1
        starts = [at for at in range(kept, len(messages)) if messages[at]["role"] == "user"]
        starts = [at for at in starts if at > kept]
        if not starts:
            return None
        start = starts[len(starts) // 4]
        chat = self.chat | {"messages": messages[:kept] + messages[start:]}
        return replace(self, chat=chat, origins=self.origins[:kept] + self.origins[start:])

    def renamed(self, error: ApiError) -> ApiError:
        """Return a refusal of the chat completion with the names of the response's fields."""
        return replace_names(error, self.origins)


def parse_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that are not null. Raises ApiError 400 that names the field."""
    given = known_fields(body, RESPONSE_FIELDS, _REFUSED, required=["model"])
    if given.get("background"):
        message = "background is not supported: send stream: true for a long answer, or wait for it"
        raise bad_request(message, param="background", code="unsupported")
    if "stream_options" in given and not given.get("stream"):
        raise wrong("stream_options", "stream_options needs stream: true")
    if "input" not in given and "previous_response_id" not in given:
        raise wrong("input", "input is required but missing")
    return given


def parse(given: Mapping[str, Any], earlier: Sequence[dict[str, Any]]) -> ResponseRequest:
    """Translate checked fields. `earlier`: the items of the response that the request continues."""
    own = items_of(given["input"]) if "input" in given else []
    conversation = as_messages([*earlier, *own], given.get("instructions"), len(earlier))
    chat: dict[str, Any] = {"model": given["model"], "messages": conversation.messages}
    names = {"max_output_tokens": "max_completion_tokens", "parallel_tool_calls": "parallel_tool_calls"}
    names |= {name: name for name in ("temperature", "top_p")}
    chat |= {chat_name: given[name] for name, chat_name in names.items() if name in given}
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(given.get("tools", []))]
    if tools:
        chat["tools"] = tools
    choice = _tool_choice(given.get("tool_choice"))
    if choice is not None and (tools or choice not in ("auto", "none")):
        chat["tool_choice"] = choice
    if given.get("top_logprobs") or _LOGPROBS in given.get("include", []):
        chat |= {"logprobs": True, "top_logprobs": given.get("top_logprobs", 0)}
    if (effort := given.get("reasoning", {}).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    chat |= _text(given.get("text", {}))
    if given.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return ResponseRequest(dict(given), [*earlier, *own], chat, conversation.origins)


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise wrong(f"{where}.type", f"{where} must be an object with type function")
    if kind != "function":
        known = next((text for name, text in _TOOLS_INSTEAD.items() if kind.startswith(name)), None)
        instead = known or "the endpoint runs no built-in tools; describe your own as type function"
        raise bad_request(f"{where} is of type {kind[:40]!r}: {instead}", param=f"{where}.type", code="unsupported")
    function = known_fields(tool, _FUNCTION, {}, where, ["name"])
    del function["type"]
    return {"type": "function", "function": function}


def _tool_choice(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.get("type") != "function":
        message = "tool_choice names a tool that the endpoint does not run: send none, auto, required or a function"
        raise bad_request(message, param="tool_choice.type", code="unsupported")
    found = known_fields(choice, {"type": one_of("function"), "name": _NAME}, {}, "tool_choice", ["name"])
    return {"type": "function", "function": {"name": found["name"]}}


def _text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat fields of `text`."""
    verbosity = one_of("low", "medium", "high")
    found = known_fields(given, {"format": _FORMAT, "verbosity": verbosity}, {}, "text")
    form = found.get("format")
    chat = {"verbosity": found["verbosity"]} if "verbosity" in found else {}
    if form is None or form.get("type") == "text":
        return chat
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        return chat | {"response_format": {"type": "json_schema", "json_schema": schema}}
    return chat | {"response_format": form}


def replace_names(error: ApiError, origins: Sequence[str]) -> ApiError:
    """Return an error of a chat completion with the names of the response's fields. Pure."""

    def rename(words: str) -> str:
        words = _MESSAGE_PLACE.sub(lambda found: _origin(origins, int(found[1])), words)
        words = _FUNCTION_PLACE.sub(r"\1", words)
        for chat_name, name in _CHAT_NAMES.items():
            words = re.sub(rf"(?<![\w.]){re.escape(chat_name)}(?![\w])", name, words)
        return re.sub(r"^messages\b", "input", words)

    param = None if error.param is None else rename(error.param)
    return replace(error, message=rename(error.message), param=param)


def _origin(origins: Sequence[str], number: int) -> str:
    return origins[number] if number < len(origins) else "input"
