"""LoRA trials on one base: each row of a pass goes through its own trial's adapter and head.

PEFT makes every adapter on a copy of the base's modules that shares its weights, so that names, initial values and
target layers equal those of a training of its own. Only the forward pass is ours: the base's layers run once over the
rows of all trials (`lora_linear.linear`), which are in the order of their trials.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.models import heads, lora_linear
from ray_jobs.models.lora_linear import Part
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example
from ray_jobs.training.batching import is_packed
from ray_jobs.training.scoring import run_sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TrialRows = tuple[str, Sequence[Example]]
"""A trial's name, and its rows in a pass."""


@dataclass(frozen=True)
class Adapter:
    """One trial's own weights."""

    weights: dict[str, torch.nn.Parameter]
    """By the names they have in a training of its own."""
    layers: dict[str, tuple[torch.Tensor, torch.Tensor, float]]
    """(A, B, scale) by target layer."""
    heads: dict[str, torch.nn.Module]


@dataclass
class SharedLora:
    """One base model and the adapters of the trials on it."""

    spec: JobSpec
    """The spec of any trial: the fields used here are equal in all of them."""
    directory: Path
    base: PreTrainedModel
    device: torch.device
    packed: bool
    mixes: bool = True
    _adapters: dict[str, Adapter] = field(default_factory=dict)
    _routed: set[str] = field(default_factory=set)
    _now: Any = field(init=False)
    """For the current pass: (adapter, start, end) of each trial in its `tokens`, laid end to end, and in its `rows`."""

    def __post_init__(self) -> None:
        # On a CPU each thread has a pass. On a GPU there is one at a time, but gradient checkpointing repeats its
        # forward in a thread of autograd's.
        self._now = threading.local() if self.device.type == "cpu" else SimpleNamespace()

    @classmethod
    def load(
        cls, spec: JobSpec, directory: Path, labels: Sequence[str], rows: Encoded, device: torch.device
    ) -> SharedLora:
        """Load the base. `rows`: the training rows; a new classifier's pooler is standardised over some of them."""
        packed = is_packed(spec)
        base = models.build_base(
            spec,
            directory,
            labels,
            by_row=packed and device.type == "cpu",
            run_sample=lambda model: run_sample(model, spec, rows),
        )
        if spec.training.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()  # type: ignore[no-untyped-call]  # transformers is half typed
        base.requires_grad_(False)
        base.train()
        return cls(spec, directory, base.to(device), device, packed)  # type: ignore[arg-type]  # transformers types `to` otherwise

    def add(self, name: str, spec: JobSpec) -> dict[str, torch.nn.Parameter]:
        """Add a trial. Returns its trainable weights with their initial values. Raises what `models.attach` raises."""
        from peft.tuners.lora.layer import LoraLayer
        from peft.utils import ModulesToSaveWrapper

        skeleton = share(self.base, heads.head_names(self.base))
        heads.draw(skeleton, self.directory, spec.training.seed, keep_pooler=True)
        plain = spec.training.model_copy(update={"gradient_checkpointing": False})  # already enabled on the base
        adapted = models.attach(skeleton, plain, spec.task)
        adapter = Adapter(models.trainable(adapted), {}, {})
        for path, module in adapted.named_modules():
            inside = path.removeprefix("base_model.model.")
            if isinstance(module, LoraLayer):
                layer: Any = module
                down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                adapter.layers[inside] = (down, up, layer.scaling["default"])
            elif isinstance(module, ModulesToSaveWrapper):
                adapter.heads[inside] = module.modules_to_save["default"]
        for path in adapter.layers:
            self._route(path, self._layer_forward)
        for path in adapter.heads:
            self._route(path, self._head_forward)
        self._adapters[name] = adapter
        return adapter.weights

    def remove(self, name: str) -> None:
        del self._adapters[name]

    def tokens(self, example: Example) -> int:
        return len(example.input_ids)

    def logits(self, parts: Sequence[TrialRows]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run one pass. Returns for each part its predictions, (S, V) or (S, C), and the targets of its labels."""
        import torch

        task = TASKS[self.spec.task]
        examples = [example for _, share in parts for example in share]
        batch = task.collate(examples, packed=self.packed, pad_id=0).to(self.device)
        width = 0 if self.packed else int(batch.inputs["input_ids"].shape[1])
        self._now.tokens, self._now.rows = [], []
        row = token = 0
        for name, share in parts:
            tokens = sum(len(example.input_ids) for example in share) if self.packed else width * len(share)
            self._now.tokens.append((self._adapters[name], token, token + tokens))
            self._now.rows.append((self._adapters[name], row, row + len(share)))
            row, token = row + len(share), token + tokens
        whole = task.logits(self.base, batch)
        counts = [_targets(share, task.packs) for _, share in parts]
        return list(zip(torch.split(whole, counts), torch.split(batch.targets_S, counts), strict=True))

    def _route(self, path: str, forward: Callable[[str, torch.nn.Module], Callable[..., torch.Tensor]]) -> None:
        if path not in self._routed:
            module = self.base.get_submodule(path)
            module.forward = forward(path, module)
            self._routed.add(path)

    def _layer_forward(self, path: str, module: torch.nn.Module) -> Callable[..., torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            layer: Any = module
            parts = [
                Part(start, end, *adapter.layers[path])
                for adapter, start, end in self._now.tokens
                if path in adapter.layers
            ]
            return lora_linear.linear(x, layer.weight, layer.bias, parts)

        return forward

    def _head_forward(self, path: str, module: torch.nn.Module) -> Callable[..., torch.Tensor]:
        import torch

        def forward(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([adapter.heads[path](x[start:end]) for adapter, start, end in self._now.rows])

        return forward


def share(model: PreTrainedModel, own: tuple[str, ...], modules: Sequence[object] = ()) -> PreTrainedModel:
    """Copy a model's modules but not its weights, except those whose names begin with one of `own`.

    `modules` are not copied.
    """
    kept: dict[int, object] = {id(p): p for n, p in model.named_parameters() if not (own and n.startswith(own))}
    kept |= {id(same): same for same in [*model.buffers(), *modules]}
    # Copying a replaced `forward` would copy the weights it closes over.
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if forward is not None:
            kept[id(forward)] = forward
    made = copy.deepcopy(model, kept)
    for module in made.modules():
        module.__dict__.pop("forward", None)
    return made


def _targets(examples: Sequence[Example], packs: bool) -> int:
    """Labels in the loss; a row's first token is never predicted."""
    if not packs:
        return len(examples)
    return sum(example.supervised - (example.labels[0] != IGNORED) for example in examples)
