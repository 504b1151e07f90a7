"""`make demo`: from rows to an answering endpoint on this machine, with progress.

Owns the order of the steps and the output. It uses what a user would use: the local service, the assets,
`kitae submit`, the registry and the official OpenAI client.

    python -m examples.demo
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_jobs.errors import KitaeError, MachineError, ServingError, TrainingError
from ray_jobs.jobs.progress import duration

if TYPE_CHECKING:
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Workspace

ROOT = Path(__file__).resolve().parent.parent
SPEC = Path("examples/faq_chat.yaml")
SEARCH_PAGE = Path(".kitae/search.html")
QUESTIONS = 3


@dataclass(frozen=True)
class Answer:
    """A question of a test row with the row's answer and the answers of both models."""

    question: str
    expected: str
    base: str
    tuned: str


class Steps:
    """Prints and times each step; on failure prints what to do."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def __call__(self, name: str, on_failure: str) -> Iterator[None]:
        self._console.print(f"\n[bold]== {name}[/bold]")
        started_s = time.monotonic()
        try:
            yield
        except KitaeError as error:
            self._console.print(f"[bold red]error:[/bold red] {name}: ", end="")
            self._console.print(str(error), markup=False, highlight=False)
            self._console.print(f"  - {on_failure}", markup=False, highlight=False)
            raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            self._console.print(
                f"\ninterrupted during {name!r}; `make demo` resumes there, `make stop` stops the services"
            )
            raise SystemExit(130) from None
        self.seconds[name] = time.monotonic() - started_s
        self._console.print(f"   {name} took {duration(self.seconds[name])}", style="dim")


def main() -> None:
    os.chdir(ROOT)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    steps = Steps(console)
    again = "see the error above; `make demo` resumes here"
    from ray_jobs import local
    from ray_jobs.spec import load_spec

    with steps("local service: store, Ray", f"{again}; the services' logs are in .kitae/logs"):
        local.up()
        os.environ.update(local.environment())
    with steps("model and rows", again):
        run([sys.executable, "-m", "examples.assets", "chat", "--into", str(ROOT / ".kitae/assets")], MachineError)
    spec = load_spec(SPEC)
    with steps("job", f"`.venv/bin/kitae status {spec.job_id} --events` shows the progress; {again}"):
        submit(spec)
    from ray_jobs import deploy, jobs
    from ray_jobs.storage import Workspace

    store = Workspace.from_env(check=False)
    with steps("questions", f"`.venv/bin/kitae local status` shows the running services; {again}"):
        result = jobs.load(store, spec.job_id).result or {}
        deploy.reapply(store, deploy.ServeSettings.from_env())  # has no effect if the model is deployed
        answers = ask(store, spec, result)
    show(console, spec, result, answers, steps.seconds)
    if result.get("search"):
        SEARCH_PAGE.write_bytes(store.get(result["search"]["page"]))
        console.print(f"\nLearning curves of the search: {SEARCH_PAGE}", highlight=False)


def run(command: Sequence[str], failure: type[KitaeError]) -> None:
    """Run a program and print its output, indented. Raises `failure` if it fails."""
    # An interrupt is for this process, which passes it on and reports it once.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as program:
        assert program.stdout is not None
        try:
            for line in program.stdout:
                print(f"   {line}", end="", flush=True)
        except KeyboardInterrupt:
            program.send_signal(signal.SIGINT)
            raise
    if program.returncode != 0:
        raise failure(f"`{' '.join(command[:6])} …` ended with exit code {program.returncode}")


def submit(spec: JobSpec) -> None:
    """Run `kitae submit` and print the job's output. Raises TrainingError if the job fails."""
    from ray_jobs import jobs
    from ray_jobs.storage import Workspace

    print(f"   $ kitae submit {SPEC}", flush=True)
    try:
        run([sys.executable, "-m", "ray_jobs", "submit", str(SPEC)], TrainingError)
    except KeyboardInterrupt:
        # The job runs in Ray and would continue without this process.
        jobs.request_cancel(Workspace.from_env(check=False), spec.job_id)
        raise


def ask(store: Workspace, spec: JobSpec, result: dict[str, Any]) -> list[Answer]:
    """Ask base and tuned model the first test questions. Raises ServingError if the endpoint does not answer."""
    import openai

    from ray_jobs import registry
    from ray_jobs.data import dataset

    client = openai.OpenAI(base_url=endpoint(), api_key=os.environ["KITAE_API_KEY"], timeout=120.0)

    def answer(model: str, question: str) -> str:
        try:
            said = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=spec.evaluation.max_new_tokens,
                temperature=0.0,
            )
        except openai.OpenAIError as error:
            raise ServingError(f"{endpoint()} did not answer for {model!r}: {error}") from error
        return said.choices[0].message.content or ""

    answers = []
    version = registry.get(store, f"{result['model']}@{result['version']}")
    for row in dataset.load(store, version.lineage.dataset_digest).test_rows[:QUESTIONS]:
        asked, expected = row["messages"][-2:]
        question = str(asked["content"])
        base, tuned = answer(version.base_name, question), answer(version.name, question)
        answers.append(Answer(question, str(expected["content"]), base, tuned))
    return answers


def endpoint() -> str:
    return f"http://127.0.0.1:{os.environ.get('KITAE_PORT', '8000')}/v1"


def show(
    console: Console, spec: JobSpec, result: dict[str, Any], answers: Sequence[Answer], seconds: Mapping[str, float]
) -> None:
    """Print the answers, a table of results, and a command to call the model."""
    console.print()
    console.print(answer_table(result, answers))
    console.print(results_table(result, seconds))
    console.print("\nThe endpoint stays up until `make stop`. Call the model:\n")
    console.print(curl(spec.name, answers[0].question if answers else "Hello"), markup=False, highlight=False)


def answer_table(result: dict[str, Any], answers: Sequence[Answer]) -> Table:
    table = Table("question of a test row", "the row's answer", result["base_name"], result["model"], show_lines=True)
    for answer in answers:
        texts = (answer.question, answer.expected, answer.base, answer.tuned)
        table.add_row(*(Text(shorten(text)) for text in texts))
    return table


def results_table(result: dict[str, Any], seconds: Mapping[str, float]) -> Table:
    """Table of the job's `result` and the `seconds` of the demo's steps."""
    from ray_jobs.pipeline import search_summary

    table = Table("", "base", "tuned")
    for name, tuned in sorted(result["tuned"].items(), key=lambda item: item[0] != "loss"):  # the loss first
        base = result["base"].get(name)
        table.add_row(f"test {name.replace('_', ' ')}", "" if base is None else f"{base:.3f}", f"{tuned:.3f}")
    if (compared := result.get("comparison")) is not None:
        low, high = compared["interval"]
        table.add_row(
            "difference in loss, 95% interval", "", f"{compared['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    table.add_section()
    if result.get("search"):
        table.add_row("search", "", search_summary(result["search"]))
    table.add_row("training", "", f"{result['tokens_per_s']:,.0f} tokens/s")
    if result["parity_mean_gap"] is not None:
        table.add_row("served vs trained, mean |Δ log p|", "", f"{result['parity_mean_gap']:.1e}")
    table.add_section()
    for stage in result["stages"]:
        skipped = " (done before)" if stage["skipped"] else ""
        table.add_row(f"stage {stage['name']}", "", duration(stage["seconds"]) + skipped)
    for name, took_s in seconds.items():
        table.add_row(name, "", duration(took_s))
    table.add_section()
    table.add_row("model", result["base_name"], f"{result['model']}@{result['version']}")
    table.add_row("endpoint", "", endpoint())
    return table


def shorten(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def curl(model: str, question: str) -> str:
    """A command that works in this directory; it reads the key from its file."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    quoted = body.replace("'", "'\"'\"'")
    return (
        f"curl -s {endpoint()}/chat/completions \\\n"
        '  -H "Authorization: Bearer $(cat .kitae/api-key)" -H "Content-Type: application/json" \\\n'
        f"  -d '{quoted}'"
    )


if __name__ == "__main__":
    main()
