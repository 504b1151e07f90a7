"""The response object of a request before its answer, and its record.

Owns the fields that repeat the request. Does not know how an answer grows (`events`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_jobs.tenancy.answers.records import StoredAnswer
from serving.access.auth import Caller
from serving.responses.request import ResponseRequest

_REPEATED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_p",
    "user",
)
"""Fields that the response repeats; null if the request has none. The model's own defaults are not known here."""
_ITEM_PREFIXES = {"function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def new_response(
    asked: ResponseRequest, identifier: str, model: str, created_at: int, *, is_stored: bool
) -> dict[str, Any]:
    """Return the response object before the first token."""
    given = asked.given
    reasoning = {"effort": None, "summary": None} | given.get("reasoning", {})
    return {
        "id": identifier,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "reasoning": reasoning,
        "service_tier": "default",
        "store": is_stored,
        "text": {"format": {"type": "text"}} | given.get("text", {}),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"description": None, "strict": None, "parameters": None, **tool} for tool in given.get("tools", [])],
        "top_logprobs": given.get("top_logprobs", 0),
        "truncation": given.get("truncation", "disabled"),
        "usage": None,
        "metadata": given.get("metadata", {}),
        **{name: given.get(name) for name in _REPEATED},
    }


def record_of(
    response: dict[str, Any], asked: ResponseRequest, new_id: Callable[[str], str], caller: Caller
) -> StoredAnswer:
    """Return the record of an answered response; its input items get the ids by which they are listed."""
    return StoredAnswer(
        id=response["id"],
        team=caller.team,
        key_id=caller.key_id,
        model=response["model"],
        requested_model=asked.given["model"],
        created_at=response["created_at"],
        metadata=response["metadata"],
        input=[_with_id(item, new_id) for item in asked.items],
        answer=response,
    )


def conversation_of(record: StoredAnswer) -> list[dict[str, Any]]:
    """Return the items that a response continues: the record's input and output."""
    return [*record.input, *record.answer["output"]]


def _with_id(item: dict[str, Any], new_id: Callable[[str], str]) -> dict[str, Any]:
    prefix = _ITEM_PREFIXES.get(item["type"], "msg_")
    content = item.get("content")
    if item["type"] == "message" and isinstance(content, str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        item = item | {"content": [{"type": kind, "text": content}]}
    return {"status": "completed", **item, "id": item.get("id") or new_id(prefix)}
