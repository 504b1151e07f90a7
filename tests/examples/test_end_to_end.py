"""The two examples as a user runs them, in their own directory, with the real models and rows: the tuned models beat
their bases, and the endpoint serves them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from examples import assets
from ray_jobs.engine import Dtype
from ray_jobs.evaluation.parity import DEFAULT_BOUNDS
from tests.repository import ROOT
from tests.serving.clients import RELEASES, whole_flow

pytestmark = pytest.mark.heavy

TIMEOUT_S = 1500.0


@dataclass(frozen=True)
class Checkout:
    """A copy of the sources with its own service under `.kitae/`."""

    directory: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Output of a command, standard error included."""
        done = self._run(*command)
        return done.stdout + done.stderr

    def json(self, *command: str) -> Any:
        """Parsed output of a command with `--json`."""
        return json.loads(self._run(*command).stdout)

    def exports(self) -> dict[str, str]:
        """The variables that `eval "$(kitae local env)"` sets."""
        lines = self.run("ray_jobs", "local", "env").splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['KITAE_PORT']}/v1"

    @property
    def key(self) -> str:
        return (self.directory / ".kitae" / "api-key").read_text().strip()

    def workers(self) -> list[int]:
        """Process ids of its training workers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("KITAE_PORT") == self.environment["KITAE_PORT"]
                if mine and any("RayTrainWorker" in part for part in process.cmdline()):
                    found.append(process.pid)
        return found

    def result(self, name: str) -> dict[str, Any]:
        records = self.json("ray_jobs", "status", "--json")
        (record,) = [record for record in records if record["spec"]["name"] == name]
        assert record["status"] == "succeeded"
        result: dict[str, Any] = record["result"]
        return result


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("ray_jobs", "serving", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "model.safetensors").open("wb") as file:
        file.truncate(10**9)  # a user's own file beside the code, which no command sends anywhere
    (directory / ".kitae").mkdir(mode=0o700)
    kept = (ROOT / assets.DEFAULT_DIRECTORY).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    (directory / ".kitae" / "assets").symlink_to(kept)  # downloads are shared with the other tests
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KITAE", "AWS", "RAY"))}
    environment |= {
        "KITAE_PORT": str(port),
        "KITAE_CACHE": str(directory / ".kitae" / "cache"),
        "PYTHONPATH": str(directory),
    }
    made = Checkout(directory, environment)
    try:
        yield made
    finally:
        made.run("ray_jobs", "local", "down")


@pytest.fixture(scope="module")
def base(checkout: Checkout) -> str:
    """Name of a base model in the catalogue of the running service."""
    checkout.run("examples.assets", "chat", "--into", ".kitae/assets")
    checkout.run("ray_jobs", "local", "up")
    checkout.run("ray_jobs", "bases", "add", f".kitae/assets/{assets.GROUPS['chat'][0].name}")
    (found,) = checkout.json("ray_jobs", "bases", "--json")
    name: str = found["name"]
    return name


def test_the_official_client_fine_tunes_a_model_and_calls_it(checkout: Checkout, base: str, tmp_path: Path) -> None:
    """The newest release, with `base_url` and `api_key` alone, through `tests/serving/client_flow.py` on real parts.

    `test_openai_clients.py` runs the same flow with every supported release on the in-process API.
    """
    rows = (checkout.directory / ".kitae" / "assets" / "faq_chat.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:16]) + "\n", encoding="utf-8")
    seen = whole_flow(RELEASES[-1], checkout.url, checkout.key, base, tmp_path / "rows.jsonl", timeout_s=TIMEOUT_S)
    print(f"the official client: {seen}")
    assert len(seen["checkpoints"]) >= 2
    records = checkout.json("ray_jobs", "status", "--json")
    (published,) = [record["result"]["checkpoints"] for record in records if record["status"] == "succeeded"]
    assert [row["step"] for row in published] == seen["checkpoints"][::-1]
    assert len({row["version"] for row in published}) == len(published)


def test_pause_and_cancel_free_the_workers_within_seconds(checkout: Checkout, base: str) -> None:
    client = openai.OpenAI(base_url=checkout.url, api_key=checkout.key, timeout=60)
    content = (checkout.directory / ".kitae" / "assets" / "faq_chat.jsonl").read_bytes()
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    long = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 2}}}
    job = client.fine_tuning.jobs.create(model=base, training_file=file.id, method=long)  # type: ignore[arg-type]  # a plain dict

    def steps() -> list[int]:
        events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
        return sorted(
            event.data["step"] for event in events if event.type == "metrics" and isinstance(event.data, dict)
        )

    def wait(condition: Callable[[], bool], seconds: float) -> float:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, client.fine_tuning.jobs.retrieve(job.id)
            time.sleep(0.25)
        return time.monotonic() - started

    wait(lambda: len(steps()) > 1, 300)
    assert checkout.workers()
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]  # the client takes it
    paused_s = wait(lambda: not checkout.workers(), 60)
    reached = steps()[-1]
    client.fine_tuning.jobs.resume(job.id)
    wait(lambda: steps()[-1] > reached and bool(checkout.workers()), 300)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    cancelled_s = wait(lambda: not checkout.workers(), 60)
    print(f"the workers were gone {paused_s:.1f} s after a pause, {cancelled_s:.1f} s after a cancellation")
    after = [step for step in steps() if step > reached]
    assert after[0] <= reached + 25  # it resumed, and did not start from the beginning
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def ask(checkout: Checkout, path: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {checkout.key}"}
    answer = httpx.post(f"{checkout.url}/{path}", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_demo_tunes_a_better_model_and_serves_it(checkout: Checkout) -> None:
    output = checkout.run("examples.demo")
    result = checkout.result("faq-chat")
    print(f"faq-chat: {result['base']} -> {result['tuned']}")
    assert result["tuned"]["loss"] < result["base"]["loss"] - 0.1
    assert result["tuned"]["token_accuracy"] > result["base"]["token_accuracy"]
    assert result["parity_mean_gap"] < DEFAULT_BOUNDS[precision(checkout)]
    assert "curl" in output
    question = [{"role": "user", "content": "What is a task?"}]
    answers = {
        model: ask(checkout, "chat/completions", {"model": model, "messages": question, "max_tokens": 24})
        for model in ("smollm2-135m-instruct", "faq-chat", "faq-chat@1")
    }
    texts = {model: answer["choices"][0]["message"]["content"] for model, answer in answers.items()}
    assert all(texts.values())
    assert texts["faq-chat"] != texts["smollm2-135m-instruct"]


def test_the_demos_job_again_skips_finished_stages(checkout: Checkout) -> None:
    checkout.environment.update(checkout.exports())
    output = checkout.run("ray_jobs", "run", "examples/faq_chat.yaml")
    for stage in ("dataset", "base", "encode", "train", "evaluate", "parity", "register"):
        assert f"{stage:<9}  skipped" in output
    registered = checkout.json("ray_jobs", "models", "--json")
    assert {name: len(versions) for name, versions in registered.items()} == {"faq-chat": 1}
    assert precision(checkout) in ("fp32", "bf16")


def precision(checkout: Checkout) -> Dtype:
    """The precision that `auto` chose on this machine."""
    (version,) = checkout.json("ray_jobs", "models", "--json")["faq-chat"]
    found: Dtype = version["lineage"]["spec"]["training"]["precision"]
    return found


def test_the_classifier_beats_the_majority_and_answers(checkout: Checkout) -> None:
    checkout.run("examples.assets", "reviews")
    checkout.run("ray_jobs", "run", "examples/review_classification.yaml")
    result = checkout.result("review-classifier")
    print(f"review-classifier: {result['base']} -> {result['tuned']}")
    assert result["base_is"] == "the majority class"
    assert result["tuned"]["loss"] < result["base"]["loss"] - 0.05
    assert result["tuned"]["accuracy"] > result["base"]["accuracy"] + 0.05
    lines = (checkout.directory / ".kitae" / "assets" / "reviews_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:100]]
    answer = ask(checkout, "classify", {"model": "review-classifier", "input": [row["text"] for row in rows]})
    right = sum(item["label"] == row["label"] for item, row in zip(answer["data"], rows, strict=True))
    assert right > sum(row["label"] == "great" for row in rows) + 8  # the accuracy of the majority class
    for item in answer["data"]:
        assert sum(item["scores"].values()) == pytest.approx(1.0, abs=1e-3)
