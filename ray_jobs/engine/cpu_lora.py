"""LoRA adapters on CPUs, exact and fast. Loaded by vLLM alone, as the `worker_cls` of a CPU engine with adapters.

vLLM 0.29's CPU fallback (vllm/lora/punica_wrapper/punica_cpu.py) copies an adapter's matrices once for every token, and
takes index -1, which marks a token without adapter, as the last slot: once every slot is filled, requests to the base
are answered with another model's adapter. Here the tokens of one adapter go through its matrices together, and tokens
without one through none.

Shapes: N tokens, I inputs, O outputs, R rank, L slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker.cpu_worker import CPUWorker

TokenGroup = tuple[int, torch.Tensor | None]
"""An adapter's slot and the positions of its tokens; None: all of them."""


class Worker(CPUWorker):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's CPU worker with these adapters."""

    def init_device(self) -> None:
        CpuPlatform.get_punica_wrapper = classmethod(  # vLLM reads this hook of its platform, and has no other
            lambda cls: f"{GroupedLora.__module__}.{GroupedLora.__name__}"
        )
        super().init_device()


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM's types are not followed
    """Applies adapters a group of tokens at a time. The names and signatures are vLLM's."""

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        self._token_groups = groups_of(self.token_lora_indices)
        self._sampler_groups = groups_of(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        x_NI, y_NO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        start = 0
        for a_LRI, b_LOR, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            add_updates(y_NO[:, start : start + size], x_NI, a_LRI, b_LOR, scale, self._token_groups)
            start += size

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        x_NI, y_NO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        add_updates(y_NO, x_NI, lora_a_stacked, lora_b_stacked, scale, self._sampler_groups)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        x_NR, y_NO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        add_updates(y_NO, x_NR, None, lora_b_stacked, 1.0, self._token_groups)


def groups_of(slots_N: torch.Tensor) -> list[TokenGroup]:
    """The adapters in a batch and their tokens; tokens without an adapter (-1) are in no group."""
    slots: Sequence[int] = torch.unique(slots_N).tolist()
    if len(slots) == 1:
        return [] if slots[0] < 0 else [(slots[0], None)]
    return [(slot, (slots_N == slot).nonzero().squeeze(1)) for slot in slots if slot >= 0]


def add_updates(
    y_NO: torch.Tensor,
    x_NI: torch.Tensor,
    a_LRI: torch.Tensor | None,
    b_LOR: torch.Tensor,
    scale: float,
    groups: Sequence[TokenGroup],
) -> None:
    """`y[n] += scale * B[slot] A[slot] x[n]` for each token's slot, in place. `a_LRI` None: x is A x already."""
    for slot, positions in groups:
        part = x_NI if positions is None else x_NI[positions]
        part = part.to(b_LOR.dtype)
        if a_LRI is not None:
            part = part @ a_LRI[slot].flatten(0, -2).T
        update = part @ b_LOR[slot].flatten(0, -2).T
        width = min(update.shape[1], y_NO.shape[1])  # vLLM may pad either
        update = (update[:, :width] * scale).to(y_NO.dtype)
        if positions is None:
            y_NO[: update.shape[0], :width] += update
        else:
            y_NO[positions, :width] += update
