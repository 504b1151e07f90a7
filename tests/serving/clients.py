"""The official client, unmodified, in one release each of 1.x, 2.x and 3.x, and the whole flow run with a release."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.repository import ROOT

RELEASES = ("1.109.1", "2.54.0", "3.54.0")
BESIDE = ("distro==1.9.0", "sniffio==1.3.1")
"""Packages that older releases need and newer ones do not."""
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


def client_at(release: str) -> Path:
    """A directory with that release alone; its dependencies come from this environment."""
    directory = CLIENTS / f"openai-{release}"
    if not (directory / "openai").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(directory), f"openai=={release}", *BESIDE], check=True, timeout=300)
    return directory


def whole_flow(release: str, url: str, key: str, base: str, rows: Path, *, timeout_s: float) -> dict[str, Any]:
    """Run `tests/serving/client_flow.py` with a release; returns its report. Raises AssertionError with its output."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "client_flow.py"), url, key, base, str(rows)],
        env={"PYTHONPATH": str(client_at(release)), "PATH": "", "NO_PROXY": "127.0.0.1"},
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
