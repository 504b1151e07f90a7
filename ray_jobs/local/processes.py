"""Processes of the local service: started in their own session, recognised later, stopped with their descendants.

Owns how the service's processes are recognised: a pid alone may have been reused. Does not know what they run.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ray_jobs.errors import MachineError

MARK = "KITAE_LOCAL_ID"
"""Environment variable that every process of a local service carries."""

_PROC = Path("/proc")
TERM_PATIENCE_S = 8.0
_KILL_PATIENCE_S = 10.0
# Below the range that the kernel gives to outgoing connections, so that none of them takes a chosen port.
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Process:
    """A process, identified by its pid and its start: the boot id and the ticks since then."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found.started == self.started and found.state != "Z"


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    session: int
    started: str


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log: Path, directory: Path) -> Process:
    """Start a program that outlives this one: own session, no terminal, output to `log`. Raises MachineError."""
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise MachineError(f"cannot start {command[0]}: {error.strerror}") from error
    _children.append(child)
    found = _stat(child.pid)
    assert found is not None  # a child of this process, not reaped yet
    return Process(child.pid, found.started)


def stop(roots: Iterable[Process], mark: str) -> int:
    """Stop these processes, their descendants, and every process with the mark: TERM, then KILL. Returns their number.

    Raises MachineError naming those that do not end.
    """
    seen = set(family(roots, mark))
    for number, patience_s in ((signal.SIGTERM, TERM_PATIENCE_S), (signal.SIGKILL, _KILL_PATIENCE_S)):
        # Keep those seen before: an orphan has lost the parent by which it is recognised.
        seen |= set(family([process for process in seen if process.alive], mark))
        left = [process for process in seen if process.alive]
        for process in left:
            _signal(process, number)
        _wait_gone(left, patience_s)
    left = [process for process in seen if process.alive]
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise MachineError(f"{len(left)} process(es) do not end, not even by SIGKILL: {pids}; see `ps -o pid,stat,cmd`")
    return len(seen)


def free_ports(count: int, *, also_above: int = 0) -> list[int]:
    """Free ports of 127.0.0.1; `also_above`: the port higher by this number must be free too."""
    found: list[int] = []
    candidates = [port for port in _PORTS if port + also_above in _PORTS]
    random.shuffle(candidates)
    for port in candidates:
        if all(is_free(each) for each in {port, port + also_above}):
            found.append(port)
        if len(found) == count:
            return found
    raise MachineError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}: stop what uses them")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port; None if this user may not see it."""

    process: Process | None
    name: str | None

    def __str__(self) -> str:
        return "another program" if self.process is None else f"{self.name} (pid {self.process.pid})"


def holder_of(port: int) -> Holder:
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                inodes.add(f"socket:[{fields[9]}]")
    for pid in _pids():
        try:
            if any(os.readlink(link) in inodes for link in (_PROC / str(pid) / "fd").iterdir()):
                name = (_PROC / str(pid) / "comm").read_text().strip()
                found = _stat(pid)
                return Holder(None, None) if found is None else Holder(Process(pid, found.started), name)
        except OSError:  # ended, or not readable by this user
            continue
    return Holder(None, None)


def family(roots: Iterable[Process], mark: str) -> list[Process]:
    """The roots, their descendants, all processes in sessions that they lead, and every process with the mark."""
    stats = {pid: found for pid in _pids() if (found := _stat(pid)) is not None and found.state != "Z"}
    ours = {process.pid for process in roots if process.pid in stats and stats[process.pid].started == process.started}
    wanted = f"{MARK}={mark}".encode()
    ours |= {pid for pid in stats if wanted in _environment(pid)}
    ours.discard(os.getpid())
    while True:
        more = {pid for pid, found in stats.items() if found.parent in ours or found.session in ours} - ours
        if not more:
            return [Process(pid, stats[pid].started) for pid in sorted(ours)]
        ours |= more


def _signal(process: Process, number: signal.Signals) -> None:
    if process.alive:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise MachineError(f"may not stop process {process.pid}: run this as the user who started it") from error


_children: list[subprocess.Popen[bytes]] = []


def _wait_gone(processes: Sequence[Process], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while any(process.alive for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in _children:
        child.poll()  # reap children, so that no zombie keeps the pid


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return []


@cache
def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses: parse after the last one.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), session=int(fields[3]), started=f"{_boot_id()}+{fields[19]}")
