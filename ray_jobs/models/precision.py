"""The number format of a job's weights, and whether a machine can hold or compute with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.engine import Dtype, cpu_hardware
from ray_jobs.errors import MachineError
from ray_jobs.models.load import load_config
from ray_jobs.spec import JobSpec

if TYPE_CHECKING:
    import torch


def resolve_precision(spec: JobSpec) -> torch.dtype:
    """Number format of the weights in a forward pass. `auto` is bf16 only where the hardware computes it natively: a
    CPU that emulates it is several times slower than in fp32."""
    import torch

    if spec.training.precision == "fp32":
        return torch.float32
    if spec.training.precision == "bf16":
        return torch.bfloat16
    if spec.compute.gpus_per_worker:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_hardware().native_bf16
    return torch.bfloat16 if native else torch.float32


def precision_name(spec: JobSpec) -> Dtype:
    """`resolve_precision` as `fp32` or `bf16`."""
    return "bf16" if "bfloat16" in str(resolve_precision(spec)) else "fp32"


def require_memory(directory: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raise MachineError where a base's weights alone exceed the free memory."""
    import psutil
    import torch

    config = load_config(directory)
    halves = str(config.get("dtype") or config.get("torch_dtype") or "float32") in ("bfloat16", "float16")
    stored = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    needed = stored * dtype.itemsize / (2 if halves else 4)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise MachineError(
            f"the base model's weights take {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB of memory are free: "
            "choose a smaller base_model, method: qlora, or a machine with more memory"
        )
