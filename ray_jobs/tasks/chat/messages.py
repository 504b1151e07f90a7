"""The one canonical form of messages and tools: of rows, of parity's prompts and of the endpoint's requests.

It is what vLLM's parsing of a request (`vllm.entrypoints.chat_utils.parse_chat_messages`) makes of the same messages,
so that a model is trained on what it is served. Content is text, several parts of text, or null; a call's arguments are
an object. Does not know the chat template (`template`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_PROBLEMS = 10
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kind of a content part → its field."""
_REASONING = ("reasoning", "reasoning_content")
OTHER_WEIGHTS = ("train", "trainable", "training", "loss")
"""What other programs call `weight`: refused where it is false, since the message would be trained."""


def problems_of(messages: object) -> list[str]:
    """Why a conversation has no canonical form or trains nothing; empty where neither holds."""
    if not isinstance(messages, list) or not messages:
        return [f"messages must be a non-empty list, not {short(messages)}"]
    problems: list[str] = []
    called: Counter[str] = Counter()
    for i, message in enumerate(messages):
        problems += [f"messages[{i}]: {problem}" for problem in _problems_of_one(message, called)]
        if len(problems) >= _MOST_PROBLEMS:  # enough of one row
            return problems
    if not problems and not any(_is_trained(message) for message in messages):
        problems.append("no assistant message with weight 1 and a content: nothing would be trained")
    return problems


def problems_of_tools(tools: object) -> list[str]:
    """Why `tools` are not a list of functions."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        return [f"tools must be a list of functions, not {short(tools)}"]
    problems, names = [], set[str]()
    for i, tool in enumerate(tools):
        function = _function_of(tool)
        name = function.get("name") if function is not None else None
        if function is None or not isinstance(name, str) or not name:
            problems.append(f"tools[{i}] must be {{type: function, function: {{name, …}}}}, not {short(tool)}")
        elif not isinstance(function.get("parameters"), dict | None):
            problems.append(
                f"tools[{i}].function.parameters must be a JSON schema, not {short(function['parameters'])}"
            )
        elif name in names:
            problems.append(f"tools[{i}] is a second function {name!r}")
        names.add(str(name))
    return problems[:_MOST_PROBLEMS]


def canonical(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages in their canonical form. Call on messages without `problems_of`."""
    return [_canonical_one(message) for message in messages]


def canonical_tools(tools: object) -> list[Message] | None:
    """Tools as the engine passes them to a template, or None where there are none.

    The engine writes an absent description and absent parameters as null, which templates show.
    """
    given = tools if isinstance(tools, list) else ()
    found = [function for tool in given if (function := _function_of(tool)) is not None]
    return [
        {
            "type": "function",
            "function": {
                "name": function["name"],
                "description": function.get("description"),
                "parameters": function.get("parameters"),
                **({"strict": function["strict"]} if function.get("strict") is not None else {}),
            },
        }
        for function in found
    ] or None


def text_of(content: str | Sequence[Mapping[str, str]] | None) -> str:
    """Canonical content as one text: parts on lines of their own, nothing for null."""
    return "\n".join(texts_of(content))


def texts_of(content: str | Sequence[Mapping[str, str]] | None) -> list[str]:
    """The texts of canonical content, one for each part."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or ()]


def decoded(arguments: object) -> dict[str, Any] | None:
    """A call's arguments as an object; none are an empty one. None: they are not an object."""
    if arguments in (None, ""):
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return arguments if isinstance(arguments, dict) else None


def from_json_text(value: object) -> Any:
    """A list that a table holds as JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def short(value: object) -> str:
    """A value as an error names it."""
    text = repr(value[:60] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _canonical_one(message: Mapping[str, Any]) -> Message:
    role = "tool" if message["role"] == "function" else message["role"]
    content = _canonical_content(message.get("content"))
    if role == "assistant" and not content and message.get("refusal"):
        content = message["refusal"]
    found: Message = {"role": role, "content": content}
    if role == "assistant":
        if calls := [_canonical_call(call) for call in _calls_of(message)]:
            found["tool_calls"] = calls
        if reasoning := next((message[name] for name in _REASONING if message.get(name)), None):
            found["reasoning"] = reasoning
        if not message.get("weight", 1):
            found["weight"] = 0
    if role == "tool" and message.get("tool_call_id") is not None:
        found["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        found["name"] = message["name"]
    return found


def _canonical_content(content: Any) -> str | list[Message] | None:
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        return None if content is None else str(content)
    texts = [part[_TEXT_PARTS[part["type"]]] for part in content]
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts) if texts else None


def _canonical_call(call: Mapping[str, Any]) -> Message:
    """A call, its fields in the order in which vLLM's schemas have them: some templates write a call as JSON."""
    function = call["function"]
    found: Message = {"id": call["id"]} if call.get("id") is not None else {}
    return found | {
        "function": {"arguments": decoded(function.get("arguments")), "name": function["name"]},
        "type": "function",
    }


def _calls_of(message: Mapping[str, Any]) -> list[Any]:
    """The calls of a message, that of the older field `function_call` included."""
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call") is not None:
        calls.append({"type": "function", "function": message["function_call"]})
    return calls


def _is_trained(message: Mapping[str, Any]) -> bool:
    """Whether a model learns more from it than to say nothing."""
    says = bool(text_of(_canonical_content(message.get("content"))).strip() or message.get("refusal"))
    return message["role"] == "assistant" and bool(message.get("weight", 1)) and (says or bool(_calls_of(message)))


def _problems_of_one(message: object, called: Counter[str]) -> list[str]:
    if not isinstance(message, dict):
        return [f"must be an object with role and content, not {short(message)}"]
    role = message.get("role")
    if role not in (*ROLES, "function"):
        return [f"role is {short(role)}, must be one of {', '.join(ROLES)}"]
    problems = _problems_of_content(message)
    if role == "assistant":
        problems += _problems_of_calls(message, called)
        problems += [
            f"{name} must be text, not {short(message[name])}"
            for name in (*_REASONING, "refusal")
            if not isinstance(message.get(name), str | None)
        ]
    elif message.get("tool_calls") or message.get("function_call"):
        problems.append(f"is of the {role}; only the assistant calls tools")
    if role == "tool":
        problems += _problems_of_result(message, called)
    problems += [
        f"{name} is {short(message[name])}, which is not read: write weight: 0"
        for name in OTHER_WEIGHTS
        if message.get(name, True) in (False, 0)
    ]
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        problems.append(f"weight is {short(message['weight'])}; only an assistant message has one, 0 or 1")
    return problems


def _problems_of_content(message: Mapping[str, Any]) -> list[str]:
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        return [problem for i, part in enumerate(content) for problem in _problems_of_part(part, i)]
    if content is None and role == "assistant":
        if _calls_of(message) or message.get("refusal"):
            return []
        return ["has neither content nor tool_calls"]
    if isinstance(content, dict) and role in ("tool", "function"):
        return []
    if not isinstance(content, str):
        return [f"content must be text, not {short(content)}"]
    if role == "user" and not content.strip():
        return ["content is empty"]
    return []


def _problems_of_part(part: object, i: int) -> list[str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        return [f"content[{i}] must be a part with a type, not {short(part)}"]
    if kind not in _TEXT_PARTS:
        return [f"content[{i}] is {kind[:40]!r}; the models read text"]
    if not isinstance(part.get(_TEXT_PARTS[kind]), str):
        return [f"content[{i}].{_TEXT_PARTS[kind]} must be text, not {short(part.get(_TEXT_PARTS[kind]))}"]
    return []


def _problems_of_calls(message: Mapping[str, Any], called: Counter[str]) -> list[str]:
    if not isinstance(message.get("tool_calls"), list | None):
        return [f"tool_calls must be a list, not {short(message['tool_calls'])}"]
    problems = []
    for i, call in enumerate(_calls_of(message)):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            problems.append(f"tool_calls[{i}] must be {{type: function, function: …}}, not {short(call)}")
        elif not isinstance(function.get("name"), str) or not function["name"]:
            problems.append(f"tool_calls[{i}].function.name must be text, not {short(function.get('name'))}")
        elif decoded(function.get("arguments")) is None:
            what = short(function["arguments"])
            problems.append(f"tool_calls[{i}].function.arguments must be a JSON object, as text or itself, not {what}")
        elif isinstance(call.get("id"), str):
            called[call["id"]] += 1
    return problems


def _problems_of_result(message: Mapping[str, Any], called: Counter[str]) -> list[str]:
    call_id = message.get("tool_call_id")
    if call_id is None:
        return ["has no tool_call_id: the id of the call that it answers"] if called else []
    if not isinstance(call_id, str):
        return [f"tool_call_id must be text, not {short(call_id)}"]
    if not called[call_id]:
        return [f"tool_call_id is {short(call_id)}, which no call before it has or which is answered already"]
    called[call_id] -= 1
    return []


def _function_of(tool: object) -> dict[str, Any] | None:
    """The function of a tool, which the older field `functions` lists bare."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function") if tool.get("type", "function") == "function" and "function" in tool else tool
    return function if isinstance(function, dict) else None
