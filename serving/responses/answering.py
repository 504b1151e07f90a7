"""Answers a request of the Responses API by a chat completion, as a whole or as a stream of events.

Owns what a response continues, how its input is shortened to fit a model, and that it is stored before its client
learns its end. Does not know HTTP paths, the shape of requests (`request`) nor of events (`events`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from serving.access.auth import Caller
from serving.http import errors
from serving.http.errors import ApiError, bad_request
from serving.inference.backends import Chunks, Route
from serving.inference.generation import Generator
from serving.inference.generation_request import parse_chat
from serving.inference.streams import opening
from serving.responses import objects
from serving.responses.events import ResponseAnswer, as_text
from serving.responses.request import ResponseRequest
from serving.stored.answers import StoredAnswers

MAX_CONVERSATION_BYTES = 4 * 2**20
_MAX_TRIES = 24
"""Tries of `truncation: auto`, each without the oldest quarter of the turns that the one before had."""


async def earlier_items(stored: StoredAnswers, team: str, identifier: str | None) -> list[dict[str, Any]]:
    """Return the items that a request continues. Raises ApiError 400 for an unknown response."""
    if identifier is None:
        return []
    found = await asyncio.to_thread(stored.find, team, "responses", identifier)
    if found is None:
        message = f"the response {identifier[:64]!r} is not stored: send the conversation as input"
        raise bad_request(message, param="previous_response_id", code="previous_response_not_found")
    items = objects.conversation_of(found)
    if (size := len(json.dumps(items))) > MAX_CONVERSATION_BYTES:
        message = f"the conversation has {size} bytes, over {MAX_CONVERSATION_BYTES}: send what is needed as input"
        raise bad_request(message, param="previous_response_id", code="conversation_too_long")
    return items


@dataclass
class StartedAnswer:
    """An answer whose first piece exists."""

    route: Route
    chunks: Chunks
    first: list[str]
    """The first events of a stream."""
    whole: dict[str, Any] | None
    """The chat completion, if it is not a stream."""


async def started_answer(generator: Generator, request: Request, asked: ResponseRequest) -> StartedAnswer:
    """Start the chat completion of a request; with `truncation: auto`, without the oldest turns until it fits.

    Raises ApiError that names the response's fields.
    """
    route: Route | None = None
    for _ in range(_MAX_TRIES):
        try:
            chat = parse_chat(asked.chat)
            if route is None:
                route = await generator.admit(request, chat)
            chunks = generator.start(request, route, "chat", chat)
            first, whole = await opening(chunks)
            if whole is None:
                return StartedAnswer(route, chunks, first, None)
            async for _ in chunks:
                pass  # exhausts the iterator; closing it earlier would cancel the request
            if "error" in whole:
                raise errors.from_engine(whole["error"])
            return StartedAnswer(route, chunks, [], whole["response"])
        except ApiError as error:
            shorter = asked.shortened() if asked.truncates and error.code == "context_length_exceeded" else None
            if shorter is None:
                raise asked.renamed(error) from error
            asked = shorter
    raise bad_request("input is too long for the model", param="input", code="context_length_exceeded")


@dataclass
class KeptResponse:
    """Stores a response once it is answered."""

    stored: StoredAnswers
    caller: Caller
    asked: ResponseRequest
    answer: ResponseAnswer

    async def store(self) -> None:
        """Store it, before the client learns its end and continues it. One that cannot be stored says so."""
        response = self.answer.response
        if response["store"]:
            now_s = self.stored.store.now_s()
            final = response | ({"completed_at": int(now_s)} if response["status"] == "completed" else {})
            record = objects.record_of(final, self.asked, self.answer.new_id, self.caller)
            response["store"] = await self.stored.kept("responses", record)


async def events_of(
    started: StartedAnswer, answer: ResponseAnswer, kept: KeptResponse
) -> AsyncGenerator[dict[str, Any] | str, None]:
    """Yield the events of a response; an error as the engine gave it."""
    for event in answer.begin():
        yield as_text(event)
    pieces = _pieces(started)
    try:
        async for piece in pieces:
            if "error" in piece:
                yield piece
                return
            for event in answer.add(piece):
                yield as_text(event)
        for event in answer.end_items():
            yield as_text(event)
        await kept.store()
        yield as_text(answer.end(kept.stored.store.now_s()))
    finally:
        await pieces.aclose()


async def _pieces(started: StartedAnswer) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a chat completion as objects, or the engine's error."""
    try:
        for event in started.first:
            if (piece := _parsed(event)) is not None:
                yield piece
        async for chunk in started.chunks:
            found = chunk if isinstance(chunk, dict) else _parsed(chunk)
            if found is not None:
                yield found
    finally:
        await started.chunks.aclose()


def _parsed(chunk: str) -> dict[str, Any] | None:
    try:
        found = json.loads(chunk.removeprefix("data:"))
    except ValueError:
        return None  # a comment, or [DONE]
    return found if isinstance(found, dict) else None
