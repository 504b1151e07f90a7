"""DeepSpeed: the engine's configuration, and the trainable state as whole fp32 tensors whatever the ZeRO stage.

DeepSpeed's own checkpoint files are pickles bound to the number of workers; the state here is plain named tensors, so
a job goes on with other workers or another stage, and nothing that is read back can run code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.models import trainable
from ray_jobs.spec import JobSpec

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two running means, by PyTorch's names."""


def engine_config(spec: JobSpec, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for a job.

    `managed_gradient_accumulation` off: a step is over when `step()` is called, so steps may differ in the number of
    forward passes.
    """
    compute = spec.compute
    # In bf16, DeepSpeed gives access to its fp32 masters from stage 1 on; the numbers are those of stage 0.
    zero: dict[str, Any] = {"stage": max(compute.zero_stage, int(bf16))}
    if compute.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": compute.gpus_per_worker > 0}
    if compute.offload == "optimizer_and_parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": compute.gpus_per_worker > 0}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": spec.training.max_grad_norm or 0.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        # AdamW is PyTorch's fused one in every stage: DeepSpeed's own would be compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def adamw(weights: Sequence[torch.nn.Parameter], weight_decay: float, learning_rate: float) -> torch.optim.AdamW:
    """The optimizer of every job. Biases and norms do not decay."""
    import torch

    parts = (([p for p in weights if p.ndim >= 2], weight_decay), ([p for p in weights if p.ndim < 2], 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in parts if params]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def build_engine(model: torch.nn.Module, spec: JobSpec, learning_rate: float, *, bf16: bool) -> DeepSpeedEngine:
    """Wrap the model. The process group must exist."""
    import deepspeed

    # A shared-memory all-reduce for inference that DeepSpeed would compile on a CPU at first use, for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = adamw(list(trainable(model).values()), spec.training.weight_decay, learning_rate)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=engine_config(spec, bf16=bf16), dist_init_required=False
    )
    return engine


def set_learning_rate(engine: DeepSpeedEngine, rate: float) -> None:
    """Use `rate` in the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gather_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each trained weight in turn: (name, {"weight", "exp_avg", "exp_avg_sq"}), whole, fp32, on the CPU.

    A collective: every worker must walk it to the end. Only one weight is whole at a time.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    inner = _inner_optimizer(engine)
    _link_moments(engine)
    for name, parameter in trainable(engine.module).items():
        if _is_partitioned(parameter):
            whole = {"weight": safe_get_full_fp32_param(parameter)}
            whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        else:
            state = inner.state[parameter]
            whole = {"weight": parameter.data} | {key: state[key] for key in MOMENTS}
        yield name, {key: tensor.detach().float().cpu().clone() for key, tensor in whole.items()}


def restore_state(engine: DeepSpeedEngine, state: dict[str, dict[str, torch.Tensor]], *, steps: int) -> None:
    """Put back what `gather_state` gave, after `steps` optimizer steps. The module must already hold the weights
    (rounded to its dtype); this restores the fp32 masters and AdamW's moments."""
    import torch

    inner = _inner_optimizer(engine)
    flats = [flat for group in inner.param_groups for flat in group["params"]]
    # ZeRO-3 lends its flat shards to the optimizer only while it steps.
    for flat in getattr(engine.optimizer, "fp32_partitioned_groups_flat", flats):
        inner.state[flat] = {
            "step": torch.tensor(float(steps), device=flat.device),
            **{key: torch.zeros_like(flat) for key in MOMENTS},
        }
    _link_moments(engine)
    for name, parameter in trainable(engine.module).items():
        _restore_one(parameter, state[name], inner)


def _restore_one(parameter: torch.nn.Parameter, saved: dict[str, torch.Tensor], inner: torch.optim.Optimizer) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(parameter, "ds_id"):
        # A ZeRO-3 shard: the whole weight, padded to a multiple of the workers, cut into equal parts.
        safe_set_local_fp32_param(parameter, _shard(parameter, saved["weight"]))
        for key in MOMENTS:
            safe_set_local_optimizer_state(parameter, _shard(parameter, saved[key]), key)
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, saved["weight"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, saved[key], key)
    else:
        parameter.data.copy_(saved["weight"])
        for key in MOMENTS:
            inner.state[parameter][key].copy_(saved[key])


def _shard(parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
    import torch
    import torch.distributed as dist

    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # added by DeepSpeed
    flat = whole.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * dist.get_world_size() - flat.numel()))
    return padded.narrow(0, size * dist.get_rank(), size)


def _link_moments(engine: DeepSpeedEngine) -> None:
    """Let the weights find their moments. DeepSpeed does it after the first group's first step, when the other groups
    have none yet, and not again."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_partitioned(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _inner_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """PyTorch's AdamW beneath DeepSpeed's wrappers."""
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]  # DeepSpeed is untyped
