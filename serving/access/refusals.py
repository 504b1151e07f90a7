"""Spaces out the refusals of a key, so that a client that ignores them costs the others little.

Owns how fast a key is refused: at once as long as it is refused seldom, then at a steady rate. A refusal passes the
proxy, this process and its checks like an answer; a client that sends its next request as soon as it is refused would
otherwise take the processor from the engines. Does not know why a request is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

BURST = 50
"""Refusals of a key that are sent at once, if it was refused seldom before."""
MAX_WAIT_S = 3.0
"""No refusal waits longer, so that a client with many connections holds few of the process's places."""
_FIRST_SWEEP_KEYS = 1024


@dataclass
class RefusalPace:
    """The latest refusals of each key in one process."""

    per_s: float
    """The steady rate of a key's refusals."""
    clock: Callable[[], float] = time.monotonic
    _next_s: dict[str, float] = field(default_factory=dict)
    """Key → time of its next refusal at the steady rate (the generic cell rate algorithm)."""
    _sweep_at_keys: int = _FIRST_SWEEP_KEYS

    async def wait(self, key_id: str) -> None:
        """Wait until one more request of this key is to be refused."""
        wait_s = self.wait_s(key_id)
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def wait_s(self, key_id: str) -> float:
        """Count one more refusal of a key, and return the seconds by which to delay it."""
        now_s = self.clock()
        if len(self._next_s) >= self._sweep_at_keys:
            self._next_s = {key: next_s for key, next_s in self._next_s.items() if next_s > now_s}
            self._sweep_at_keys = max(_FIRST_SWEEP_KEYS, 2 * len(self._next_s))
        latest_s = now_s + BURST / self.per_s + MAX_WAIT_S
        next_s = min(max(self._next_s.get(key_id, now_s), now_s) + 1 / self.per_s, latest_s)
        self._next_s[key_id] = next_s
        return max(0.0, next_s - BURST / self.per_s - now_s)
