"""Ray: the connection to a cluster, single calls as Ray tasks, actors, and the progress and errors of workers.

Does not know what a stage or a training does; `ray_train.py` runs a training on a group of workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs.errors import DiskFull, KitaeError, MachineError, TrainingError, WorkerLost
from ray_jobs.spec import ComputeSection
from ray_jobs.training.machine_errors import is_disk_full, memory_errors

T = TypeVar("T")
MetricValues = dict[str, float | str]
ProgressUpdate = tuple[float, float, str, MetricValues]
"""(done, total, unit, metrics)."""
ReportProgress = Callable[[float, float, str, MetricValues], None]
"""Receives a ProgressUpdate's parts, for a progress display."""


def connect() -> None:
    """Join the Ray cluster of RAY_ADDRESS, or of the job this runs in; without either, start one here."""
    import ray

    if not ray.is_initialized():
        ours = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=os.environ.get("RAY_ADDRESS") or None,
            log_to_driver=False,  # a job prints its own events; the dashboard has the rest
            logging_level=logging.WARNING,
            include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
        )
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray has replaced it


def call_on_worker(
    function: Callable[..., T],
    *arguments: object,
    compute: ComputeSection,
    report: ReportProgress,
    check: Callable[[], None],
) -> T:
    """Call `function(*arguments, report)` in a process of its own with the resources of one training worker.

    Calls `check` every second meanwhile; an error that it raises ends the process.
    """
    import ray

    check_room(compute)
    with progress_sink(report) as sink:

        def call() -> T:
            prepare_process(None)
            with memory_errors():
                return function(*arguments, lambda state: sink.put.remote(state))

        # max_calls=1: the process ends, and its memory with it.
        task: Any = ray.remote(num_cpus=compute.cpus_per_worker, num_gpus=compute.gpus_per_worker, max_calls=1)(call)
        reference = task.options(max_retries=2).remote()
        try:
            while not ray.wait([reference], timeout=1.0)[0]:
                check()
        except BaseException:
            ray.cancel(reference, force=True)
            raise
        try:
            answer: T = ray.get(reference)
        except Exception as error:
            raise explain(error, "a worker failed; `kitae resume` tries this stage again. The failure") from error
    return answer


@contextlib.contextmanager
def progress_sink(report: ReportProgress) -> Iterator[Any]:
    """An actor that workers put their state into, and a thread here that reports it every second.

    Of the states since the last report, the newest is reported, and each that was put with `keep`.
    """
    import ray

    class Sink:
        def __init__(self) -> None:
            self.states: list[ProgressUpdate] = []
            self.keeps_last = True
            self.outcome: str | None = None

        def put(self, state: ProgressUpdate, keep: bool = False) -> None:
            self.states = [*(self.states if self.keeps_last else self.states[:-1]), state]
            self.keeps_last = keep

        def finish(self, outcome: str) -> None:
            self.outcome = outcome

        def answer(self) -> str | None:
            return self.outcome

        def take(self) -> list[ProgressUpdate]:
            taken, self.states = self.states, []
            return taken

    actor: Any = ray.remote(num_cpus=0)(Sink)
    sink = actor.remote()
    done = threading.Event()

    def poll() -> None:
        while True:
            last = done.wait(1.0)
            with contextlib.suppress(Exception):  # a display that fails must not end the job
                for state in ray.get(sink.take.remote(), timeout=10):
                    with contextlib.suppress(Exception):
                        report(*state)
            if last:
                return

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        done.set()
        thread.join(timeout=15)
        ray.kill(sink)


def start_actor(cls: type, *arguments: object, compute: ComputeSection) -> Any:
    """Start an actor of `cls(*arguments)` with the resources of one training worker on a GPU, or of all on CPUs.

    Ray starts it again whenever its process ends.
    """
    import ray

    on_gpu = compute.gpus_per_worker > 0
    share = 1 if on_gpu else compute.workers
    cpus, threads = compute.cpus_per_worker * share, (compute.threads_per_worker or 0) * share or None

    class Actor(cls):  # type: ignore[misc]  # any class
        def __init__(self, *given: object) -> None:
            prepare_process(threads, on_cpu=not on_gpu)
            super().__init__(*given)

    check_room(compute)
    made: Any = ray.remote(Actor)
    options = made.options(
        num_cpus=cpus,
        num_gpus=compute.gpus_per_worker,
        max_concurrency=4,  # calls that it answers while it works
        max_restarts=-1,
        runtime_env=None if on_gpu else {"env_vars": _allocator(threads or os.cpu_count() or 1)},
    )
    return options.remote(*arguments)


def _allocator(threads: int) -> dict[str, str]:
    """Environment of a process that computes on a CPU in several threads: Ray's jemalloc.

    The C library's allocator keeps almost half as much memory again in fragments.
    """
    import ray

    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    if not library.is_file():
        return {}
    settings = f"narenas:{threads},dirty_decay_ms:1000,muzzy_decay_ms:0"
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": settings}


def prepare_process(threads: int | None, *, on_cpu: bool = True) -> None:
    """Set the number of compute threads and DeepSpeed's device. Call before DeepSpeed is imported."""
    import torch

    if on_cpu and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(threads or os.cpu_count() or 1)


def cluster_resources() -> dict[str, float]:
    """Resources of the whole cluster, by Ray's names."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray is half typed
    return resources


def check_room(compute: ComputeSection) -> None:
    """Raise MachineError when the whole cluster could never hold the workers."""
    cluster = cluster_resources()
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


def check_cluster(job_id: str) -> None:
    """Raise TrainingError when this process's cluster is gone; Ray's own calls would end the process a minute later."""
    import ray

    if not ray.is_initialized():  # it has none
        return
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise TrainingError(f"{cluster_lost(job_id)} ({error})") from error


def cluster_lost(job_id: str) -> str:
    """Advice after the cluster was lost. Pure."""
    return f"the Ray cluster was lost; once it runs again, `kitae resume {job_id}` resumes from the last checkpoint"


def explain(error: Exception, otherwise: str) -> Exception:
    """The KitaeError that an error of Ray's wraps, or one that explains it: for an unknown error, `otherwise`."""
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    causes = list(_causes(error))
    for inner in causes:
        # Ray makes its wrapper an instance of the class it wraps, with the remote traceback as its text.
        if isinstance(inner, KitaeError) and not isinstance(inner, RayTaskError):
            return inner
    if any(isinstance(inner, OutOfMemoryError | MemoryError) for inner in causes):
        return MachineError(
            "a worker was killed because its machine ran out of memory: lower training.micro_batch_tokens or "
            "compute.workers, raise compute.zero_stage, or use a machine with more memory"
        )
    if any(is_disk_full(inner) for inner in causes):
        return DiskFull("a worker's disk is full: make room there, or set TMPDIR and KITAE_CACHE to a larger disk")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A RayTaskError is the function's own failure, which it would meet again; any other error of Ray's is an accident.
    accident = any(isinstance(inner, RayError) for inner in causes) and not any(
        isinstance(inner, RayTaskError) for inner in causes
    )
    return (WorkerLost if accident else TrainingError)(f"{otherwise}: {lines[-1] if lines else repr(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps: Ray's task errors, Ray Train's errors by worker, and Python's chains."""
    wrappers = ("cause", "health_check_failure", "controller_failure")
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        at = pending.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        pending += [at.__cause__, at.__context__]
        pending += [inner for name in wrappers if isinstance(inner := getattr(at, name, None), BaseException)]
        failures = getattr(at, "worker_failures", None)
        pending += list(failures.values()) if isinstance(failures, dict) else []
