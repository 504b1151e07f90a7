"""Training runs for tests: inputs in a store, and groups of worker processes that run cases one after another.

A group is started once a test session: importing torch and DeepSpeed takes longer than most runs here.
"""

from __future__ import annotations

import os
import queue
import socket
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs.data.encoding import encode_rows
from ray_jobs.models import load_processor
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.training.inputs import TRAIN_FILE, VALIDATION_FILE, TrainInputs

T = TypeVar("T")
Row = dict[str, Any]


def make_spec(task: str = "chat", **sections: dict[str, Any]) -> JobSpec:
    """A small fp32 job; sections are merged into it."""
    document: dict[str, Any] = {
        "name": "tiny",
        "task": task,
        "base_model": "unused",
        "data": {"train": "unused", "max_tokens": 128},
        "training": {
            "method": "full",
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_tokens": 128,
            "learning_rate": 1e-3,
            "precision": "fp32",
        },
        "compute": {"workers": 2, "threads_per_worker": 1},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return parse_spec(document)


def publish(
    store: Workspace, spec: JobSpec, base: Path, train: Sequence[Row], held_out: Sequence[Row], *, checkpoints: str
) -> TrainInputs:
    """Write base and encoded rows to the store, as the pipeline does."""
    task = TASKS[spec.task]
    labels = sorted({row["label"] for row in train}) if spec.task == "text_classification" else []
    tokenizer = load_processor(base, spec.task)
    with tempfile.TemporaryDirectory() as scratch:
        for rows, name in ((train, TRAIN_FILE), (held_out, VALIDATION_FILE)):
            encoded, _ = encode_rows(
                rows, task, tokenizer, labels, max_tokens=spec.data.max_tokens, too_long="error", source=name
            )
            encoded.save(Path(scratch) / name)
        encoded_key = f"encoded/{spec.task}"
        if store.read_manifest(encoded_key) is None:
            store.commit(encoded_key, store.upload_tree(Path(scratch), encoded_key), {})
    base_key = f"bases/{base.name}"
    if store.read_manifest(base_key) is None:
        store.commit(base_key, store.upload_tree(base, base_key), {})
    return TrainInputs(
        spec=spec, labels=tuple(labels), encoded_key=encoded_key, base_key=base_key, checkpoints=checkpoints
    )


def on_workers(workers: int, function: Callable[..., T], cases: Sequence[Any]) -> list[T]:
    """Run `function(case)` for each case on `workers` processes in one gloo group; returns the first process's results.

    The session's group of that size is reused. An exception on any process fails the test and ends the group.
    """
    group = _groups.get(workers)
    if group is None:
        group = _groups[workers] = _Group.start(workers)
    try:
        answers: Any = group.run(function, list(cases))
    except BaseException:
        _groups.pop(workers).kill()
        raise
    return answers  # type: ignore[no-any-return]  # through a queue


@dataclass(frozen=True)
class _Group:
    """Processes that wait for cases. They are daemons: they end with the test process."""

    processes: tuple[Any, ...]
    requests: tuple[Any, ...]
    """A queue a process."""
    answers: Any

    @classmethod
    def start(cls, workers: int) -> _Group:
        import torch.multiprocessing as mp

        context = mp.get_context("spawn")
        requests, answers = tuple(context.Queue() for _ in range(workers)), context.Queue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = tuple(
            context.Process(target=_serve, args=(rank, workers, port, requests[rank], answers), daemon=True)
            for rank in range(workers)
        )
        for process in processes:
            process.start()
        return cls(processes, requests, answers)

    def run(self, function: Callable[..., Any], cases: list[Any]) -> Any:
        for requests in self.requests:
            requests.put((function, cases))
        answers = self._answer()
        if isinstance(answers, str):
            raise AssertionError(answers)
        return answers

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def _answer(self) -> Any:
        """The first answer. A process that has ended without one fails the test at once."""
        died: list[int] = []
        for _ in range(500):
            try:
                return self.answers.get(timeout=1)
            except queue.Empty:
                if died:
                    return f"a training process ended with exit code {died[0]}"
                died = [process.exitcode for process in self.processes if process.exitcode is not None]
        return "no answer within 500 s"


_groups: dict[int, _Group] = {}


def _serve(rank: int, workers: int, port: int, requests: Any, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    while True:
        function, cases = requests.get()
        try:
            results = [function(case) for case in cases]
            dist.barrier()
        except Exception:  # noqa: BLE001  # reported to the test, which fails
            answers.put(traceback.format_exc())
            return
        if rank == 0:
            answers.put(results)
