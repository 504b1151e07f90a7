"""Ray: training workers under Ray Train, single steps as Ray tasks, and their progress back to the driver.

Owns every call of Ray that a job makes. Does not know what training or a stage does. A worker group that loses a member
is started again by Ray Train and goes on from the last checkpoint in the store; an error of the user's is not retried.

A little over 400 lines, so that Ray is met in one place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs import jobs
from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.jobs import checkpoint_request
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Store
from ray_jobs.training.checkpoint import is_disk_full
from ray_jobs.training.trainer import TrainInputs, TrainOutcome, TrainProgress

T = TypeVar("T")
Figures = dict[str, float | str]
State = tuple[float, float, str, Figures]
Report = Callable[[float, float, str, Figures], None]
"""(done, total, unit, figures), for a progress display."""

_POLL_S = 1.0
_CALLS_AT_ONCE = 4
"""That an actor answers beside its work."""


def connect() -> None:
    """Join the Ray cluster of RAY_ADDRESS, or of the job this runs in; without either, start one here."""
    import ray

    if not ray.is_initialized():
        ours = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=os.environ.get("RAY_ADDRESS") or None,
            log_to_driver=False,  # a job tells what matters itself; the rest is in the dashboard
            logging_level=logging.WARNING,
            include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
        )
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray has put its own in the place of it


def train_on_workers(
    inputs: TrainInputs,
    store: Store,
    *,
    job_id: str,
    attempt: int,
    report: Report,
) -> TrainOutcome:
    """Train on `compute.workers` Ray Train workers. Blocks; the workers of a job that is cancelled or paused stop at
    their next step.

    Raises what a worker raised on purpose, MachineError where the cluster has no room or memory ran out, and
    TrainingError where workers were lost more often than `compute.max_failures`.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = inputs.spec.compute
    check_room(compute, cluster_resources())
    with _sink(report) as sink, tempfile.TemporaryDirectory(prefix="kitae-ray-train-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "inputs": inputs.model_dump_json(),
                "store": store,
                "sink": sink,
                "job_id": job_id,
                "attempt": attempt,
                "threads": compute.threads_per_worker,
            },
            scaling_config=ScalingConfig(
                num_workers=compute.workers,
                use_gpu=compute.gpus_per_worker > 0,
                resources_per_worker=_resources(compute),
            ),
            torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
            # Ray's own files are only its controller's notes; checkpoints go to the store.
            run_config=RunConfig(
                name="train", storage_path=scratch, failure_config=FailureConfig(max_failures=compute.max_failures)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            unknown = (
                f"workers failed more than compute.max_failures {compute.max_failures} times; `kitae resume {job_id}` "
                "goes on from the last checkpoint. The last failure"
                if isinstance(error, TrainingFailedError)
                else f"{_lost(job_id)}. What was seen of it"
            )
            raise _read_failure(store, _failure_key(inputs, attempt)) or explain(error, unknown) from error
        answer = ray.get(sink.answer.remote())
    if answer is None:
        raise _read_failure(store, _failure_key(inputs, attempt)) or TrainingError("the workers ended without a result")
    return TrainOutcome.model_validate_json(answer)


def stop_training(store: Store, inputs: TrainInputs) -> None:
    """Let the workers of one training stop at their next step, for good."""
    store.put_json(_stop_key(inputs), {})


def _stop_key(inputs: TrainInputs) -> str:
    return f"{inputs.checkpoints}.stop.json"


def call_on_worker(
    function: Callable[..., T],
    *arguments: object,
    compute: ComputeSection,
    report: Report,
    check: Callable[[], None],
    threads: int | None = None,
) -> T:
    """Call `function(*arguments, report)` in a process of its own on a machine with what one training worker gets.

    `check` is called every second while it works; what that raises ends the process.
    """
    import ray

    check_room(compute, cluster_resources())
    with _sink(report) as sink:

        def call() -> T:
            _prepare_process(threads)
            return function(*arguments, lambda state: sink.put.remote(state))

        # max_calls=1: the process ends, and its memory with it.
        task: Any = ray.remote(num_cpus=compute.cpus_per_worker, num_gpus=compute.gpus_per_worker, max_calls=1)(call)
        reference = task.options(max_retries=2).remote()
        try:
            while not ray.wait([reference], timeout=_POLL_S)[0]:
                check()
        except BaseException:
            ray.cancel(reference, force=True)
            raise
        try:
            answer: T = ray.get(reference)
        except Exception as error:
            raise explain(error, "a worker failed; `kitae resume` tries this stage again. The failure") from error
    return answer


def cluster_resources() -> dict[str, float]:
    """What the whole cluster has, by Ray's names."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def check_cluster(job_id: str) -> None:
    """Raises TrainingError where the cluster this process belongs to is gone.

    Ray's own calls would wait for it, and end this process after a minute.
    """
    import ray

    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise TrainingError(f"{_lost(job_id)} ({error})") from error


def _lost(job_id: str) -> str:
    return f"the Ray cluster was lost; once it runs again, `kitae resume {job_id}` goes on from the last checkpoint"


def start_actor(cls: type, *arguments: object, compute: ComputeSection) -> Any:
    """An actor of `cls(*arguments)` with what one training worker gets on a GPU, or all workers' share of the CPUs.

    It has a process of its own, and answers calls while it works.
    """
    import ray

    on_gpu = compute.gpus_per_worker > 0
    share = 1 if on_gpu else compute.workers
    cpus, threads = compute.cpus_per_worker * share, (compute.threads_per_worker or 0) * share or None

    class Actor(cls):  # type: ignore[misc]  # any class
        def __init__(self, *given: object) -> None:
            _prepare_process(threads, on_cpu=not on_gpu)
            super().__init__(*given)

    check_room(compute, cluster_resources())
    made: Any = ray.remote(Actor)
    options = made.options(
        num_cpus=cpus,
        num_gpus=compute.gpus_per_worker,
        max_concurrency=_CALLS_AT_ONCE,
        runtime_env=None if on_gpu else {"env_vars": _allocator(threads or os.cpu_count() or 1)},
    )
    return options.remote(*arguments)


def _allocator(threads: int) -> dict[str, str]:
    """The environment of a process that computes on a CPU in several threads: with Ray's jemalloc. The C library's own
    allocator keeps almost half as much again there, in pieces, since tensors of all sizes come and go."""
    import ray

    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    if not library.is_file():
        return {}
    return {
        "LD_PRELOAD": str(library),
        "MALLOC_CONF": f"narenas:{threads},dirty_decay_ms:1000,muzzy_decay_ms:0",
    }


def check_room(compute: ComputeSection, cluster: dict[str, float]) -> None:
    """Raises MachineError where the whole cluster could never hold the workers. Pure."""
    wanted = {"CPU": compute.cpus_per_worker * compute.workers, "GPU": float(compute.gpus_per_worker * compute.workers)}
    lacking = [
        f"{amount:g} {name} for {compute.workers} worker(s), and the cluster has {cluster.get(name, 0.0):g}"
        for name, amount in wanted.items()
        if amount > cluster.get(name, 0.0)
    ]
    if lacking:
        raise MachineError(
            "the job needs more than the Ray cluster has: lower compute.workers, cpus_per_worker or gpus_per_worker",
            details=lacking,
        )


def _worker(config: dict[str, Any]) -> None:
    """One training process. An error of ours is written down and ends all of them, and is not tried again."""
    import ray
    import ray.train

    from ray_jobs.training.trainer import train

    context = ray.train.get_context()
    threads = config["threads"] or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    inputs = TrainInputs.model_validate_json(config["inputs"])
    _prepare_process(threads, on_cpu=inputs.spec.compute.gpus_per_worker == 0)
    os.environ.setdefault("LOCAL_RANK", str(context.get_local_rank()))  # DeepSpeed reads it
    store: Store = config["store"]
    sink = config["sink"]
    failure_key = _failure_key(inputs, config["attempt"])

    if store.exists(failure_key):
        return  # this attempt has failed for good; the driver reads why

    def tell(progress: TrainProgress) -> None:
        figures: Figures = {
            "loss": progress.loss,
            "tokens_per_s": progress.tokens_per_s,
            "learning_rate": progress.learning_rate,
            "began_at_step": progress.began_at_step,
        }
        if progress.held_out_loss is not None and progress.held_out_accuracy is not None:
            figures |= {"held_out_loss": progress.held_out_loss, "held_out_accuracy": progress.held_out_accuracy}
        sink.put.remote((progress.step, progress.total_steps, "steps", figures), keep="held_out_loss" in figures)

    asked = _Asked(store, config["job_id"], config["attempt"], _stop_key(inputs), answers=context.get_world_rank() == 0)
    try:
        outcome = train(
            inputs,
            store,
            on_progress=tell,
            should_stop=asked.should_stop,
            should_save=asked.should_save,
            on_commit=asked.committed,
        )
    except Exception as error:
        if isinstance(error, KitaeError):
            _write_failure(store, failure_key, error)
        elif not _is_written(store, failure_key):
            raise  # Ray Train starts the group again
        if inputs.spec.compute.gpus_per_worker:
            raise  # the others may wait in a collective that only the end of this process breaks; all start once more
        _leave_group()
        return
    if context.get_world_rank() == 0:
        ray.get(sink.finish.remote(outcome.model_dump_json()))


class _Asked:
    """What others want of this training, read from the store every few seconds in the background: that it stops (the
    job was cancelled, paused or taken over, or this training is to stop), or that it saves (a notice)."""

    def __init__(self, store: Store, job_id: str, attempt: int, stop_key: str, *, answers: bool) -> None:
        self._store, self._job_id, self._attempt, self._stop_key = store, job_id, attempt, stop_key
        self._answers = answers
        self._stop = threading.Event()
        self._heard = 0
        self._wanted: int | None = None
        self._saving: tuple[int, int] | None = None
        """(number of the notice, steps taken when it was heeded)."""
        threading.Thread(target=self._watch, daemon=True).start()

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def should_save(self, step: int) -> bool:
        """Once for each notice."""
        number, self._wanted = self._wanted, None
        if number is not None:
            self._saving = (number, step)
        return number is not None

    def committed(self, step: int) -> None:
        """Answer the notice that this checkpoint is for; one from before it may have been on its way still."""
        if self._saving is None or step <= self._saving[1]:
            return
        (number, _), self._saving = self._saving, None
        with contextlib.suppress(KitaeError):  # whoever waits gives up after a while; the checkpoint is there
            checkpoint_request.answer(self._store, self._job_id, number, step)

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            with contextlib.suppress(KitaeError):  # a store that is away for a moment stops nobody
                record = jobs.load(self._store, self._job_id)
                gone = record.status in ("cancelled", "paused") or record.attempt != self._attempt
                if gone or self._store.exists(self._stop_key):
                    self._stop.set()
                if self._answers:
                    self._look_for_notice()

    def _look_for_notice(self) -> None:
        found = checkpoint_request.current(self._store, self._job_id)
        if found is None or found.attempt != self._attempt or found.number <= self._heard or found.step is not None:
            return
        checkpoint_request.hear(self._store, self._job_id, found.number)
        self._heard = self._wanted = found.number


def _prepare_process(threads: int | None, *, on_cpu: bool = True) -> None:
    import torch

    if on_cpu and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(threads or os.cpu_count() or 1)


def _resources(compute: ComputeSection) -> dict[str, float]:
    resources = {"CPU": compute.cpus_per_worker}
    return resources | ({"GPU": float(compute.gpus_per_worker)} if compute.gpus_per_worker else {})


def _failure_key(inputs: TrainInputs, attempt: int) -> str:
    return f"{inputs.checkpoints}.failed-{attempt}.json"


def _write_failure(store: Store, key: str, error: KitaeError) -> None:
    with contextlib.suppress(KitaeError):  # two workers may fail at once, and the store may be what failed
        store.put_json(key, {"type": type(error).__name__, "message": error.message, "details": list(error.details)})


def _is_written(store: Store, key: str) -> bool:
    """Whether another worker has failed for good, so that this one's error is only what follows from it."""
    with contextlib.suppress(KitaeError):
        return store.exists(key)
    return False


def _leave_group() -> None:
    """Close the connections to the other workers, whose collectives then fail, so that they end too."""
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


def _read_failure(store: Store, key: str) -> KitaeError | None:
    from ray_jobs import errors

    if not store.exists(key):
        return None
    document = store.get_json(key)
    kind = getattr(errors, document["type"], KitaeError)
    error: KitaeError = kind(document["message"], details=document["details"])
    return error


def explain(error: Exception, unknown: str) -> Exception:
    """The error of ours inside Ray's, or one of ours that says what Ray's means; else `unknown` and its last line."""
    from ray.exceptions import RayTaskError

    for inner in _causes(error):
        # Ray makes its wrapper an instance of what it wraps, with the remote traceback for its text.
        if isinstance(inner, KitaeError) and not isinstance(inner, RayTaskError):
            return inner
    text = " ".join(str(inner) for inner in _causes(error))
    if "OutOfMemory" in type(error).__name__ or "OutOfMemoryError" in text or "running low on memory" in text:
        return MachineError(
            "a worker was killed because its machine ran out of memory: lower training.micro_batch_tokens or "
            "compute.workers, raise compute.zero_stage, or use a machine with more memory"
        )
    if any(is_disk_full(inner) for inner in _causes(error)):
        return MachineError("a worker's disk is full: make room there, or set TMPDIR and KITAE_CACHE to a larger disk")
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return TrainingError(f"{unknown}: {said[-1] if said else repr(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps: Ray's task errors, Ray Train's errors by worker, and Python's chains."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        at = pending.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        pending += [at.__cause__, at.__context__, getattr(at, "cause", None)]
        failures = getattr(at, "worker_failures", None)
        pending += list(failures.values()) if isinstance(failures, dict) else []


@contextlib.contextmanager
def _sink(report: Report) -> Iterator[Any]:
    """An actor that workers put their state into, and a thread here that reports it: the newest, and before it those
    that are to be kept."""
    import ray

    class Sink:
        def __init__(self) -> None:
            self.kept: list[State] = []
            self.state: State | None = None
            self.outcome: str | None = None

        def put(self, state: State, keep: bool = False) -> None:
            self.state = None if keep else state
            self.kept += [state] if keep else []

        def finish(self, outcome: str) -> None:
            self.outcome = outcome

        def answer(self) -> str | None:
            return self.outcome

        def take(self) -> list[State]:
            taken = [*self.kept, *([] if self.state is None else [self.state])]
            self.kept, self.state = [], None
            return taken

    actor: Any = ray.remote(num_cpus=0)(Sink)
    sink = actor.remote()
    done = threading.Event()

    def show() -> None:
        while True:
            last = done.wait(_POLL_S)
            with contextlib.suppress(Exception):  # a display that fails must not end the job
                for state in ray.get(sink.take.remote(), timeout=10):
                    with contextlib.suppress(Exception):
                        report(*state)
            if last:
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        done.set()
        thread.join(timeout=15)
        ray.kill(sink)
