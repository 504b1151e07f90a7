"""Every supported release of the official client through the whole flow, on the in-process API with a fake runner and
fake engines. `tests/examples/test_end_to_end.py` runs the newest release on real ones."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ray_jobs.storage import Workspace
from tests.serving.api_harness import BASE, KEY, add_base, api_server, rows
from tests.serving.clients import RELEASES, whole_flow


@pytest.mark.parametrize("release", RELEASES)
def test_the_whole_flow(release: str, store: Workspace, tmp_path: Path) -> None:
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
            seen = whole_flow(release, f"{server.url}/v1", KEY, BASE, tmp_path / "rows.jsonl", timeout_s=240)
        finally:
            stop.set()
            runner.join()
    assert seen["checkpoints"] == [20, 10]
