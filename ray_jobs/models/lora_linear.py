"""LoRA's layers in fewer passes over memory: the same numbers as PEFT's own forward, in less time.

y = x Wᵀ + b + s (x Aᵀ) Bᵀ: PEFT allocates the update, its scaled copy and the sum as three tensors of y's size, and
three more in the backward pass; here the update is added in place. Several adapters can have a part of x each, so a
search trains many on one base in one pass. PEFT's own forward handles every other case: dropout, other variants, and
weights that are split over workers or in 4 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """Tokens `start` to `end` of a layer's input, and the adapter that is applied to them."""

    start: int
    end: int
    down: torch.Tensor
    """(R, I)"""
    up: torch.Tensor
    """(O, R)"""
    scale: float


def use(model: torch.nn.Module) -> int:
    """Make a PEFT model's LoRA layers use this forward. Returns their number; 0 for any other model."""
    if not hasattr(model, "peft_config"):
        return 0
    from peft.tuners.lora.layer import Linear
    from torch import nn

    count = 0
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            fused = MethodType(_forward(module.forward), module)
            module.forward = fused  # type: ignore[method-assign]  # this layer only
            count += 1
    return count


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, parts: Sequence[Part]) -> torch.Tensor:
    """A frozen linear layer with an adapter on each part of its input, whose leading dimensions count as one.

    `x` is (…, I), `weight` (O, I), the result (…, O). Tokens in no part pass through the layer alone.
    """
    spans = tuple((part.start, part.end, part.scale) for part in parts)
    adapters = [matrix for part in parts for matrix in (part.down, part.up)]
    answer: torch.Tensor = _function().apply(x, weight, bias, spans, *adapters)
    return answer


def _forward(plain: Any) -> Any:
    """A forward that falls back to `plain`, PEFT's own."""
    from torch import nn

    def forward(layer: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        name = _only_adapter(layer)
        if name is None or arguments or options or not isinstance(layer.lora_dropout[name], nn.Identity):
            return plain(x, *arguments, **options)  # type: ignore[no-any-return]  # PEFT is untyped
        base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        split = any(hasattr(weight, "ds_id") for weight in (base.weight, down, up))
        if split or base.weight.requires_grad or not x.dtype == base.weight.dtype == down.dtype == up.dtype:
            return plain(x)  # type: ignore[no-any-return]  # likewise
        whole = Part(0, x.numel() // x.shape[-1], down, up, layer.scaling[name])
        return linear(x, base.weight, base.bias, [whole])

    return forward


def _only_adapter(layer: Any) -> str | None:
    """The one active adapter of a layer in the plain case."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.lora_A:
        return None
    plain = active[0] not in layer.lora_variant and layer.lora_B[active[0]].bias is None
    return str(active[0]) if plain else None


@lru_cache(maxsize=1)
def _function() -> Any:
    """The layer with hand-written gradients; a class made here because importing this module must not load torch.

    Shapes: N tokens, I and O features, R an adapter's rank.
    """
    import torch

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight_OI: Any, bias_O: Any, spans: Any, *adapters: Any) -> Any:
            x_NI = x.reshape(-1, x.shape[-1])
            y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
            inner = []
            for (start, end, scale), down_RI, up_OR in zip(spans, adapters[::2], adapters[1::2], strict=True):
                inner.append(x_NI[start:end] @ down_RI.t())
                y_NO[start:end].addmm_(inner[-1], up_OR.t(), alpha=scale)
            ctx.save_for_backward(x_NI, weight_OI, *inner, *adapters)
            ctx.spans, ctx.shape = spans, x.shape
            return y_NO.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x_NI, weight_OI, *saved = ctx.saved_tensors
            count = len(ctx.spans)
            inner, adapters = saved[:count], saved[count:]
            grad_NO = grad.reshape(-1, grad.shape[-1])
            x_grad_NI = grad_NO @ weight_OI if ctx.needs_input_grad[0] else None
            grads = []
            for i, (start, end, scale) in enumerate(ctx.spans):
                down_RI, up_OR = adapters[2 * i : 2 * i + 2]
                part_NO = grad_NO[start:end]
                inner_grad_NR = (part_NO @ up_OR).mul_(scale)
                grads += [inner_grad_NR.t() @ x_NI[start:end], (part_NO.t() @ inner[i]).mul_(scale)]
                if x_grad_NI is not None:
                    x_grad_NI[start:end].addmm_(inner_grad_NR, down_RI)
            x_grad = None if x_grad_NI is None else x_grad_NI.view(ctx.shape)
            return x_grad, None, None, None, *grads

    return Layer
