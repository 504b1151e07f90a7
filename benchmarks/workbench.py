"""Set-up of the measurements: real rows and a real model in a separate store, and a separate Ray cluster.

Owns the measured jobs and their set-up. Both sides of a comparison get the same `Side`: the model's directory, the
encoded rows and the resolved job. Does not measure anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from benchmarks.turns import Measure, Turn, Umpire
from examples.assets import DEFAULT_DIRECTORY
from ray_jobs.data.encoding import Encoded, Kept, encode_rows
from ray_jobs.errors import MachineError
from ray_jobs.jobs import start_attempt
from ray_jobs.local import embedded_store, processes
from ray_jobs.local.embedded_store import Credentials
from ray_jobs.models import load_processor
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.training import ray_train
from ray_jobs.training.inputs import TRAIN_FILE, VALIDATION_FILE, TrainInputs, TrainOutcome

Rows = Literal["faq", "mixed"]
JsonRows = list[dict[str, Any]]
Show = Callable[..., None]
"""`StageProgress.update`."""
MODEL = "smollm2-135m-instruct"
ENCODER = "multilingual-e5-small"
REVIEWS = 1000
MAX_TOKENS = 512
MICRO_BATCH_TOKENS = 1024
_RAY_CPUS = 4
"""Logical CPUs: one for each worker that waits for its turn."""
_SEAT_KEY = "umpire.json"
_MAIL_QUESTION = "Is this e-mail spam? Answer with spam or ham.\n\n"


@dataclass(frozen=True)
class Side:
    """The job's inputs, for a side that runs in a separate process."""

    name: str
    port: int
    """Port of the umpire."""
    spec: dict[str, Any]
    model_dir: str
    rows_file: str
    threads: int
    kind: str = ""

    @classmethod
    def read(cls, path: Path) -> Side:
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Contest:
    """Configuration of a side. Without a module it is the whole job."""

    module: str | None = None
    kind: str = ""
    workers: int = 1
    threads: int = 2
    training: dict[str, Any] = field(default_factory=dict)
    """Training settings of the job that this side overrides."""


class Script:
    """A side that is a Python module in a separate process."""

    def __init__(self, module: str, side: Side, directory: Path) -> None:
        path, self._log = directory / f"{uuid.uuid4().hex}.json", directory / f"{uuid.uuid4().hex}.log"
        path.write_text(json.dumps(asdict(side)))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(path)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": str(side.threads)},
            )

    def failure(self) -> str | None:
        code = self._process.poll()
        return None if not code else f"exit code {code}: " + " | ".join(embedded_store.tail(self._log))

    def join(self) -> None:
        self._process.wait(120)

    def kill(self) -> None:
        self._process.kill()


class WholeJob:
    """A side that is the whole job's training, started as in the pipeline; waits for its turn before each step."""

    def __init__(self, bench: Workbench, rows: Rows, spec: JobSpec, seat: tuple[int, str]) -> None:
        self._error: BaseException | None = None
        self.outcome: TrainOutcome | None = None
        bench.store.put_json(_SEAT_KEY, {"port": seat[0], "side": seat[1]})
        self._thread = threading.Thread(target=self._run, args=(bench, rows, spec), daemon=True)
        self._thread.start()

    def failure(self) -> str | None:
        return None if self._error is None else repr(self._error)

    def join(self) -> None:
        self._thread.join(300)

    def _run(self, bench: Workbench, rows: Rows, spec: JobSpec) -> None:
        try:
            with patch.object(ray_train, "train_worker", _turning_worker):
                self.outcome = bench.train(rows, spec)
        except BaseException as error:  # noqa: BLE001  # reported by failure()
            self._error = error


def _turning_worker(config: dict[str, Any]) -> None:
    """The job's own worker function, which waits for its turn before each step."""
    from ray_jobs.training.trainer import Trainer

    seat = config["store"].get_json(_SEAT_KEY)
    plain = Trainer.passes
    turns: list[Turn] = []

    def passes(trainer: Trainer, at: int, stop: bool, save: bool) -> tuple[float, bool, bool]:
        if not turns:
            turns.append(Turn(seat["port"], seat["side"]))
        losses = trainer.state.position.losses
        turns[0].next(losses[-1] if losses else None)
        return plain(trainer, at, stop, save)

    with patch.object(Trainer, "passes", passes):
        ray_train.train_worker(config)


class Workbench:
    """A store with model and rows, and a scratch directory."""

    def __init__(self, store: Workspace, directory: Path, assets: Path) -> None:
        self.store, self.directory, self.assets = store, directory, assets
        self.ray_start_s = _start_ray()
        self.keep: Callable[[dict[str, Any]], None] = lambda _: None
        """Saves a benchmark's results so far, in case it is interrupted."""

    @contextmanager
    def without_ray(self) -> Iterator[None]:
        """Stop the Ray cluster meanwhile, for benchmarks that start their own."""
        _stop_ray()
        try:
            yield
        finally:
            _start_ray()

    def prepare(self, rows: Rows) -> str:
        """Encode a set of rows once and return its key."""
        key = f"encoded/{rows}"
        if self.store.read_manifest(key) is None:
            found = read_rows(self.assets, rows)
            encoded, _ = self._encode(MODEL, "chat", found, (), max_tokens=MAX_TOKENS, too_long="drop")
            # The held-out loss is not measured here but cannot be left out: use two rows.
            self._upload(key, {TRAIN_FILE: encoded, VALIDATION_FILE: Encoded.of([encoded[0], encoded[1]])})
        return key

    def _upload(self, key: str, parts: Mapping[str, Encoded]) -> None:
        """Upload encoded rows by file."""
        scratch = self.directory / key.replace("/", "-")
        scratch.mkdir()
        for file, encoded in parts.items():
            encoded.save(scratch / file)
        self.store.commit(key, self.store.upload_tree(scratch, key), {})

    def _base(self, model: str) -> str:
        """Upload a base model once and return its key."""
        key = f"bases/{model}"
        if self.store.read_manifest(key) is None:
            self.store.commit(key, self.store.upload_tree(self.assets / model, key), {})
        return key

    def encoded(self, rows: Rows) -> Encoded:
        return Encoded.load(self.store.fetch(self.prepare(rows)) / TRAIN_FILE)

    def inputs(self, rows: Rows, spec: JobSpec) -> TrainInputs:
        """Inputs of a training that has not run yet."""
        return TrainInputs(
            spec=spec,
            labels=(),
            encoded_key=self.prepare(rows),
            base_key=self._base(MODEL),
            checkpoints=f"checkpoints/{uuid.uuid4().hex}",
        )

    def review_inputs(self, spec: JobSpec) -> TrainInputs:
        """Inputs with the encoder and labelled rows: 800 training reviews, 200 held out."""
        rows = _read(self.assets / "reviews_train.jsonl")[:REVIEWS]
        return self.split_inputs("reviews", ENCODER, spec, rows, REVIEWS * 4 // 5)

    def faq_inputs(self, spec: JobSpec, train: int, held_out: int) -> TrainInputs:
        """Inputs with SmolLM2 and the first FAQ rows of at most `data.max_tokens`."""
        rows = _read(self.assets / "faq_chat.jsonl")
        _, short = self._encode(MODEL, spec.task, rows, (), max_tokens=spec.data.max_tokens, too_long="drop")
        return self.split_inputs("short-faq", MODEL, spec, [rows[i] for i in short.kept[: train + held_out]], train)

    def split_inputs(self, name: str, model: str, spec: JobSpec, rows: JsonRows, train: int) -> TrainInputs:
        """Inputs with the first `train` rows for training and the others held out."""
        key, limit = f"encoded/{name}", spec.data.max_tokens
        labels = tuple(sorted({row["label"] for row in rows if "label" in row}))
        if self.store.read_manifest(key) is None:
            sides = {TRAIN_FILE: rows[:train], VALIDATION_FILE: rows[train:]}
            self._upload(key, {
                file: self._encode(model, spec.task, part, labels, max_tokens=limit, too_long="truncate")[0]
                for file, part in sides.items()
            })  # fmt: skip
        return TrainInputs(spec=spec, labels=labels, encoded_key=key, base_key=self._base(model), checkpoints="unused")

    def _encode(
        self, model: str, task: str, rows: JsonRows, labels: tuple[str, ...], *, max_tokens: int,
        too_long: Literal["drop", "truncate"],
    ) -> tuple[Encoded, Kept]:  # fmt: skip
        tokenizer = load_processor(self.assets / model, task)
        limits: dict[str, Any] = {"max_tokens": max_tokens, "too_long": too_long, "source": "benchmark"}
        return encode_rows(rows, TASKS[task], tokenizer, labels, **limits)

    def rows_of(self, inputs: TrainInputs) -> int:
        """Number of training rows."""
        return len(Encoded.load(self.store.fetch(inputs.encoded_key) / TRAIN_FILE))

    def train(self, rows: Rows, spec: JobSpec) -> TrainOutcome:
        """Run the whole job's training as the pipeline does."""
        job = start_attempt(self.store, spec)
        return ray_train.train_on_workers(
            self.inputs(rows, spec), self.store, job_id=job.id, attempt=job.attempt, report=lambda *_: None
        )

    def contend(
        self, rows: Rows, steps: int, batch_size: int, contenders: Mapping[str, Contest], show: Show
    ) -> dict[str, Measure]:
        """Measure the sides step by step in turn: `steps` steps after a warm-up step."""
        scripts: list[Script] = []
        base_dir = self.store.fetch(self.inputs(rows, make_spec(steps=1, batch_size=batch_size)).base_key)
        try:
            with Umpire() as umpire:
                for i, (name, contest) in enumerate(contenders.items()):
                    show(i, len(contenders), "sides", doing=f"starting: {name}")
                    spec = make_spec(
                        name=f"side-{i}",
                        workers=contest.workers,
                        threads=contest.threads,
                        steps=steps + 2,
                        batch_size=batch_size,
                        **contest.training,
                    )
                    if contest.module is None:
                        umpire.admit(name, contest.workers, lambda: WholeJob(self, rows, spec, (umpire.port, name)))  # noqa: B023  # called at once
                        continue
                    side = Side(
                        name,
                        umpire.port,
                        spec.model_dump(mode="json"),
                        str(base_dir),
                        str(self.store.fetch(self.prepare(rows)) / TRAIN_FILE),
                        contest.threads,
                        contest.kind,
                    )
                    scripts.append(Script(contest.module, side, self.directory))
                    umpire.admit(name, 1, lambda: scripts[-1])
                return umpire.run_steps(
                    steps, lambda done, name, seconds: show(done, steps, "steps", side=name, s_per_step=seconds)
                )
        finally:
            for script in scripts:
                script.kill()


def make_spec(
    *, steps: int, batch_size: int, name: str = "benchmark", workers: int = 1, threads: int = 2, **training: Any
) -> JobSpec:
    """A LoRA job in fp32 with the defaults of `transformers.Trainer`: AdamW, linear decay, no warm-up, gradients
    clipped at 1."""
    return parse_spec(
        {
            "name": name,
            "task": "chat",
            "base_model": MODEL,
            "data": {"train": "rows", "max_tokens": MAX_TOKENS},
            "training": {
                "method": "lora",
                "epochs": 50,
                "max_steps": steps,
                "batch_size": batch_size,
                "micro_batch_tokens": MICRO_BATCH_TOKENS,
                "learning_rate": 2e-4,
                "warmup_fraction": 0.0,
                "schedule": "linear",
                "precision": "fp32",
                "eval_every_steps": steps,
                **training,
            },
            "compute": {"workers": workers, "threads_per_worker": threads},
        }
    )


def read_rows(assets: Path, rows: Rows) -> list[dict[str, Any]]:
    """`faq`: the example's question/answer rows. `mixed`: the same and as many real e-mails to classify, which are much
    longer and have one-word answers: as uneven as instruction data often is."""
    faq = _read(assets / "faq_chat.jsonl")
    if rows == "faq":
        return faq
    mails = _read(assets / "spam.jsonl")
    return faq + [
        {
            "messages": [
                {"role": "user", "content": _MAIL_QUESTION + mail["text"]},
                {"role": "assistant", "content": mail["label"]},
            ]
        }
        for mail in mails[:: max(1, len(mails) // len(faq))]
    ]


@contextmanager
def open_workbench(assets: Path = DEFAULT_DIRECTORY) -> Iterator[Workbench]:
    """Set up the workbench and clean up afterwards."""
    missing = [
        name
        for name in (
            f"{MODEL}/config.json",
            f"{ENCODER}/config.json",
            "faq_chat.jsonl",
            "reviews_train.jsonl",
            "spam.jsonl",
        )
        if not (assets / name).exists()
    ]
    if missing:
        raise MachineError(
            f"{assets} lacks {', '.join(missing)}: run `python -m examples.assets all --into {assets}` first"
        )
    directory = Path(tempfile.mkdtemp(prefix="kitae-bench-"))
    ports = embedded_store.choose_ports()
    credentials = Credentials("benchmark", uuid.uuid4().hex)
    mark = uuid.uuid4().hex
    log = directory / "weed.log"
    server = embedded_store.start(
        directory / "data", log, ports, credentials, environment={**os.environ, processes.MARK: mark}
    )
    try:
        embedded_store.wait_until_ready(server, ports, credentials, log)
        variables = {
            "KITAE_STORE": f"s3://{embedded_store.BUCKET}",
            "KITAE_CACHE": str(directory / "cache"),
            "AWS_ENDPOINT_URL": embedded_store.endpoint_url(ports),
            "AWS_ACCESS_KEY_ID": credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
            "AWS_REGION": "us-east-1",
            "HF_HUB_OFFLINE": "1",
        }
        with patch.dict(os.environ, variables):  # Ray's workers inherit it
            yield Workbench(Workspace.from_env(), directory, assets.resolve())
    finally:
        _stop_ray()
        processes.stop([server], mark)
        embedded_store.remove_sockets(ports)
        shutil.rmtree(directory, ignore_errors=True)


def _start_ray() -> float:
    """Start a separate Ray cluster for this process. Returns the seconds that it took."""
    import ray

    started = time.perf_counter()
    ray.init(address="local", num_cpus=_RAY_CPUS, include_dashboard=False, log_to_driver=False, logging_level=30)
    return time.perf_counter() - started


def _stop_ray() -> None:
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
