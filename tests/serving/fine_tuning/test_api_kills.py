"""The API process is killed at any moment: responses that clients received stay true, and jobs finish.

Five hundred crashes are injected in this process, at random requests of a chaos scenario. Five real kills hit a server
process while the official client uses it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobError
from ray_jobs.storage import Workspace
from serving.fine_tuning import records
from tests.repository import ROOT
from tests.serving.api_harness import BASE, KEY, add_base, free_port, rows, run_job
from tests.serving.chaos_checks import check_files, check_jobs
from tests.serving.chaos_scenario import ChaosScenario
from tests.serving.served_api import FolderLauncher

CRASHES = 100
SEEDS = 5
REAL_KILLS = 5
PATIENCE_S = 60.0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_responses_stay_true_over_a_hundred_crashes(
    seed: int, store: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = ChaosScenario(store, seed, CRASHES)
    scenario.run()
    scenario.finish_all()
    check_jobs(scenario)
    check_files(scenario)
    history = scenario.history
    assert len(history.created) > 2
    assert len(history.files) > 4
    assert "succeeded" in history.ended.values()
    facts = {
        "seed": seed,
        "requests": scenario.requests,
        "files": len(history.files),
        "jobs": Counter(job.status for job in history.jobs.values()),
        "events": sum(map(len, history.events.values())),
        "unanswered creates": len(history.unanswered),
    }
    with capsys.disabled():
        print(json.dumps(facts), end=" ")


class Served:
    """A server process that a test kills and starts again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests" / "serving" / "served_api.py"), str(self.port), str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def working(store: Workspace, launcher: FolderLauncher) -> Iterator[None]:
    """Run the launcher's runners to their end on a thread."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.2):
            for runner_id, runner in launcher.runners("ftjob-").items():
                if runner.state == "running":
                    with suppress(JobError):  # cancelled before or while it ran
                        run_job(store, launcher.arguments(runner_id)[1], epochs=1)
                    launcher.stop(runner_id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_the_official_client_works_across_real_kills(
    store: Workspace, store_environment: dict[str, str], tmp_path: Path
) -> None:
    add_base(store)
    folder = tmp_path / "runners"
    folder.mkdir()
    launcher = FolderLauncher(folder)
    dice = random.Random(7)
    served = Served(folder)
    killed = threading.Event()

    def kill() -> None:
        for _ in range(REAL_KILLS):
            time.sleep(dice.uniform(0.3, 1.5))
            served.kill()
            served.start()
        killed.set()

    killer = threading.Thread(target=kill)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=KEY, max_retries=20, timeout=60)
    files: dict[str, bytes] = {}
    created: dict[str, str] = {}
    cancelled: set[str] = set()
    try:
        with working(store, launcher):
            killer.start()
            while not killed.is_set() or len(created) < 6:
                number = len(created)
                content = rows(12, start=100 * number)
                file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
                files[file.id] = content
                job = client.fine_tuning.jobs.create(
                    model=BASE, training_file=file.id, metadata={"number": str(number)}
                )
                created[str(number)] = job.id
                if number % 3 == 0:
                    with suppress(openai.BadRequestError):  # it has already ended
                        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
                        cancelled.add(job.id)
                assert {found.id for found in client.fine_tuning.jobs.list(limit=2)} >= set(created.values())
            deadline = time.monotonic() + PATIENCE_S
            while records.all_open(store):
                assert time.monotonic() < deadline, records.all_open(store)
                time.sleep(0.2)
            ended = {job.id: job for job in client.fine_tuning.jobs.list(limit=100)}
        assert {(job.metadata or {})["number"]: job.id for job in ended.values()} == created
        assert len(ended) == len(created)
        for job in ended.values():
            assert job.status == ("cancelled" if job.id in cancelled else "succeeded")
            events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=3)]
            assert Counter(events)[f"created fine-tuning job {job.id}"] == 1
            assert events[-1] == f"created fine-tuning job {job.id}"
            record = jobs.load(store, records.load(store, "default", job.id).job_id)
            assert record.attempt <= 1
        for identifier, content in files.items():
            assert client.files.content(identifier).read() == content
    finally:
        if killer.is_alive():
            killer.join()
        served.kill()
