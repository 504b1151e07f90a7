"""AdamW for every training, and an optimizer over fp32 master weights for trials that share a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ray_jobs.models import resolve_precision
from ray_jobs.spec import JobSpec
from ray_jobs.training.checkpoint import State

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two running means, by PyTorch's names."""


def adamw(weights: Sequence[torch.nn.Parameter], weight_decay: float, learning_rate: float) -> torch.optim.AdamW:
    """PyTorch's fused AdamW. Biases and norms do not decay."""
    import torch

    parts = (([p for p in weights if p.ndim >= 2], weight_decay), ([p for p in weights if p.ndim < 2], 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in parts if params]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


class MasterWeights:
    """`step.Optimizer` in one process without DeepSpeed; computes what DeepSpeed computes in ZeRO stage 0.

    In bf16 it steps fp32 copies of the weights; in fp32 it steps the weights themselves.
    """

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], spec: JobSpec) -> None:
        import torch

        self._max_grad_norm, self._masters = spec.training.max_grad_norm, dict(weights)
        if resolve_precision(spec) is not torch.float32:
            self._masters = {n: torch.nn.Parameter(w.detach().float().clone()) for n, w in weights.items()}
            for weight in weights.values():
                weight.data = weight.data.to(torch.bfloat16)
        self._pairs = list(zip(weights.values(), self._masters.values(), strict=True))
        """Each weight and its master: the weight itself in fp32."""
        self._adamw = adamw(list(self._masters.values()), spec.training.weight_decay, 0.0)

    def step(self, learning_rate: float) -> None:
        import torch

        for weight, master in self._pairs:
            master.grad = None if weight.grad is None else weight.grad.float()
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._masters.values(), self._max_grad_norm)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear_gradients()
        with torch.no_grad():
            for weight, master in self._pairs:
                weight.copy_(master)

    def clear_gradients(self) -> None:
        """Drop the gradients of passes whose step is not taken."""
        for weight, master in self._pairs:
            weight.grad = master.grad = None

    def gather(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for name, master in self._masters.items():
            whole = {"weight": master} | {key: self._adamw.state[master][key] for key in MOMENTS}
            yield name, {key: tensor.detach().float().cpu().clone() for key, tensor in whole.items()}

    def restore(self, state: State, *, steps: int) -> None:
        """Set the masters and moments; the weights become the masters, rounded to their dtype."""
        import torch

        with torch.no_grad():
            for name, (weight, master) in zip(self._masters, self._pairs, strict=True):
                saved = state[name]
                master.copy_(saved["weight"])
                weight.copy_(master)
                moments = {key: saved[key].to(master.device).clone() for key in MOMENTS}
                self._adamw.state[master] = {"step": torch.tensor(float(steps), device=master.device), **moments}
