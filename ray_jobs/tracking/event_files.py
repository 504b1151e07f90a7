"""TensorBoard's event files of a training, in the store.

Each attempt writes a file of its own. Its `purge_step` makes TensorBoard ignore what earlier files hold of the steps
that the attempt repeats.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.storage import Store
from ray_jobs.tracking import files
from ray_jobs.tracking.tracker import End, Point

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary


class EventWriter:
    """Writes one event file at once. tensorboardX's SummaryWriter writes in the background, and its `flush` does not
    wait for what is queued there."""

    def __init__(self, directory: str | Path, *, suffix: str, purge_step: int | None = None) -> None:
        """`purge_step`: first step that TensorBoard ignores in earlier files. None: ignore none."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._file = EventsWriter(str(Path(directory) / "events"), suffix)
        self._event = Event
        self._file.write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add_scalar(self, tag: str, value: float, global_step: int, walltime: float | None = None) -> None:
        from tensorboardX.summary import scalar

        self.add_summary(scalar(tag, value), global_step, walltime)

    def add_summary(self, summary: Summary, global_step: int | None = None, walltime: float | None = None) -> None:
        event = self._event(wall_time=time.time() if walltime is None else walltime, summary=summary)
        if global_step is not None:
            event.step = global_step
        self._file.write_event(event)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class EventFiles:
    """The event file of one attempt."""

    name = "TensorBoard"

    def __init__(self, store: Store, job_id: str, attempt: int, params: Mapping[str, Any]) -> None:
        self._store, self._job_id, self._attempt, self._params = store, job_id, attempt, params
        self._began_at_step = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._writer: EventWriter | None = None

    def open(self, began_at_step: int) -> int:
        self._began_at_step = began_at_step
        return 0

    def write(self, points: Sequence[Point]) -> None:
        if self._writer is None:
            self._writer = self._new_writer()
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.step, point.at_ms / 1000)

    def flush(self) -> None:
        if self._writer is not None and self._scratch is not None:
            self._writer.flush()
            files.upload(self._store, Path(self._scratch.name), "*", self._job_id, "tensorboard", files.TRAINING)

    def close(self, end: End | None) -> None:
        if self._writer is not None and self._scratch is not None:
            self._writer.close()
            self._scratch.cleanup()

    def _new_writer(self) -> EventWriter:
        from tensorboardX.summary import text

        self._scratch = tempfile.TemporaryDirectory(prefix="kitae-tensorboard-")
        purge_step = self._began_at_step + 1 if self._attempt > 1 else None
        writer = EventWriter(self._scratch.name, suffix=f".attempt-{self._attempt}", purge_step=purge_step)
        table = "".join(f"|{name}|{value}|\n" for name, value in sorted(self._params.items()))
        writer.add_summary(text("params", f"|name|value|\n|---|---|\n{table}"), 0)
        return writer
