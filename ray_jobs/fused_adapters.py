"""LoRA's layers in fewer passes over memory: the same numbers as PEFT's own forward, in less time.

y = x Wᵀ + b + s (x Aᵀ) Bᵀ: PEFT makes the update, its scaled copy and the sum as three tensors as large as y, and as
many again backward; here the update is added where y is written. Whatever is not the plain case (dropout, another
variant, weights that are split over workers or in 4 bits) is left to PEFT.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def use(model: torch.nn.Module) -> int:
    """Let a PEFT model's LoRA layers compute so. How many can; 0 for any other model."""
    if not hasattr(model, "peft_config"):
        return 0
    from peft.tuners.lora.layer import Linear
    from torch import nn

    layer_function = _function()
    count = 0
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            fused = MethodType(_forward(layer_function, module.forward), module)
            module.forward = fused  # type: ignore[method-assign]  # of this layer alone
            count += 1
    return count


def _forward(function: Any, plain: Any) -> Any:
    """A forward that falls back to `plain`, PEFT's own."""
    from torch import nn

    def forward(layer: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        name = _only_adapter(layer)
        if name is None or arguments or options or not isinstance(layer.lora_dropout[name], nn.Identity):
            return plain(x, *arguments, **options)  # type: ignore[no-any-return]  # PEFT is untyped
        base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        split = any(hasattr(weight, "ds_id") for weight in (base.weight, down, up))
        if split or base.weight.requires_grad or not x.dtype == base.weight.dtype == down.dtype == up.dtype:
            return plain(x)  # type: ignore[no-any-return]
        return function.apply(x, base.weight, base.bias, down, up, layer.scaling[name])  # type: ignore[no-any-return]

    return forward


def _only_adapter(layer: Any) -> str | None:
    """The one active adapter of a layer in the plain case."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.lora_A:
        return None
    plain = active[0] not in layer.lora_variant and layer.lora_B[active[0]].bias is None
    return str(active[0]) if plain else None


def _function() -> Any:
    """The layer with its gradients by hand (a class, made here because importing this module must not load torch).

    Shapes: N tokens, I and O features, R the rank.
    """
    import torch

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight_OI: Any, bias_O: Any, down_RI: Any, up_OR: Any, scale: float) -> Any:
            x_NI = x.reshape(-1, x.shape[-1])
            inner_NR = x_NI @ down_RI.t()
            y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
            y_NO.addmm_(inner_NR, up_OR.t(), alpha=scale)
            ctx.save_for_backward(x_NI, inner_NR, weight_OI, down_RI, up_OR)
            ctx.scale, ctx.shape = scale, x.shape
            return y_NO.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x_NI, inner_NR, weight_OI, down_RI, up_OR = ctx.saved_tensors
            grad_NO = grad.reshape(-1, grad.shape[-1])
            inner_grad_NR = (grad_NO @ up_OR).mul_(ctx.scale)
            down_grad_RI = inner_grad_NR.t() @ x_NI
            up_grad_OR = (grad_NO.t() @ inner_NR).mul_(ctx.scale)
            x_grad = None
            if ctx.needs_input_grad[0]:
                x_grad = (grad_NO @ weight_OI).addmm_(inner_grad_NR, down_RI).view(ctx.shape)
            return x_grad, None, None, down_grad_RI, up_grad_OR, None

    return Layer
