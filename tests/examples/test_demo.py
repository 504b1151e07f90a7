"""The output of `make demo`, and that it starts nothing when it cannot finish."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from examples.demo import SPEC, Answer, Steps, answer_table, curl, results_table, run, shorten
from ray_jobs.errors import KitaeError, TrainingError
from ray_jobs.spec import load_spec
from tests.repository import ROOT

RESULT: dict[str, Any] = {
    "model": "faq-chat",
    "version": "3",
    "base_name": "smollm2",
    "base": {"loss": 2.75, "token_accuracy": 0.41, "chrf": 21.5},
    "tuned": {"loss": 2.25, "token_accuracy": 0.52, "chrf": 30.25},
    "tokens_per_s": 1234.5,
    "parity_mean_gap": 0.00002,
    "stages": [
        {"name": "dataset", "seconds": 2.0, "skipped": True},
        {"name": "train", "seconds": 130.0, "skipped": False},
    ],
}


def rendered(*tables: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(*tables)
    return captured.get()


def test_the_table_has_both_models_the_speed_the_times_and_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITAE_PORT", "9000")
    shown = [line.split() for line in rendered(results_table(RESULT, {"job": 200.0})).splitlines()]
    flat = [" ".join(word for word in line if word not in "│┃") for line in shown]
    assert "test loss 2.750 2.250" in flat
    assert "test chrf 21.500 30.250" in flat
    assert "training 1,234 tokens/s" in flat
    assert "stage dataset 2s (done before)" in flat
    assert "stage train 2m10s" in flat
    assert "job 3m20s" in flat
    assert "model smollm2 faq-chat@3" in flat
    assert "endpoint http://127.0.0.1:9000/v1" in flat


def test_answers_are_side_by_side_and_their_markup_is_text() -> None:
    shown = rendered(answer_table(RESULT, [Answer("How [bold]?", "So.", "Hm", "So!")]))
    assert "[bold]" in shown
    assert len(shorten("word " * 100)) == 160


def test_the_curl_command_is_valid_and_reads_the_key_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITAE_PORT", "9000")
    words = shlex.split(curl("faq-chat", 'Where\'s it?\n"Here"'))
    assert words[0] == "curl"
    assert "http://127.0.0.1:9000/v1/chat/completions" in words
    assert "Authorization: Bearer $(cat .kitae/api-key)" in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["messages"][0]["content"] == 'Where\'s it?\n"Here"'


def test_a_failed_step_is_named_with_its_fix_and_keeps_the_exit_code() -> None:
    console = Console(width=160)
    with console.capture() as captured, pytest.raises(SystemExit) as ended, Steps(console)("job", "look at the log"):
        raise TrainingError("NaN loss at step 3")
    assert ended.value.code == TrainingError.exit_code
    assert "error: job: NaN loss at step 3\n  - look at the log" in captured.get()


def test_output_is_shown_indented_and_a_failure_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="exit code 3"):
        run(["bash", "-c", "echo 'train  1/2 steps'; echo 'error: NaN loss' >&2; exit 3"], TrainingError)
    assert capsys.readouterr().out == "   train  1/2 steps\n   error: NaN loss\n"


def test_a_port_in_use_is_reported_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = subprocess.run(
            [sys.executable, "-m", "examples.demo"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "KITAE_PORT": str(port)},
        )
    assert demo.returncode != 0
    assert f"port {port}" in demo.stdout
    assert "started" not in demo.stdout + demo.stderr


def test_the_demos_job_file_is_valid() -> None:
    assert load_spec(ROOT / SPEC).task == "chat"
    assert issubclass(TrainingError, KitaeError)
