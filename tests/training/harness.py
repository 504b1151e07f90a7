"""Training runs for tests: inputs in a store, and processes with a process group that run cases one after another."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs.data.encoding import encode_rows
from ray_jobs.models import load_tokenizer
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training.trainer import HELD_OUT_FILE, TRAIN_FILE, TrainInputs

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
    store: Store, spec: JobSpec, base: Path, train: Sequence[Row], held_out: Sequence[Row], *, checkpoints: str
) -> TrainInputs:
    """Put base and encoded rows into the store, as the pipeline would."""
    task = TASKS[spec.task]
    labels = sorted({row["label"] for row in train}) if spec.task == "text_classification" else []
    tokenizer = load_tokenizer(base, spec.task)
    with tempfile.TemporaryDirectory() as scratch:
        for rows, name in ((train, TRAIN_FILE), (held_out, HELD_OUT_FILE)):
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
    """`function(case)` for each case, on `workers` processes in one gloo group; what the first process answered.

    The processes start once, since importing is most of a small run's time. An exception in any fails the test.
    """
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_process, args=(rank, workers, port, function, list(cases), queue), daemon=True)
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        answers: Any = _answer(queue, processes)
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()
    if isinstance(answers, str):
        raise AssertionError(answers)
    return answers  # type: ignore[no-any-return]  # through a queue


def _answer(queue: Any, processes: Sequence[Any]) -> Any:
    """The first answer; a process that died without one fails the test at once."""
    import queue as queues

    for _ in range(500):
        try:
            return queue.get(timeout=1)
        except queues.Empty:
            died = [process.exitcode for process in processes if process.exitcode]
            if died:
                return f"a training process died with exit code {died[0]}"
    return "no answer within 500 s"


def _process(
    rank: int, workers: int, port: int, function: Callable[..., Any], cases: Sequence[Any], queue: Any
) -> None:
    import traceback

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
    try:
        dist.init_process_group("gloo", rank=rank, world_size=workers)
        answers = [function(case) for case in cases]
        if rank == 0:
            queue.put(answers)
        dist.barrier()
    except Exception:  # noqa: BLE001  # told to the test, which fails
        queue.put(traceback.format_exc())
