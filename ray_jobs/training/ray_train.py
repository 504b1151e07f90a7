"""A training on a group of Ray Train workers, from the driver's side and the worker's.

Ray Train restarts a group that loses a member, and it resumes from the last checkpoint in the store. An error of ours
ends the training: the worker writes it beside the checkpoints, and the driver raises it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

from ray_jobs import errors
from ray_jobs.errors import KitaeError, ObjectNotFound, TrainingError
from ray_jobs.storage import Workspace
from ray_jobs.training import ray_workers
from ray_jobs.training.control import TrainingControl
from ray_jobs.training.inputs import TrainHooks, TrainInputs, TrainOutcome, TrainProgress


def train_on_workers(
    inputs: TrainInputs, store: Workspace, *, job_id: str, attempt: int, report: ray_workers.ReportProgress
) -> TrainOutcome:
    """Train on `compute.workers` Ray Train workers. Blocks; a cancelled or paused job stops at its next step.

    Raises the KitaeError that a worker raised, MachineError when the cluster has no room or memory runs out, and
    TrainingError when workers were lost more often than `compute.max_failures`.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = inputs.spec.compute
    resources = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = float(compute.gpus_per_worker)
    ray_workers.check_room(compute)
    with ray_workers.progress_sink(report) as sink, tempfile.TemporaryDirectory(prefix="kitae-ray-train-") as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "inputs": inputs.model_dump_json(),
                "store": store,
                "sink": sink,
                "job_id": job_id,
                "attempt": attempt,
                "threads": compute.threads_per_worker,
            },
            scaling_config=ScalingConfig(
                num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
            # Ray stores only its controller's state here; checkpoints go to the store.
            run_config=RunConfig(
                name="train", storage_path=scratch, failure_config=FailureConfig(max_failures=compute.max_failures)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            otherwise = (
                f"workers failed more than compute.max_failures {compute.max_failures} times; `kitae resume {job_id}` "
                "resumes from the last checkpoint. The last failure"
                if isinstance(error, TrainingFailedError)
                else f"{ray_workers.cluster_lost(job_id)}. The error"
            )
            raise _read_failure(store, inputs, attempt) or ray_workers.explain(error, otherwise) from error
        answer = ray.get(sink.answer.remote())
    if answer is None:
        raise _read_failure(store, inputs, attempt) or TrainingError("the workers ended without a result")
    return TrainOutcome.model_validate_json(answer)


def stop_training(store: Workspace, inputs: TrainInputs) -> None:
    """Stop the workers of one training at their next step, until `allow_training`."""
    store.put_json(_stop_key(inputs), {})


def allow_training(store: Workspace, inputs: TrainInputs) -> None:
    """Let a training that was stopped resume."""
    store.delete(_stop_key(inputs))


def train_worker(config: dict[str, Any]) -> None:
    """One training process. A KitaeError is written to the store and ends the whole group without a retry."""
    import ray
    import ray.train
    import torch.distributed as dist

    from ray_jobs.training.trainer import train

    context = ray.train.get_context()
    threads = config["threads"] or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    inputs = TrainInputs.model_validate_json(config["inputs"])
    ray_workers.prepare_process(threads, on_cpu=inputs.spec.compute.gpus_per_worker == 0)
    os.environ.setdefault("LOCAL_RANK", str(context.get_local_rank()))  # read by DeepSpeed
    store: Workspace = config["store"]
    sink = config["sink"]
    failure_key = _failure_key(inputs, config["attempt"])

    if store.exists(failure_key):
        return  # this attempt has failed; the driver reads why

    def report(progress: TrainProgress) -> None:
        state = (progress.step, progress.total_steps, "steps", progress.metrics)
        sink.put.remote(state, keep="held_out_loss" in progress.metrics)

    first = context.get_world_rank() == 0
    control = TrainingControl(store, config["job_id"], config["attempt"], _stop_key(inputs), answers=first)
    hooks = TrainHooks(report, control.should_stop, control.should_save, control.committed)
    try:
        outcome = train(inputs, store, hooks)
    except Exception as error:
        if isinstance(error, KitaeError):
            failure = {"type": type(error).__name__, "message": error.message, "details": list(error.details)}
            with contextlib.suppress(KitaeError):  # two workers may fail at once, and the store may be what failed
                store.put_json(failure_key, failure)
        elif not _is_written(store, failure_key):
            raise  # Ray Train restarts the group
        if inputs.spec.compute.gpus_per_worker:
            raise  # the others may wait in a collective that only the end of this process breaks; the group restarts
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()  # so that the others' collectives fail and they end too
        return
    finally:
        control.close()
    if first:
        ray.get(sink.finish.remote(outcome.model_dump_json()))


def _stop_key(inputs: TrainInputs) -> str:
    return f"{inputs.checkpoints}.stop.json"


def _failure_key(inputs: TrainInputs, attempt: int) -> str:
    return f"{inputs.checkpoints}.failed-{attempt}.json"


def _is_written(store: Workspace, key: str) -> bool:
    """Whether another worker has failed, so that this one's error only follows from it."""
    with contextlib.suppress(KitaeError):
        return store.exists(key)
    return False


def _read_failure(store: Workspace, inputs: TrainInputs, attempt: int) -> KitaeError | None:
    try:
        document = store.get_json(_failure_key(inputs, attempt))
    except ObjectNotFound:
        return None
    kind = getattr(errors, document["type"], KitaeError)
    error: KitaeError = kind(document["message"], details=document["details"])
    return error
