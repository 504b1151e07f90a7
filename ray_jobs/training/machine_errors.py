"""Errors of a machine that ran out of memory or disk, by their class, and what to change.

Errors that a library raises without a class of their own are converted here only.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator

from ray_jobs.errors import MachineError
from ray_jobs.spec import JobSpec


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError for every failed allocation inside the block, on a GPU or a CPU."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        # PyTorch's CPU allocator has no exception class: only this text distinguishes it from other RuntimeErrors.
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means ENOSPC."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # safetensors has one exception class and gives the system's error number only in its text.
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC})" in str(error)


def out_of_memory(spec: JobSpec) -> MachineError:
    """The settings that make a training smaller. Pure."""
    training, compute = spec.training, spec.compute
    advice = [
        f"training.micro_batch_tokens is {training.micro_batch_tokens}: lower it, down to data.max_tokens "
        f"{spec.data.max_tokens} (the result stays the same)"
    ]
    if not training.gradient_checkpointing:
        advice.append("training.gradient_checkpointing is off: set it to true")
    if compute.zero_stage < 3 and compute.workers > 1:
        advice.append(f"compute.zero_stage is {compute.zero_stage}: raise it")
    if compute.offload == "none" and compute.gpus_per_worker:
        advice.append("compute.offload is none: set optimizer, with zero_stage 2 or 3")
    if training.method == "full":
        advice.append("training.method is full: lora needs a fraction of the memory")
    return MachineError("training ran out of memory; any of these helps:", details=advice)


def peak_memory_bytes() -> int:
    """Most memory this process has used so far: of its GPU, or resident."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
