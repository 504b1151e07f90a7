"""Trials on a frozen backbone: its features of each row are computed once, and a trial runs only the trained layers.

The model is cut below the trained layers: a classifier before its head, a causal model before the first block that any
trial trains. The upper part reads the lower part's output in place of its embeddings. Some rows check that both parts
together equal the whole model; otherwise the trials cannot share.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.models import heads
from ray_jobs.sharing.adapters import TrialRows, share
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Batch, Example
from ray_jobs.training.batching import is_packed
from ray_jobs.training.scoring import run_sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CHECKED_ROWS = 4
_CLOSE = {"fp32": 1e-4, "bf16": 0.05}
"""Largest relative difference between the model and its two parts."""
_MEMORY_SHARE = 0.25
"""Largest share of the free memory for the features."""


class Unshareable(Exception):
    """Raised when trials cannot share; the text is the reason."""


@dataclass
class SharedFeatures:
    """The features of all rows, and the upper part of the model for each trial."""

    spec: JobSpec
    directory: Path
    upper: PreTrainedModel
    given: Any
    """The module in place of the embeddings; returns its `now.hidden`, set by thread."""
    features: dict[Example, torch.Tensor]
    """(T, H) by row; (1, H) if the head reads only the first token."""
    device: torch.device
    packed: bool
    first_token: bool
    blocks: dict[str, str] = field(default_factory=dict)
    """Prefix of each block of the upper part → its prefix in the whole model."""
    mixes: bool = False
    _trials: dict[str, torch.nn.Module] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        spec: JobSpec,
        directory: Path,
        labels: Sequence[str],
        rows: Encoded,
        held_out: Encoded,
        device: torch.device,
        depth: int,
    ) -> SharedFeatures:
        """Run all rows through the lower part once. `depth`: blocks above the cut of a causal model.

        Raises Unshareable when the model cannot be cut or the features do not fit into memory.
        """
        import torch

        base = models.build_base(spec, directory, labels, run_sample=lambda model: run_sample(model, spec, rows))
        base.requires_grad_(False)
        base.to(device)  # type: ignore[arg-type]  # a device is what it takes
        base.train(False)
        first_token = TASKS[spec.task].required_base.frozen_features == "first_token"
        packed = is_packed(spec)
        upper = share(base, ())
        lower, given = _cut(upper, base, depth=depth, first_token=first_token)
        _check_room(base, rows, held_out, first_token=first_token)
        made = cls(spec, directory, upper, given, {}, device, packed, first_token)
        if not first_token:
            made.blocks = dict(zip(models.block_prefixes(upper), models.block_prefixes(base)[-depth:], strict=True))
        with torch.no_grad():
            for part in (rows, held_out):
                for i in range(len(part)):
                    if part[i] not in made.features:
                        made.features[part[i]] = made._run_lower(base, lower, part[i])
            made._check(base, [rows[i] for i in range(min(_CHECKED_ROWS, len(rows)))])
        return made

    def add(self, name: str, spec: JobSpec) -> dict[str, torch.nn.Parameter]:
        """Add a trial. Returns its trainable weights with their initial values, by their names in the whole model."""
        trained = heads.head_names(self.upper)
        if not self.first_token:
            trained = tuple(models.block_prefixes(self.upper)[-spec.training.trainable_blocks :])
        own = share(self.upper, trained, [self.given])
        heads.draw(own, self.directory, spec.training.seed, keep_pooler=True)
        plain = spec.training.model_copy(update={"gradient_checkpointing": False})
        self._trials[name] = models.attach(own, plain, spec.task).train()
        return {self._whole_name(path): weight for path, weight in models.trainable(self._trials[name]).items()}

    def _whole_name(self, path: str) -> str:
        prefix = next((prefix for prefix in self.blocks if path.startswith(prefix)), "")
        return self.blocks.get(prefix, "") + path.removeprefix(prefix)

    def remove(self, name: str) -> None:
        del self._trials[name]

    def tokens(self, example: Example) -> int:
        """1 for a head that reads only the first token."""
        return 1 if self.first_token else len(example.input_ids)

    def logits(self, parts: Sequence[TrialRows]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run one pass a part. Returns for each its predictions, (S, V) or (S, C), and the targets of its labels."""
        return [self._logits(self._trials[name], rows) for name, rows in parts]

    def _logits(self, model: torch.nn.Module, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self._batch(examples)
        self.given.now.hidden = self.hidden(examples)
        return TASKS[self.spec.task].logits(model, batch), batch.targets_S

    def _batch(self, examples: Sequence[Example]) -> Batch:
        if self.first_token:
            examples = [Example(example.input_ids[:1], example.labels) for example in examples]
        return self._whole(examples)

    def hidden(self, examples: Sequence[Example]) -> torch.Tensor:
        """The rows' features in the shape of embeddings: (1, T, H) packed, else (B, T, H)."""
        import torch

        parts = [self.features[example] for example in examples]
        if self.packed:
            return torch.cat(parts)[None]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def _run_lower(self, base: PreTrainedModel, lower: str, example: Example) -> torch.Tensor:

        seen: list[torch.Tensor] = []
        module = base.get_submodule(lower)
        # Keep the first argument of the first block above the cut, or of the head.
        handle = module.register_forward_pre_hook(
            lambda _, args, options: seen.append((args[0] if args else options["hidden_states"]).detach()),
            with_kwargs=True,
        )
        try:
            TASKS[self.spec.task].logits(base, self._whole([example]))
        finally:
            handle.remove()
        hidden_TH = seen[0][0]
        return hidden_TH[:1].clone() if self.first_token else hidden_TH

    def _whole(self, examples: Sequence[Example]) -> Batch:
        return TASKS[self.spec.task].collate(examples, packed=self.packed, pad_id=0).to(self.device)

    def _check(self, base: PreTrainedModel, examples: Sequence[Example]) -> None:
        expected = TASKS[self.spec.task].logits(base, self._whole(examples)).float()
        found, _ = self._logits(self.upper, examples)
        gap = float((expected - found.float()).abs().max() / expected.abs().max().clamp_min(1e-6))
        if not gap <= _CLOSE[models.precision_name(self.spec)]:
            raise Unshareable(f"{type(base).__name__} cut in two is not the whole model ({gap:.1e} apart)")


def _cut(upper: PreTrainedModel, base: PreTrainedModel, *, depth: int, first_token: bool) -> tuple[str, Any]:
    """Remove the lower part. Returns the module whose input is the features, and the one in place of the embeddings."""
    import torch

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.now = threading.local()

        def forward(self, *_: object, **__: object) -> Any:
            return self.now.hidden

    given = Given()
    blocks = models.block_prefixes(upper)
    path = blocks[0].rsplit(".", 2)[0]
    if first_token:
        inner = getattr(upper, upper.base_model_prefix)
        if not hasattr(inner, "embeddings"):
            raise Unshareable(f"{type(base).__name__} has no `embeddings` that the features could replace")
        _replace(upper, path, torch.nn.ModuleList())
        inner.embeddings = given
        head = next(iter(heads.head_names(base)), "")
        modules = [name for name, _ in base.named_modules() if f"{name}." in heads.head_names(base)]
        if not head or not modules:
            raise Unshareable(f"{type(base).__name__} has no head of its own")
        pooler = [name for name in modules if name.endswith("pooler")]
        return (pooler or modules)[0], given
    every: Any = upper.get_submodule(path)
    kept = list(every)[len(blocks) - depth :]
    _replace(upper, path, torch.nn.ModuleList(kept))
    upper.set_input_embeddings(given)
    return f"{path}.{len(blocks) - depth}", given


def _replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check_room(base: PreTrainedModel, rows: Encoded, held_out: Encoded, *, first_token: bool) -> None:
    import psutil

    tokens = len(rows) + len(held_out) if first_token else sum(rows.lengths) + sum(held_out.lengths)
    weight = next(base.parameters())
    needed = tokens * int(base.config.hidden_size) * weight.element_size()
    free = _MEMORY_SHARE * psutil.virtual_memory().available
    if weight.is_cuda:
        import torch

        free = _MEMORY_SHARE * torch.cuda.mem_get_info()[0]
    if needed > free:
        raise Unshareable(
            f"the features of {tokens} tokens take {needed / 2**30:.1f} GiB, more than a quarter of the free memory"
        )
