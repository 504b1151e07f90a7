"""The official client, unmodified, in one release each of 1.x, 2.x and 3.x, and the whole flow run with a release."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.repository import ROOT

RELEASES = ("1.109.1", "2.54.0", "3.54.0")
CLIENTS = ROOT / ".kitae" / "clients"
ERRORS = {
    "no key": ["AuthenticationError", "invalid_api_key", None, "authentication_error", True],
    "no job": ["NotFoundError", "job_not_found", None, "not_found_error", True],
    "no file": ["NotFoundError", "file_not_found", None, "not_found_error", True],
    "no model": ["NotFoundError", "model_not_found", "model", "not_found_error", True],
    "bad rows": ["BadRequestError", "invalid_rows", "file", "invalid_request_error", True],
    "bad create": ["BadRequestError", "invalid_request", "model", "invalid_request_error", True],
    "dpo": ["BadRequestError", "invalid_request", "method.type", "invalid_request_error", True],
    "deleted model": ["NotFoundError", "model_not_found", "model", "not_found_error", True],
    "cancel twice": ["BadRequestError", "invalid_state", None, "invalid_request_error", True],
}
"""Exception, code, param, type and presence of a request id, as every release must report them."""


def environment(name: str, packages: Sequence[str]) -> Path:
    """Python of the virtual environment `.kitae/clients/NAME` with these packages alone; made when they change."""
    directory = CLIENTS / name
    python, installed = directory / "bin" / "python", directory / "installed.txt"
    wanted = "\n".join(packages)
    CLIENTS.mkdir(parents=True, exist_ok=True)
    with (CLIENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
            subprocess.run([*pip, "--disable-pip-version-check", *packages], check=True, timeout=1200)
            installed.write_text(wanted, encoding="utf-8")
    return python


def whole_flow(release: str, url: str, key: str, base: str, rows: Path, *, timeout_s: float) -> dict[str, Any]:
    """Run `tests/serving/client_flow.py` with a release; returns its report. Raises AssertionError with its output."""
    python = environment(f"openai-{release}", (f"openai=={release}",))
    done = subprocess.run(
        [str(python), str(Path(__file__).parent / "client_flow.py"), url, key, base, str(rows)],
        env={"PATH": "", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["client"] == release
    assert seen["statuses"][-1] == "succeeded"
    assert seen["errors"] == ERRORS
    return seen
