"""TensorBoard's event files of a run, in the store.

Each attempt writes files of its own, of about `FILE_BYTES`, so that what is uploaded is not sent again for long. A
file's `purge_step` makes TensorBoard ignore what earlier files hold of the steps that it repeats.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.tracker import End, Point, Run

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

FILE_BYTES = 4 * 2**20
"""Size at which a file is complete and another one begins."""


class EventWriter:
    """Writes one event file at once. tensorboardX's SummaryWriter writes in the background, and its `flush` does not
    wait for what is queued there."""

    def __init__(self, directory: str | Path, *, purge_step: int) -> None:
        """`purge_step`: first step that TensorBoard ignores in earlier files."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # TensorBoard reads files by name; two may be of one second.
        self._file = EventsWriter(str(Path(directory) / "events"), f".{time.time_ns()}")
        self._event = Event
        self._file.write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
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
    """The event files of one run."""

    name = "TensorBoard"

    def __init__(self, store: Workspace, run: Run) -> None:
        self._store, self._run = store, run
        self._last_step = 0
        """Last step before the next file."""
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._writer: EventWriter | None = None

    def open(self, began_at_step: int) -> int:
        self._last_step = began_at_step
        return 0

    def write(self, points: Sequence[Point]) -> None:
        if self._writer is None:
            self._writer = self._new_writer()
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.step, point.at_ms / 1000)
            self._last_step = point.step

    def flush(self) -> None:
        if self._writer is not None and self._scratch is not None:
            self._writer.flush()
            directory = Path(self._scratch.name)
            files.upload(self._store, directory, "*", self._run.job_id, "tensorboard", self._run.path)
            if sum(path.stat().st_size for path in directory.iterdir()) >= FILE_BYTES:
                self._end_file()

    def close(self, end: End | None) -> None:
        self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None and self._scratch is not None:
            self._writer.close()
            self._scratch.cleanup()
            self._writer = None

    def _new_writer(self) -> EventWriter:
        from tensorboardX.summary import text

        self._scratch = tempfile.TemporaryDirectory(prefix="kitae-tensorboard-")
        writer = EventWriter(self._scratch.name, purge_step=self._last_step + 1)
        table = "".join(f"|{name}|{value}|\n" for name, value in sorted(self._run.params.items()))
        writer.add_summary(text("params", f"|name|value|\n|---|---|\n{table}"), 0)
        return writer
