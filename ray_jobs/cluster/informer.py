"""What a cluster has of one kind in one namespace, kept up to date by a list and then a watch.

Owns the version that the watch goes on from. Whatever breaks (the connection, the API's restart, a version that is no
longer kept) ends in another watch or another list; nothing is ever taken for gone because nobody answered.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_jobs.cluster.client import Cluster, Object
from ray_jobs.cluster.kinds import Kind
from ray_jobs.errors import ClusterError, Expired

logger = logging.getLogger(__name__)

_WATCH_S = 45.0
"""A watch is ended and begun anew so often: a connection that is dead without knowing it is noticed by then."""
BELIEVED_S = 90.0
"""After so long without an answer what is known is not told any more."""
_LONGEST_WAIT_S = 30.0


@dataclass
class Mirror:
    """See the module. `follow` runs in a thread of its own; the rest may be called from any."""

    cluster: Cluster
    kind: Kind
    namespace: str | None
    labels: Mapping[str, str] | None = None
    watch_s: float = _WATCH_S
    _there: dict[str, Object] = field(default_factory=dict)
    _version: str | None = None
    _heard_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def items(self) -> list[Object] | None:
        """Every object, as told a moment ago. None: nothing was heard for too long, or not yet."""
        with self._lock:
            if time.monotonic() - self._heard_at > BELIEVED_S:
                return None
            return list(self._there.values())

    def list(self) -> list[Object]:
        """Every object as it is now. ClusterError."""
        return self.cluster.list(self.kind, self.namespace, labels=self.labels)

    def step(self) -> None:
        """One list, or one watch to its end. ClusterError; what was heard before it stays, and is gone on from."""
        if self._version is None:
            listing = self.cluster.listing(self.kind, self.namespace, labels=self.labels)
            with self._lock:
                self._there = {found["metadata"]["uid"]: found for found in listing.items}
                self._version, self._heard_at = listing.version, time.monotonic()
            return
        try:
            watch = self.cluster.watch(
                self.kind, self.namespace, labels=self.labels, since=self._version, timeout_s=self.watch_s
            )
            for event in watch:
                with self._lock:
                    if event.type == "DELETED":
                        self._there.pop(event.object["metadata"]["uid"], None)
                    elif event.type != "BOOKMARK":
                        self._there[event.object["metadata"]["uid"]] = event.object
                    self._version, self._heard_at = event.version, time.monotonic()
        except Expired:
            self._version = None  # what is known stays until the next list
            raise
        with self._lock:
            self._heard_at = time.monotonic()

    def follow(self, stop: threading.Event) -> None:
        """Step until told to stop."""
        failures = 0
        while not stop.is_set():
            try:
                self.step()
                failures = 0
            except Expired as error:
                logger.info("%s; listed again", error)
            except ClusterError as error:
                failures += 1
                logger.warning("%s in %s cannot be watched: %s", self.kind.resource, self.namespace or "all", error)
                stop.wait(random.uniform(0.5, 1.0) * min(2.0**failures, _LONGEST_WAIT_S))
            except Exception:  # an object that nobody foresaw must not end the watching
                failures += 1
                logger.exception("%s in %s cannot be watched", self.kind.resource, self.namespace or "all")
                self._version = None
                stop.wait(_LONGEST_WAIT_S)
