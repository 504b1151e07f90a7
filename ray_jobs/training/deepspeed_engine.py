"""DeepSpeed: the engine's configuration, and the trained state as whole fp32 tensors in every ZeRO stage.

DeepSpeed's own checkpoint files are pickles tied to the number of workers. The state here is plain named tensors: a job
resumes with other workers or another stage, and reading them runs no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray_jobs.models import trainable
from ray_jobs.models.imports import import_deepspeed
from ray_jobs.spec import JobSpec
from ray_jobs.training.adamw import MOMENTS, adamw
from ray_jobs.training.checkpoint import State

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine


def engine_config(spec: JobSpec, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for a job."""
    compute = spec.compute
    # In bf16, DeepSpeed exposes its fp32 masters from stage 1 on; the numbers equal those of stage 0.
    zero: dict[str, Any] = {"stage": max(compute.zero_stage, int(bf16))}
    on_cpu = {"device": "cpu", "pin_memory": compute.gpus_per_worker > 0}
    if compute.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if compute.offload == "optimizer_and_parameters":
        zero["offload_param"] = on_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # steps may differ in their number of passes
        "gradient_clipping": spec.training.max_grad_norm or 0.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        # Every stage uses PyTorch's fused AdamW; DeepSpeed would compile its own on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


class DeepSpeedOptimizer:
    """`step.Optimizer` of a model wrapped in a DeepSpeed engine. The process group must exist."""

    def __init__(self, model: torch.nn.Module, spec: JobSpec, learning_rate: float, *, bf16: bool) -> None:
        import torch.distributed as dist

        deepspeed = import_deepspeed()
        # An all-reduce for inference in shared memory, which DeepSpeed would compile on a CPU at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        optimizer = adamw(list(trainable(model).values()), spec.training.weight_decay, learning_rate)
        self.engine: DeepSpeedEngine
        self.engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=engine_config(spec, bf16=bf16), dist_init_required=False
        )
        self._workers = dist.get_world_size()

    @property
    def module(self) -> torch.nn.Module:
        """The model without its wrapper."""
        module: torch.nn.Module = self.engine.module
        return module

    def backward(self, loss_sum: torch.Tensor, supervised: int) -> None:
        """Add the gradients of one pass to those of the mean over the step's `supervised` labels."""
        # DeepSpeed averages over the workers, and the step's gradient is their sum.
        self.engine.backward(loss_sum * (self._workers / supervised))

    def step(self, learning_rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    def gather(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """A collective: every worker must read it to the end. Only one weight is whole at a time."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        inner = _inner_optimizer(self.engine)
        _link_moments(self.engine)
        for name, parameter in trainable(self.module).items():
            if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):  # partitioned
                whole = {"weight": safe_get_full_fp32_param(parameter)}
                whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            else:
                state = inner.state[parameter]
                whole = {"weight": parameter.data} | {key: state[key] for key in MOMENTS}
            yield name, {key: tensor.detach().float().cpu().clone() for key, tensor in whole.items()}

    def restore(self, state: State, *, steps: int) -> None:
        """Set the fp32 masters and AdamW's moments. The module must already hold the weights, rounded to its dtype."""
        import torch

        inner = _inner_optimizer(self.engine)
        flats = [flat for group in inner.param_groups for flat in group["params"]]
        # ZeRO-3 lends its flat shards to the optimizer only while it steps.
        for flat in getattr(self.engine.optimizer, "fp32_partitioned_groups_flat", flats):
            inner.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        _link_moments(self.engine)
        for name, parameter in trainable(self.module).items():
            _restore_one(parameter, state[name], inner)


def _restore_one(parameter: torch.nn.Parameter, saved: dict[str, torch.Tensor], inner: torch.optim.Optimizer) -> None:
    from deepspeed import utils

    if hasattr(parameter, "ds_id"):
        # A ZeRO-3 shard: the whole weight, padded to a multiple of the workers and cut into equal parts.
        utils.safe_set_local_fp32_param(parameter, _shard(parameter, saved["weight"]))
        for key in MOMENTS:
            utils.safe_set_local_optimizer_state(parameter, _shard(parameter, saved[key]), key)
    elif hasattr(parameter, "_hp_mapping"):
        utils.safe_set_full_fp32_param(parameter, saved["weight"])
        for key in MOMENTS:
            utils.safe_set_full_optimizer_state(parameter, saved[key], key)
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
    """Link the weights to their moments. DeepSpeed does so only after the first group's first step, when the other
    groups have no moments yet."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _inner_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """PyTorch's AdamW beneath DeepSpeed's wrappers."""
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]  # DeepSpeed is untyped
