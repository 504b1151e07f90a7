"""A local service of its own, in `.kitae/clients/service`, that serves a model tuned on tool rows.

Uses what a user uses: `kitae local up`, `bases add`, `run` and `local down`. Finished parts are skipped the next time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples import assets
from ray_jobs.local.state import Home
from tests.clients.rows import OTHER_CITIES, tool_rows
from tests.repository import ROOT
from tests.serving.clients import CLIENTS
from tests.tasks.chat.families import templates

MODEL = "tool-caller"
BASE = "smollm2-135m-tools"
DIRECTORY = CLIENTS / "service"
ROWS, HELD_OUT_ROWS = 60, 8
JOB = {
    "name": MODEL,
    "task": "chat",
    "base_model": f"./{BASE}",
    "data": {"train": "rows.jsonl", "held_out": "held_out.jsonl", "max_tokens": 1024},
    "training": {
        "method": "lora",
        "lora": {"rank": 16, "alpha": 32},
        "epochs": 4,
        "batch_size": 6,
        "micro_batch_tokens": 1024,
        "learning_rate": 2e-3,
        "eval_every_steps": 18,
    },
    "compute": {"workers": 2},
    "evaluation": {"generate_rows": 0, "parity": {"prompts": 2}},
    "serving": {"max_model_len": 8192},
}
"""Learned by heart: the calls must come at temperature 1 too, which is what a request without one gets."""


@dataclass(frozen=True)
class TunedService:
    url: str
    key: str
    model: str
    tokenizer: Path
    """Directory of the base, for clients that count tokens themselves."""


@contextmanager
def tuned_service() -> Iterator[TunedService]:
    """Start it, tune the model if that was not done before, and stop it in the end."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    _make_base(DIRECTORY / BASE)
    # Without its greetings, which are those of the training rows.
    held_out = [row for row in tool_rows(HELD_OUT_ROWS, OTHER_CITIES) if "city" in json.dumps(row["messages"])]
    for name, rows in (("rows", tool_rows(ROWS)), ("held_out", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (DIRECTORY / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (DIRECTORY / "job.yaml").write_text(json.dumps(JOB, indent=2), encoding="utf-8")
    port = _port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KITAE", "AWS", "RAY"))}
    cache = DIRECTORY / ".kitae" / "cache"
    environment |= {"KITAE_PORT": str(port), "KITAE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    try:
        kitae(environment, "local", "up")
        kitae(environment, "bases", "add", BASE, "--max-model-len", "8192")
        kitae(environment, "run", "job.yaml")
        key = (DIRECTORY / ".kitae" / "api-key").read_text().strip()
        yield TunedService(f"http://127.0.0.1:{port}/v1", key, MODEL, DIRECTORY / BASE)
    finally:
        kitae(environment, "local", "down")


def kitae(environment: dict[str, str], *command: str) -> None:
    """Run a command in the service's directory; its output is this process's."""
    subprocess.run([sys.executable, "-m", "ray_jobs", *command], cwd=DIRECTORY, env=environment, check=True)


def _make_base(directory: Path) -> None:
    """SmolLM2-135M-Instruct with the chat template of Qwen2.5, which writes tools and calls; its own writes neither."""
    assets.bring(assets.GROUPS["chat"][:1], ROOT / assets.DEFAULT_DIRECTORY)
    if not directory.exists():
        draft = directory.with_suffix(".making")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(ROOT / assets.DEFAULT_DIRECTORY / assets.GROUPS["chat"][0].name, draft)
        (draft / "chat_template.jinja").write_text(templates()["qwen2_5"], encoding="utf-8")
        draft.rename(directory)


def _port() -> int:
    """The port of the last time, or a free one."""
    state = Home(DIRECTORY).load()
    if state is not None:
        return state.endpoint_port
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
