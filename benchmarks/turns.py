"""Taking turns: several sides train the same steps, each in processes of its own, and only one computes at a time.

All sides start, get ready and wait. Then each does step 0 in turn, then each step 1, and so on: a pair of measurements
is seconds apart, and what else the machine does in these minutes hits all sides alike. The clock is here, with the
umpire; a side says only that it is ready for its next step. Does not know what a step is.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ray_jobs.errors import MachineError

_START_PATIENCE_S = 240.0
_STEP_PATIENCE_S = 300.0


class Contender(Protocol):
    """A side that is running."""

    def failure(self) -> str | None:
        """Why it ended badly; None while it runs or where it ended well."""

    def join(self) -> None:
        """Wait for its end."""


@dataclass(frozen=True)
class Measure:
    """One side, step by step; the first step warms up."""

    start_s: float
    """From its start to all its processes being ready for their first step: imports, model, connections."""
    step_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """Processor time of its processes in each step."""
    losses: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    """Most resident memory of each of its processes."""
    others_share: float
    """Share of the machine's processor time that went elsewhere during its steps."""

    @classmethod
    def of(cls, document: Mapping[str, object]) -> Measure:
        """From a result file."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items()})  # type: ignore[arg-type]


class Turn:
    """A process's seat at the umpire's table."""

    def __init__(self, port: int, side: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._say({"side": side})

    def next(self, loss: float | None) -> None:
        """Say what the last step's loss was, and wait for the next turn."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._say({"loss": loss, "cpu_s": time.process_time(), "peak_memory_bytes": peak})
        if not self._file.readline():
            raise EOFError("the umpire has gone")

    def _say(self, message: Mapping[str, object]) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


@dataclass
class _Seat:
    connection: socket.socket
    file: object
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    loss: float | None = None

    def hear(self) -> None:
        line = self.file.readline()  # type: ignore[attr-defined]  # what makefile returns has no public name
        if not line:
            raise EOFError
        said = json.loads(line)
        self.cpu_s, self.peak_memory_bytes, self.loss = said["cpu_s"], said["peak_memory_bytes"], said["loss"]

    def go(self) -> None:
        self.file.write("go\n")  # type: ignore[attr-defined]
        self.file.flush()  # type: ignore[attr-defined]


@dataclass
class _Side:
    contender: Contender
    seats: list[_Seat]
    start_s: float
    step_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    others_s: float = 0.0

    def step(self) -> None:
        """Give the turn, and wait until it is given back."""
        busy_s, cpu_s, started_s = busy_seconds(), sum(seat.cpu_s for seat in self.seats), time.perf_counter()
        for seat in self.seats:
            seat.go()
        for seat in self.seats:
            seat.hear()
        self.step_seconds.append(time.perf_counter() - started_s)
        self.cpu_seconds.append(sum(seat.cpu_s for seat in self.seats) - cpu_s)
        self.others_s += max(0.0, busy_seconds() - busy_s - self.cpu_seconds[-1])
        self.losses.append(next((seat.loss for seat in self.seats if seat.loss is not None), float("nan")))

    def measure(self) -> Measure:
        return Measure(
            self.start_s,
            tuple(self.step_seconds),
            tuple(self.cpu_seconds),
            tuple(self.losses),
            tuple(seat.peak_memory_bytes for seat in self.seats),
            self.others_s / (sum(self.step_seconds) * (os.cpu_count() or 1)),
        )


class Umpire:
    """Starts sides, gives turns and keeps the time. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(1.0)
        self._sides: dict[str, _Side] = {}
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Umpire:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            for seat in side.seats:
                with contextlib.suppress(OSError):
                    seat.connection.close()
        self._listener.close()

    def admit(self, name: str, processes: int, start: Callable[[], Contender]) -> None:
        """Start a side and wait until all its processes are ready."""
        started_s = time.perf_counter()
        contender = start()
        seats: list[_Seat] = []
        while len(seats) < processes:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                why = contender.failure()
                if why is None and time.perf_counter() - started_s > _START_PATIENCE_S:
                    why = f"not ready within {_START_PATIENCE_S:.0f} s"
                if why is not None:
                    raise MachineError(f"{name} did not start: {why}") from None
                continue
            connection.settimeout(_STEP_PATIENCE_S)
            seat = _Seat(connection, connection.makefile("rw", encoding="utf-8"))
            assert json.loads(seat.file.readline())["side"] == name  # type: ignore[attr-defined]
            seats.append(seat)
        for seat in seats:
            seat.hear()
        self._sides[name] = _Side(contender, seats, time.perf_counter() - started_s)

    def play(self, steps: int, show: Callable[[int, str, float], None]) -> dict[str, Measure]:
        """Steps in turn, the warm-up step first; `show` hears (steps done, side, seconds). Each side was set to do two
        more than `steps`: the first, which warms up, and the last, whose end (an evaluation, a checkpoint) is not
        measured."""
        for done in range(steps + 1):
            for name, side in self._sides.items():
                try:
                    side.step()
                except (EOFError, OSError) as error:
                    raise MachineError(f"{name} broke off: {side.contender.failure() or error}") from error
                show(done, name, side.step_seconds[-1])
        measures = {name: side.measure() for name, side in self._sides.items()}
        for side in self._sides.values():
            for seat in side.seats:
                seat.go()
            side.contender.join()
        return measures


def busy_seconds() -> float:
    """Processor time of everything on this machine since it started; 0 where the system does not say."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
