"""vLLM's set-up for a model, the only one: parity and serving both use it.

Owns the engine's arguments and its environment, as pure functions of `EngineSettings`; what parity checks is what the
endpoint serves because both call these. Knows nothing of stores, Ray or requests, and imports neither torch nor vllm.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_jobs.errors import MachineError
from ray_jobs.spec import Precision

Dtype = Literal["fp32", "bf16"]

VLLM_DTYPES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16"}
"""vLLM's name of each number format."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks a vLLM engine can be sized for (vllm.config.lora.MaxLoRARanks); a smaller adapter fits a larger size."""

_BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU flags (x86, and `bf16` on Arm) of native bf16 arithmetic. Without it bf16 runs several times slower than fp32."""


@dataclass(frozen=True)
class Hardware:
    """The hardware of an engine."""

    device: Literal["cpu", "gpu"]
    native_bf16: bool
    """The hardware computes bf16 itself."""
    threads: int
    """CPU cores this process may use."""


@dataclass(frozen=True)
class EngineSettings:
    """Everything an engine's arguments depend on, except the model's path."""

    dtype: Dtype
    hardware: Hardware
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    max_lora_rank: int | None = None
    """Largest rank of an adapter served beside the base. None: no adapters."""
    max_loras: int = 1
    """Adapters one batch can mix, and held in memory at once."""
    kv_cache_gib: float = 1.0
    """Memory of a CPU engine's key/value cache, in GiB."""
    max_num_seqs: int = 64
    """Requests a CPU engine decodes at once."""
    gpu_memory_fraction: float = 0.85
    """Share of a GPU's memory for weights and cache together."""


GPU = Hardware("gpu", native_bf16=True, threads=0)
"""A GPU of compute capability 8.0 or more; vLLM itself refuses bf16 on an older one."""


def cpu_hardware() -> Hardware:
    """This machine's CPU, limited to the cores this process may use. Imports nothing heavy."""
    path = Path("/proc/cpuinfo")
    cpu_info = path.read_text(encoding="utf-8") if path.exists() else ""
    return Hardware("cpu", native_bf16=cpu_has_bf16(cpu_info), threads=len(os.sched_getaffinity(0)))


def detect_hardware() -> Hardware:
    """Hardware of an engine that this process starts: a GPU if one is visible, else the CPU. Imports torch."""
    import torch

    return GPU if torch.cuda.is_available() else cpu_hardware()


def cpu_has_bf16(cpu_info: str) -> bool:
    """True where a Linux `/proc/cpuinfo` text names native bf16 arithmetic."""
    lines = (line.split(":", 1) for line in cpu_info.splitlines() if ":" in line)
    flags = {flag for key, text in lines if key.strip() in ("flags", "Features") for flag in text.split()}
    return not flags.isdisjoint(_BF16_CPU_FLAGS)


def serving_dtype(trained: Precision, hardware: Hardware) -> Dtype:
    """Number format to serve a model in: as trained, except that a machine without native bf16 serves fp32.

    Every bf16 number is an fp32 number, so weights trained in bf16 lose nothing by it.
    """
    return "bf16" if trained != "fp32" and hardware.native_bf16 else "fp32"


def lora_capacity(rank: int) -> int:
    """The smallest engine size an adapter of `rank` fits. Raises MachineError over the largest."""
    for capacity in LORA_RANKS:
        if rank <= capacity:
            return capacity
    raise MachineError(
        f"an adapter of rank {rank} cannot be served: vLLM's largest is {LORA_RANKS[-1]}; "
        f"set training.lora.rank to {LORA_RANKS[-1]} or less, or training.method: full"
    )


def engine_kwargs(settings: EngineSettings) -> dict[str, Any]:
    """vLLM's engine arguments (`vllm.EngineArgs`, without `model`)."""
    kwargs: dict[str, Any] = {
        "dtype": VLLM_DTYPES[settings.dtype],
        "max_model_len": settings.max_model_len,
        "trust_remote_code": False,
        "load_format": "safetensors",  # never a pickle, even if the directory has one
        "seed": 0,
        # Only the request's own values: evaluation measures greedy answers, and a generation_config.json with a
        # temperature would change those of requests without one.
        "generation_config": "vllm",
        # Not `auto`: the engine keeps for life the backend that its first constrained request needs, and another one
        # than xgrammar cannot compile the formats of tool calls. White space between JSON's tokens is only cost.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if settings.hardware.device == "cpu":
        kwargs |= {
            # Compiling takes minutes on few cores, and adapters disable it.
            "enforce_eager": True,
            "kv_cache_memory_bytes": round(settings.kv_cache_gib * 2**30),
            "max_num_batched_tokens": 2048,  # more only costs memory: a step is compute-bound well below
            "max_num_seqs": settings.max_num_seqs,
        }
    else:
        kwargs |= {"gpu_memory_utilization": settings.gpu_memory_fraction}
    if settings.max_lora_rank is not None:
        kwargs |= {
            "enable_lora": True,
            "max_lora_rank": lora_capacity(settings.max_lora_rank),
            "max_loras": settings.max_loras,
            "max_cpu_loras": settings.max_loras,
        }
        if settings.hardware.device == "cpu":
            kwargs["worker_cls"] = "ray_jobs.engine.cpu_lora.Worker"
    return kwargs


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment of an engine's process. Set it before importing torch or vllm."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_PLUGINS": "",
    }
    if settings.hardware.device == "cpu":
        environment |= {
            # vLLM's automatic binding keeps a core free for its scheduler: half of a two-core machine.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.hardware.threads),
            # An idle thread yields its core to the endpoint's other processes instead of spinning on it.
            "OMP_WAIT_POLICY": "PASSIVE",
            # vLLM's logprobs would compile a kernel in eager mode too, and end the engine without a compiler.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
