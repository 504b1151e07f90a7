"""Reads a request's body before the request takes a place, so that slow senders hold no place.

Owns the deadline of a body and how many bodies of one key may arrive at once, which bounds what is buffered. Does not
know the longest body of a path (`auth`). Uploads are not buffered: they have a deadline for each piece.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Message, Receive

from serving.http.errors import ApiError


@dataclass
class BodyReader:
    """The bodies that arrive at one process. Bound to one event loop."""

    max_arriving: int
    """Most bodies of one key that arrive at the same time."""
    deadline_s: float = 30.0
    """Seconds for a whole body, and for each piece of an upload."""
    _arriving: Counter[str] = field(default_factory=Counter)

    async def whole(self, receive: Receive, key_id: str) -> Receive:
        """Read a body to its end and return a `receive` that repeats it.

        Raises ApiError 408 if it takes longer than the deadline, 429 if too many bodies of the key already arrive.
        """
        pieces: list[bytes] = []
        with self._counted(key_id):
            try:
                async with asyncio.timeout(self.deadline_s):
                    while (message := await receive())["type"] == "http.request":
                        pieces.append(message.get("body", b""))
                        if not message.get("more_body", False):
                            message = {"type": "http.request", "body": b"".join(pieces)}
                            break
            except TimeoutError:
                raise _too_slow(self.deadline_s) from None
        return _then(message, receive)

    def pieces(self, receive: Receive) -> Receive:
        """Return a `receive` that raises ApiError 408 if a piece of an upload takes longer than the deadline."""
        complete = False

        async def timely() -> Message:
            nonlocal complete
            if complete:  # waits for the client's disconnect, for as long as the response takes
                return await receive()
            try:
                async with asyncio.timeout(self.deadline_s):
                    message = await receive()
            except TimeoutError:
                raise _too_slow(self.deadline_s) from None
            complete = not message.get("more_body", False)
            return message

        return timely

    @contextmanager
    def _counted(self, key_id: str) -> Iterator[None]:
        if self._arriving[key_id] >= self.max_arriving:
            message = f"{self._arriving[key_id]} requests of this key are still being sent, its maximum: try again"
            raise ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})
        self._arriving[key_id] += 1
        try:
            yield
        finally:
            self._arriving[key_id] -= 1
            if not self._arriving[key_id]:
                del self._arriving[key_id]


def _then(message: Message, receive: Receive) -> Receive:
    first: list[Message] = [message]

    async def repeated() -> Message:
        return first.pop() if first else await receive()

    return repeated


def _too_slow(deadline_s: float) -> ApiError:
    message = f"the request's body did not arrive within {deadline_s:g} s: send it again"
    return ApiError(408, message, code="request_timeout", headers={"Connection": "close"})
