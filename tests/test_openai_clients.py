"""The official client, one release each of 1.x, 2.x and 3.x, unmodified, through the whole flow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_jobs.storage import Store
from tests.api_server import BASE, KEY, add_base, api_server, rows

RELEASES = ("1.109.1", "2.54.0", "3.54.0")
BESIDE = ("distro==1.9.0", "sniffio==1.3.1")
"""What older releases need and newer ones do not."""
CLIENTS = Path(__file__).parent.parent / ".kitae" / "clients"


def client_at(release: str) -> Path:
    """A directory with that release of the client alone; what it needs is installed already."""
    directory = CLIENTS / f"openai-{release}"
    if not (directory / "openai").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(directory), f"openai=={release}", *BESIDE], check=True, timeout=300)
    return directory


@pytest.mark.parametrize("release", RELEASES)
def test_the_whole_flow(release: str, store: Store, tmp_path: Path) -> None:
    add_base(store)
    (tmp_path / "rows.jsonl").write_bytes(rows(12))
    with api_server(store) as server:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.1):
                server.run_launched()

        runner = threading.Thread(target=work)
        runner.start()
        try:
            flow = subprocess.run(
                [
                    sys.executable, str(Path(__file__).parent / "client_flow.py"),
                    f"{server.url}/v1", KEY, BASE, str(tmp_path / "rows.jsonl"),
                ],
                env={"PYTHONPATH": str(client_at(release)), "PATH": "", "NO_PROXY": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )  # fmt: skip
        finally:
            stop.set()
            runner.join()
    assert flow.returncode == 0, flow.stderr
    seen = json.loads(flow.stdout)
    assert seen["client"] == release
    assert seen["statuses"][-1] == "succeeded"
    assert seen["checkpoints"] == [20, 10]
    assert seen["errors"] == {
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
