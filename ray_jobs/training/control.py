"""Requests to a running training, polled from the store: to stop, or to save a checkpoint.

Owns the polling thread and the answer to a checkpoint request. Does not know the loop.
"""

from __future__ import annotations

import contextlib
import threading

from ray_jobs import jobs
from ray_jobs.errors import KitaeError
from ray_jobs.jobs import checkpoint_request
from ray_jobs.storage import Workspace


class TrainingControl:
    """Polls the store for requests to one training.

    It stops when its job is cancelled, paused or taken over by a newer attempt, or when `stop_key` exists. It saves a
    checkpoint for each checkpoint request; only the worker with `answers` does, which is the first.
    """

    def __init__(
        self, store: Workspace, job_id: str, attempt: int, stop_key: str, *, answers: bool, poll_s: float = 2.0
    ) -> None:
        self._store, self._job_id, self._attempt, self._stop_key = store, job_id, attempt, stop_key
        self._answers, self._poll_s = answers, poll_s
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._received = 0
        self._wanted: int | None = None
        self._saving: tuple[int, int] | None = None
        """(number of the request, steps taken when it was obeyed)."""
        threading.Thread(target=self._poll, daemon=True).start()

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def should_save(self, step: int) -> bool:
        """Whether to save after the next step; True once for each request."""
        number, self._wanted = self._wanted, None
        if number is not None:
            self._saving = (number, step)
        return number is not None

    def committed(self, step: int) -> None:
        """Answer the request that this checkpoint was saved for. An earlier checkpoint may be committed after it."""
        if self._saving is None or step <= self._saving[1]:
            return
        (number, _), self._saving = self._saving, None
        with contextlib.suppress(KitaeError):  # the caller stops waiting after a while; the checkpoint is committed
            checkpoint_request.answer(self._store, self._job_id, number, step)
            saved = f"asked to save, because its machines are taken away: checkpoint of step {step} is committed"
            jobs.note(self._store, self._job_id, "warning", saved)

    def close(self) -> None:
        """End the polling."""
        self._closed.set()

    def _poll(self) -> None:
        while not self._stop.is_set() and not self._closed.wait(self._poll_s):
            with contextlib.suppress(KitaeError):  # a store that is unreachable for a moment stops no training
                record = jobs.load(self._store, self._job_id)
                gone = record.status in ("cancelled", "paused") or record.attempt != self._attempt
                if gone or self._store.exists(self._stop_key):
                    self._stop.set()
                found = checkpoint_request.current(self._store, self._job_id) if self._answers else None
                if found is None or found.attempt != self._attempt or found.step is not None:
                    continue
                if found.number > self._received:
                    checkpoint_request.acknowledge(self._store, self._job_id, found.number)
                    self._received = self._wanted = found.number
