"""The endpoint in a separate process, so that a test can measure its memory.

    KITAE_STORE=… AWS_…=… python -m tests.serving.api_process MAX_FILE_BYTES

Prints its port; exits when its standard input is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.storage import Workspace
from tests.repository import ROOT
from tests.serving.api_harness import add_base, api_server


@dataclass
class ApiProcess:
    """A running endpoint."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_bytes(self) -> int:
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Peak of resident memory since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024


@contextmanager
def api_process(environment: Mapping[str, str], *, max_file_bytes: int) -> Iterator[ApiProcess]:
    """Run the endpoint with these environment variables until the block ends."""
    command = [sys.executable, "-m", "tests.serving.api_process", str(max_file_bytes)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port, "the endpoint did not start"
        yield ApiProcess(process.pid, int(port))
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def main(max_file_bytes: str) -> None:
    store = Workspace.from_env(check=False)
    add_base(store)
    with api_server(store, max_file_bytes=int(max_file_bytes)) as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
