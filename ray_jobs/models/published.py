"""The files of a registered model: an adapter with its head, or a whole model, as safetensors, and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.models.load import load_base
from ray_jobs.tasks import TASKS

if TYPE_CHECKING:
    import torch

_WEIGHTS = "model.safetensors"


def save_published(model: torch.nn.Module, processor: Any, directory: Path) -> None:
    """Write what is registered. `processor` None: the task has none."""
    whole: Any = model
    if hasattr(whole, "save_pretrained"):
        # PEFT would otherwise ask the hub whether the vocabulary was changed.
        options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        whole.save_pretrained(str(directory), safe_serialization=True, **options)
    else:
        from safetensors.torch import save_model

        directory.mkdir(parents=True, exist_ok=True)
        save_model(model, str(directory / _WEIGHTS))
    if processor is not None:
        processor.save_pretrained(str(directory))


def load_published(directory: Path, base: Path | None, task: str, labels: Sequence[str], dtype: torch.dtype) -> Any:
    """Read what `save_published` wrote: an adapter over `base`, or (None) a whole model. In evaluation mode."""
    model: Any
    if TASKS[task].base is None:
        from safetensors.torch import load_model

        model = TASKS[task].new_model(labels, seed=0)
        load_model(model, str(directory / _WEIGHTS))
    elif base is None:
        model = load_base(directory, task, labels, dtype, seed=0)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(base, task, labels, dtype, seed=0), str(directory))
    return model.train(False)
