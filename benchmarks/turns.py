"""Turn-taking: several sides train the same steps, each in its own processes, and only one computes at a time.

All sides start and wait. Then each runs step 0 in turn, then each step 1, and so on: the measurements of a pair are
seconds apart, and other load on the machine affects all sides alike. The umpire keeps the time; a side only reports
that it is ready for its next step. Does not know what a step is.
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
from typing import Protocol, TextIO

from ray_jobs.errors import MachineError

_START_PATIENCE_S = 240.0
_STEP_PATIENCE_S = 300.0


class Contender(Protocol):
    """A side that is running."""

    def failure(self) -> str | None:
        """Reason of a failure; None while the side runs or after a normal end."""

    def join(self) -> None:
        """Wait until the side has ended."""


@dataclass(frozen=True)
class Measure:
    """Measurements of one side for each step; the first step is a warm-up."""

    start_s: float
    """Seconds from the start until all its processes are ready for their first step: imports, model, connections."""
    step_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """Processor seconds of its processes in each step."""
    losses: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    """Peak resident memory of each of its processes."""
    others_share: float
    """Share of the machine's processor time used by other processes during its steps."""

    @classmethod
    def of(cls, document: Mapping[str, object]) -> Measure:
        """Read measurements from a result file."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items()})  # type: ignore[arg-type]  # its own JSON


class Turn:
    """A process's connection to the umpire."""

    def __init__(self, port: int, side: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._say({"side": side})

    def next(self, loss: float | None) -> None:
        """Report the last step's loss and wait for the next turn."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._say({"loss": loss, "cpu_s": time.process_time(), "peak_memory_bytes": peak})
        if not self._file.readline():
            raise EOFError("the umpire has closed the connection")

    def _say(self, message: Mapping[str, object]) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


@dataclass
class _Seat:
    connection: socket.socket
    file: TextIO
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    loss: float | None = None

    def receive(self) -> None:
        line = self.file.readline()
        if not line:
            raise EOFError
        said = json.loads(line)
        self.cpu_s, self.peak_memory_bytes, self.loss = said["cpu_s"], said["peak_memory_bytes"], said["loss"]

    def go(self) -> None:
        self.file.write("go\n")
        self.file.flush()


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
        """Run one step and measure it."""
        busy_s, cpu_s, started_s = busy_seconds(), sum(seat.cpu_s for seat in self.seats), time.perf_counter()
        for seat in self.seats:
            seat.go()
        for seat in self.seats:
            seat.receive()
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
    """Context manager that starts sides, gives turns and keeps the time."""

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
            assert json.loads(seat.file.readline())["side"] == name
            seats.append(seat)
        for seat in seats:
            seat.receive()
        self._sides[name] = _Side(contender, seats, time.perf_counter() - started_s)

    def run_steps(self, steps: int, show: Callable[[int, str, float], None]) -> dict[str, Measure]:
        """Run the steps in turn, the warm-up step first; calls `show` with (steps done, side, seconds). Each side runs
        two more than `steps`: the warm-up, and the last, whose end (an evaluation, a checkpoint) is not measured."""
        for done in range(steps + 1):
            for name, side in self._sides.items():
                try:
                    side.step()
                except (EOFError, OSError) as error:
                    raise MachineError(f"{name} failed: {side.contender.failure() or error}") from error
                show(done, name, side.step_seconds[-1])
        measures = {name: side.measure() for name, side in self._sides.items()}
        for side in self._sides.values():
            for seat in side.seats:
                seat.go()
            side.contender.join()
        return measures


def busy_seconds() -> float:
    """Processor seconds of all processes since the machine started; 0 if the system does not report them."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
