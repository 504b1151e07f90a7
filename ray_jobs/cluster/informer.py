"""An informer: a local copy of the objects of one kind, kept up to date by a list and then watches.

Owns the resourceVersion from which the next watch starts. A broken connection, a restart of the API server or an
expired version leads to another watch or another list. An object is removed only when the server reports so.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_jobs.cluster.client import Cluster
from ray_jobs.cluster.kinds import Kind, Object
from ray_jobs.errors import ClusterError, Expired

logger = logging.getLogger(__name__)


@dataclass
class Informer:
    """See the module. `follow` runs in a thread of its own; the other methods may be called from any thread."""

    cluster: Cluster
    kind: Kind
    namespace: str | None
    labels: Mapping[str, str] | None = None
    watch_s: float = 45.0
    """Length of a watch: a connection that died silently is noticed after this time."""
    fresh_s: float = 90.0
    """Seconds without an answer after which the copy is no longer given out."""
    longest_wait_s: float = 30.0
    """Longest pause after a failure."""
    _objects: dict[str, Object] = field(default_factory=dict)
    """By uid."""
    _version: str | None = None
    _answered_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def items(self) -> list[Object] | None:
        """Every object in the copy. None: no answer yet, or none for `fresh_s`."""
        with self._lock:
            if time.monotonic() - self._answered_at > self.fresh_s:
                return None
            return list(self._objects.values())

    def step(self) -> None:
        """One list, or one watch until it ends. ClusterError; events received before it are kept."""
        if self._version is None:
            listing = self.cluster.listing(self.kind, self.namespace, labels=self.labels)
            with self._lock:
                self._objects = {found["metadata"]["uid"]: found for found in listing.items}
                self._version, self._answered_at = listing.version, time.monotonic()
            return
        try:
            watch = self.cluster.watch(
                self.kind, self.namespace, labels=self.labels, since=self._version, timeout_s=self.watch_s
            )
            for event in watch:
                with self._lock:
                    if event.type == "DELETED":
                        self._objects.pop(event.object["metadata"]["uid"], None)
                    elif event.type != "BOOKMARK":
                        self._objects[event.object["metadata"]["uid"]] = event.object
                    self._version, self._answered_at = event.version, time.monotonic()
        except Expired:
            self._version = None  # the copy stays until the next list
            raise
        with self._lock:
            self._answered_at = time.monotonic()

    def follow(self, stop: threading.Event | None = None) -> None:
        """Step until `stop` is set; without it, until the process ends."""
        stop, failures = stop or threading.Event(), 0
        while not stop.is_set():
            try:
                self.step()
                failures = 0
            except Expired as error:
                logger.info("%s; listing again", error)
            except ClusterError as error:
                failures += 1
                logger.warning("cannot watch %s in %s: %s", self.kind.resource, self.namespace or "all", error)
                stop.wait(random.uniform(0.5, 1.0) * min(2.0**failures, self.longest_wait_s))
            except Exception:  # a malformed object must not end the thread
                failures += 1
                logger.exception("cannot watch %s in %s", self.kind.resource, self.namespace or "all")
                self._version = None
                stop.wait(self.longest_wait_s)
