"""The current champion on the test rows of a new version. Owns whether the two can be compared, and its weights.

The decision whether the alias moves is in `gate.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ray_jobs import models
from ray_jobs.registry.model import ModelVersion
from ray_jobs.spec import JobSpec

if TYPE_CHECKING:
    import torch

_ADAPTER = "champion"


class Champion(BaseModel, frozen=True):
    """The version that the alias `champion` points at when a new one is evaluated."""

    version: str
    key: str
    """Its tree in the team's workspace."""
    incomparable: str = ""
    """Why its losses cannot be compared with those of the new version. Empty: they can."""


def champion_of(version: ModelVersion, spec: JobSpec, base_digest: str, labels: Sequence[str]) -> Champion:
    """The champion as a new version's evaluation needs it. Pure."""
    reasons = [
        (version.task != spec.task, f"its task is {version.task}"),
        (version.base_digest != base_digest, "it has another base, which may divide texts into other tokens"),
        (tuple(version.labels) != tuple(labels), "it has other labels"),
    ]
    return Champion(
        version=version.version, key=version.key, incomparable="; ".join(reason for is_so, reason in reasons if is_so)
    )


@contextmanager
def champion_model(
    candidate: torch.nn.Module, tree: Path, base: Path | None, spec: JobSpec, labels: Sequence[str]
) -> Iterator[torch.nn.Module]:
    """The champion from its files, on the candidate's device; an adapter is put beside the candidate's on one base."""
    is_adapter = (tree / "adapter_config.json").is_file()
    if is_adapter and hasattr(candidate, "peft_config"):
        shared: Any = candidate
        own = shared.active_adapter
        shared.load_adapter(str(tree), adapter_name=_ADAPTER)
        shared.set_adapter(_ADAPTER)
        try:
            yield candidate
        finally:
            shared.set_adapter(own)
            shared.delete_adapter(_ADAPTER)
        return
    dtype = models.resolve_precision(spec)
    model: torch.nn.Module = models.load_published(tree, base if is_adapter else None, spec.task, labels, dtype)
    yield model.to(next(candidate.parameters()).device)
