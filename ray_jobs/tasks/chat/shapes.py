"""The shapes in which people have conversations, as one: `messages` and `tools`.

OpenAI's and TRL's messages, ShareGPT's turns, and pairs of a prompt and a completion with a context, a system prompt
and a history. Does not check what a message holds (`messages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_jobs.tasks.base import Row
from ray_jobs.tasks.chat.messages import OTHER_WEIGHTS, Message, decoded, from_json_text, short

_SPEAKERS = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "assistant": "assistant",
    "model": "assistant", "bot": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's names of who speaks → role."""
_LISTS = ("messages", "history", "tools", "functions")
"""Columns whose list a table holds as JSON text."""
_BESIDE_MESSAGES = ("prompt", "context", "completion", "history")
_EMPTY: tuple[object, ...] = (None, "", [])


def as_conversation(row: Row) -> tuple[Row, list[str]]:
    """The row as `{"messages": …, "tools": …}`, and why it is none; the row means nothing where there are reasons."""
    given = {name: from_json_text(value) if name in _LISTS else value for name, value in row.items()}
    given = {name: value for name, value in given.items() if value not in _EMPTY}
    both = [name for name in _BESIDE_MESSAGES if name in given and not (name == "prompt" and _repeats_prompt(given))]
    if "messages" in given or ("messages" in row and not both):
        if both:
            return {}, [f"it has messages and {' and '.join(both)}: keep the one that is the conversation"]
        messages, problems = _turns(given.get("messages", row["messages"]))
    else:
        messages, problems = _pair(given)
    messages, more = _with_system(messages, given.get("system"))
    tools = {"tools": found} if (found := given.get("tools", given.get("functions"))) is not None else {}
    return {"messages": messages, **tools}, problems + more


def _repeats_prompt(given: Row) -> bool:
    """The prompt beside the messages is their first question again, as in UltraChat's rows."""
    turns = given.get("messages")
    users = (turn for turn in turns if isinstance(turn, dict)) if isinstance(turns, list) else ()
    first = next((turn.get("content") for turn in users if turn.get("role") == "user"), None)
    return isinstance(first, str) and first == given["prompt"]


def _turns(messages: Any) -> tuple[Any, list[str]]:
    """ShareGPT's turns, `{"from", "value"}`, as messages; messages as they are."""
    if not isinstance(messages, list) or not any(isinstance(each, dict) and "from" in each for each in messages):
        return messages, []
    found: list[Message] = []
    problems: list[str] = []
    weights = ("weight", *OTHER_WEIGHTS)
    for i, turn in enumerate(messages):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
        call = _call(text) if speaker == "function_call" and isinstance(text, str) else None
        if role is None or not isinstance(text, str):
            known = ", ".join(_SPEAKERS)
            problems.append(f"messages[{i}] must have a from ({known}) and a value of text, not {short(turn)}")
        elif speaker == "function_call" and call is None:
            problems.append(f"messages[{i}] must be a call {{name, arguments}}, not {short(text)}")
        elif call is not None:
            found.append({"role": role, "content": None, "tool_calls": [call]})
        else:
            found.append({"role": role, "content": text} | {name: turn[name] for name in weights if name in turn})
    return found, problems[:10]


def _call(text: str) -> Message | None:
    call = decoded(text)
    if not call or not isinstance(call.get("name"), str):
        return None
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments")}}


def _pair(given: Row) -> tuple[list[Message], list[str]]:
    """A prompt and its completion, each a text or a list of messages, after a history."""
    given = dict(given)
    if "prompt" not in given and "context" in given:
        given["prompt"] = given.pop("context")
    if "prompt" not in given and "completion" not in given:
        return [], ["neither messages nor prompt and completion"]
    problems = [
        f"{name} must be non-empty text or a list of messages, not {short(given.get(name))}"
        for name in ("prompt", "completion")
        if not _has_text(given.get(name))
    ]
    context = given.get("context", "")
    if not isinstance(context, str) or (context.strip() and not isinstance(given.get("prompt"), str)):
        problems.append(f"context must be text that follows a prompt of text, not {short(context)}")
    history, more = _history(given.get("history"))
    if problems or more:
        return [], problems + more
    # The context follows the prompt on a line of its own, as in Alpaca's rows at LLaMA-Factory.
    asked = f"{given['prompt']}\n{context}" if isinstance(context, str) and context.strip() else given["prompt"]
    prompt = [{"role": "user", "content": asked}] if isinstance(asked, str) else _only_read(asked)
    answer = given["completion"]
    return [*history, *prompt, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)], []


def _has_text(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, list) and bool(value)


def _only_read(messages: Sequence[Any]) -> list[Any]:
    """Messages of a prompt: its answers are read and not trained."""
    return [
        {**each, "weight": 0} if isinstance(each, dict) and each.get("role") == "assistant" else each
        for each in messages
    ]


def _history(history: Any) -> tuple[list[Message], list[str]]:
    """Earlier exchanges: pairs of a prompt and an answer, which are trained, or messages."""
    found: list[Message] = []
    for i, exchange in enumerate(history or ()):
        if isinstance(exchange, dict):
            found.append(exchange)
        elif isinstance(exchange, list) and len(exchange) == 2 and all(isinstance(each, str) for each in exchange):
            found += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
        else:
            return [], [f"history[{i}] must be a pair of texts or a message, not {short(exchange)}"]
    return found, []


def _with_system(messages: Any, system: Any) -> tuple[Any, list[str]]:
    if system is None:
        return messages, []
    if not isinstance(system, str):
        return messages, [f"system must be text, not {short(system)}"]
    if not isinstance(messages, list):
        return messages, []
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        return messages, ["it has a system column, and messages that begin with a system message: keep one"]
    return [{"role": "system", "content": system}, *messages], []
