"""Reads an engine's stream of server-sent events, so that no error stays hidden in it.

Owns what counts as an error of a stream, and the events that are sent to the client after one. Does not know models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Chunks

logger = logging.getLogger(__name__)

_DONE = "[DONE]"
_FAILED = ("error", "abort")
"""Finish reasons of an answer that the engine gave up."""


async def checked_stream(chunks: Chunks, choices: int) -> Chunks:
    """Yield a stream's events one by one, unchanged.

    An error event, or an end without a finish reason for each of the `choices`, ends it with an `{"error": …}`.
    Closing it closes the response.
    """
    finished: set[int] = set()
    done = False
    try:
        async for chunk in chunks:
            if not isinstance(chunk, str):
                yield chunk
                return
            for data in _events(chunk):
                done = data == _DONE
                event = {} if done else _parsed(data)
                if event.get("error") is not None:
                    yield {"error": event["error"] if isinstance(event["error"], dict) else {}}
                    return
                reasons = {choice.get("index", 0): choice.get("finish_reason") for choice in _choices(event)}
                finished |= {index for index, reason in reasons.items() if reason is not None}
                if (done and len(finished) < choices) or any(reason in _FAILED for reason in reasons.values()):
                    break
                yield f"data: {data}\n\n"
            else:
                continue
            break
        if not done or len(finished) < choices:
            logger.error("a stream ended with %d of %d answers finished", len(finished), choices)
            yield {"error": {"message": "the engine ended the stream early", "code": 500}}
    finally:
        await chunks.aclose()


async def opening(chunks: Chunks) -> tuple[list[str], dict[str, Any] | None]:
    """Read up to the first event with a part of an answer. Returns the events, or the single response or error.

    An engine sends the role of an answer before it generates: an error after that can still become the status.
    """
    events: list[str] = []
    async for chunk in chunks:
        if not isinstance(chunk, str):
            return [], chunk
        events.append(chunk)
        if not _announces(chunk):
            return events, None
    return events, None if events else {"error": {"message": "the engine returned no response", "code": 500}}


def error_event(error: ApiError) -> str:
    """Return the last event of a stream that failed, in the shape of every error."""
    return f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"


async def sent_events(
    first: Sequence[str],
    chunks: Chunks,
    on_failure: Callable[[ApiError], None],
    last_event: Callable[[ApiError], str] = error_event,
) -> AsyncGenerator[str, None]:
    """Yield the events for the client. A failure becomes the last event."""
    failure = None
    try:
        for event in first:
            yield event
        async for chunk in chunks:
            if isinstance(chunk, str):
                yield chunk
            elif "error" in chunk:
                failure = errors.from_engine(chunk["error"])
                break
    except ApiError as error:
        failure = error
    except Exception:
        logger.exception("a stream broke off")
        failure = errors.internal_error()
    finally:
        await chunks.aclose()
    if failure is not None:
        on_failure(failure)
        yield last_event(failure)


def _events(chunk: str) -> Iterator[str]:
    for part in chunk.split("\n\n"):
        if data := part.strip().removeprefix("data:").strip():
            yield data


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        return {}  # a comment that keeps the connection open
    return event if isinstance(event, dict) else {}


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    return event.get("choices") or []


def _announces(chunk: str) -> bool:
    """Return whether an event has the role of an answer and nothing of the answer."""
    choices = [event for data in _events(chunk) for event in _choices(_parsed(data))]
    return bool(choices) and all(
        choice.get("finish_reason") is None
        and "delta" in choice
        and not any(value for name, value in choice["delta"].items() if name != "role")
        for choice in choices
    )
