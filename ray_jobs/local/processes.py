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
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from ray_jobs.errors import MachineError

MARK = "KITAE_LOCAL_ID"
"""Environment variable that every process of a local service carries."""

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

    def __str__(self) -> str:
        found = _stat(self.pid)
        return f"{'a process' if found is None else found.name} (pid {self.pid})"


@dataclass(frozen=True)
class _Stat:
    name: str
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


def stop(roots: Iterable[Process | None], mark: str) -> int:
    """Stop these processes, their descendants, and every process with the mark: TERM, then KILL. Returns their number.

    Raises MachineError naming those that do not end.
    """
    seen = set(family(roots, mark))
    for number, patience_s in ((signal.SIGTERM, TERM_PATIENCE_S), (signal.SIGKILL, _KILL_PATIENCE_S)):
        # Keep those seen before: an orphan has lost the parent by which it is recognised.
        seen |= set(family([process for process in seen if process.alive], mark))
        left = [process for process in seen if process.alive]
        for process in left:
            try:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            except PermissionError as error:
                raise MachineError(f"may not stop process {process.pid}: run this as its user") from error
        _wait_gone(left, patience_s)
    left = [process for process in seen if process.alive]
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise MachineError(f"{len(left)} process(es) do not end, not even by SIGKILL: {pids}; see `ps -o pid,stat,cmd`")
    return len(seen)


def free_ports(count: int, *, also_above: int = 0) -> list[int]:
    """Free ports of 127.0.0.1; `also_above`: the port higher by this number must be free too."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if port + also_above in _PORTS and is_free(port) and is_free(port + also_above):
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


def holder_of(port: int) -> Process | None:
    """The process that listens on a port; None if there is none that this user may see."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            found = _stat(connection.pid)
            return None if found is None else Process(connection.pid, found.started)
    return None


def family(roots: Iterable[Process | None], mark: str) -> list[Process]:
    """The roots, their descendants, all processes in sessions that they lead, and every process with the mark."""
    stats = {pid: found for pid in psutil.pids() if (found := _stat(pid)) is not None and found.state != "Z"}
    ours = {process.pid for process in roots if process is not None and process.alive}
    ours |= {pid for pid in stats if _has_mark(pid, mark)}
    ours.discard(os.getpid())
    while True:
        more = {pid for pid, found in stats.items() if found.parent in ours or found.session in ours} - ours
        if not more:
            return [Process(pid, stats[pid].started) for pid in sorted(ours)]
        ours |= more


_children: list[subprocess.Popen[bytes]] = []


def _wait_gone(processes: Sequence[Process], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while any(process.alive for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in _children:
        child.poll()  # reap children, so that no zombie keeps the pid


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses: parse after the last one.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return _Stat(name, fields[0], int(fields[1]), int(fields[3]), f"{_boot_id()}+{fields[19]}")
