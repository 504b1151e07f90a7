"""A chat answer as a response of the Responses API: its output items, and the events of its stream.

Owns the order of events, their sequence numbers, and the response object as it grows. A whole answer passes the same
way as a stream, as one piece. Pure but for ids and times, which the caller gives. Does not know HTTP.

    answer = ResponseAnswer(response, new_id)
    events = [*answer.begin(), *answer.add(chunk), *answer.end_items(), answer.end(now)]
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.http.errors import ApiError

Event = dict[str, Any]
Status = Literal["completed", "incomplete", "failed"]
_TextKind = Literal["message", "reasoning"]
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reason of the engine → reason of an incomplete response; any other one completes it."""
_REASONING = ("reasoning_content", "reasoning")


def as_text(event: Event) -> str:
    """Return an event as it is sent."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


def as_chunk(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole chat completion as one piece of a stream."""
    choice = completion["choices"][0]
    message = dict(choice["message"])
    calls = [{**call, "index": index} for index, call in enumerate(message.get("tool_calls") or [])]
    piece = {"index": 0, "delta": message | {"tool_calls": calls}, "finish_reason": choice.get("finish_reason")}
    return {"choices": [piece | {"logprobs": choice.get("logprobs")}], "usage": completion.get("usage")}


@dataclass
class _OpenItem:
    """An output item that still grows."""

    index: int
    item: dict[str, Any]
    call: int | None = None
    """Number of a function call in the chat answer."""


@dataclass
class ResponseAnswer:
    """One response while it is generated."""

    response: dict[str, Any]
    """The response object. Its output has closed items only."""
    new_id: Callable[[str], str]
    """Makes an id with a prefix, such as `msg_`."""
    finish_reason: str | None = None
    _number: int = 0
    _items: int = 0
    _open: list[_OpenItem] = field(default_factory=list)

    def begin(self) -> list[Event]:
        """Return the events before the first token."""
        shown = copy.deepcopy(self.response)
        return [self._event(f"response.{name}", response=shown) for name in ("created", "in_progress")]

    def add(self, chunk: Mapping[str, Any]) -> list[Event]:
        """Return the events of one `chat.completion.chunk`."""
        if chunk.get("usage"):
            self.response["usage"] = usage(chunk["usage"])
        events: list[Event] = []
        for choice in (chunk.get("choices") or [])[:1]:
            delta = choice.get("delta") or {}
            events += self._text("reasoning", next((delta[name] for name in _REASONING if delta.get(name)), ""), None)
            events += self._text("message", delta.get("content") or "", choice.get("logprobs"))
            for call in delta.get("tool_calls") or []:
                events += self._call(call)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return events

    def end_items(self) -> list[Event]:
        """Close what is open, and set the response's status. An answer without any token is an empty text."""
        events = [] if self._items else self._opened("message")
        cut_off = self.finish_reason in _INCOMPLETE
        events += self._close_all("incomplete" if cut_off else "completed")
        self.response["status"] = "incomplete" if cut_off else "completed"
        if self.finish_reason in _INCOMPLETE:
            self.response["incomplete_details"] = {"reason": _INCOMPLETE[self.finish_reason]}
        return events

    def end(self, now_s: float) -> Event:
        """Return the last event."""
        if self.response["status"] == "completed":
            self.response["completed_at"] = int(now_s)
        return self._event(f"response.{self.response['status']}", response=self.response)

    def fail(self, error: ApiError) -> Event:
        """Return the last event of a response that broke off."""
        sent = self._number
        self._close_all("incomplete")
        self._number = sent  # clients get the one event
        message = error.body()["error"]["message"]
        self.response |= {"status": "failed", "store": False, "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", response=self.response)

    def _text(
        self, kind: Literal["message", "reasoning"], text: str, logprobs: Mapping[str, Any] | None
    ) -> list[Event]:
        if not text:
            return []
        events: list[Event] = []
        if not self._open or self._open[-1].item["type"] != kind:
            events += [*self._close_all("completed"), *self._opened(kind)]
        current = self._open[-1]
        part = current.item["content"][0]
        part["text"] += text
        where = {"item_id": current.item["id"], "output_index": current.index, "content_index": 0, "delta": text}
        if kind == "reasoning":
            return [*events, self._event("response.reasoning_text.delta", **where)]
        found = (logprobs or {}).get("content") or []
        part["logprobs"] += found
        return [*events, self._event("response.output_text.delta", **where, logprobs=found)]

    def _call(self, call: Mapping[str, Any]) -> list[Event]:
        number, function = call.get("index", 0), call.get("function") or {}
        events: list[Event] = []
        current = next((each for each in self._open if each.call == number), None)
        if current is None:
            if self._open and self._open[-1].call is None:
                events += self._close_all("completed")
            item = {
                "type": "function_call",
                "id": self.new_id("fc_"),
                "call_id": call.get("id") or self.new_id("call_"),
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            events += self._added(item, number)
            current = self._open[-1]
        if text := function.get("arguments"):
            current.item["arguments"] += text
            where = {"item_id": current.item["id"], "output_index": current.index}
            events.append(self._event("response.function_call_arguments.delta", **where, delta=text))
        return events

    def _opened(self, kind: _TextKind) -> list[Event]:
        """Open an item with one empty part."""
        if kind == "reasoning":
            item: dict[str, Any] = {"type": kind, "id": self.new_id("rs_"), "summary": [], "content": []}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"type": kind, "id": self.new_id("msg_"), "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = self._added(item | {"status": "in_progress"}, None)
        current = self._open[-1]
        current.item["content"].append(part)
        where = {"item_id": current.item["id"], "output_index": current.index, "content_index": 0}
        return [*events, self._event("response.content_part.added", **where, part=copy.deepcopy(part))]

    def _added(self, item: dict[str, Any], call: int | None) -> list[Event]:
        self._open.append(_OpenItem(self._items, item, call))
        self._items += 1
        shown = copy.deepcopy(item)
        return [self._event("response.output_item.added", output_index=self._open[-1].index, item=shown)]

    def _close_all(self, last: Status) -> list[Event]:
        """Close the open items in order. `last`: the status of the last one; the others are complete."""
        events: list[Event] = []
        for each in self._open:
            each.item["status"] = last if each is self._open[-1] else "completed"
            where = {"item_id": each.item["id"], "output_index": each.index}
            if each.item["type"] == "function_call":
                done = {"name": each.item["name"], "arguments": each.item["arguments"]}
                events.append(self._event("response.function_call_arguments.done", **where, **done))
            else:
                events += self._closed_part(each.item, where | {"content_index": 0})
            events.append(self._event("response.output_item.done", output_index=each.index, item=each.item))
            self.response["output"].append(each.item)
        self._open = []
        return events

    def _closed_part(self, item: dict[str, Any], where: dict[str, Any]) -> list[Event]:
        part = item["content"][0]
        done: Event
        if item["type"] == "reasoning":
            done = self._event("response.reasoning_text.done", **where, text=part["text"])
        else:
            done = self._event("response.output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
        return [done, self._event("response.content_part.done", **where, part=part)]

    def _event(self, kind: str, **fields: Any) -> Event:
        number = self._number
        self._number += 1
        return {"type": kind, "sequence_number": number, **fields}


def usage(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion's usage as a response's."""
    read, made = found.get("prompt_tokens") or 0, found.get("completion_tokens") or 0
    cached = (found.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (found.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": read + made,
    }
