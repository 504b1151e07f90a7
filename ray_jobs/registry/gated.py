"""Which versions may answer for a name, be tried on its requests, or be shared: those that passed the gate.

Owns the one check. The candidate of a job is registered after the gate and parity. `gated: false` are a published
checkpoint, which is not evaluated, and a candidate whose test rows were too few to judge it: their own team calls them
by their names (`ckpt-step-N`, `NAME@VERSION`). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.errors import RegistryError
from ray_jobs.registry.api_names import CHECKPOINT_ALIAS
from ray_jobs.registry.model import ModelVersion


def require_gated(version: ModelVersion, use: str, *, ungated: bool = False) -> None:
    """Raise RegistryError for a version that did not pass the gate. `use`: what it would do, such as "be shared".

    `ungated`: the operator accepts it all the same.
    """
    if ungated or version.lineage.gated:
        return
    reason = version.lineage.not_judged or "it is a checkpoint, which is not evaluated"
    raise RegistryError(
        f"{version.name}@{version.version} has not passed the gate (better than its base on test rows, and the same "
        f"answers served as trained), so it cannot {use}: {reason}. Its own team calls it by its name. --ungated "
        "overrides the gate, and the audit log records it"
    )


def require_gated_for_alias(version: ModelVersion, alias: str, *, ungated: bool = False) -> None:
    """Raise RegistryError as `require_gated`. A checkpoint's own name, `ckpt-step-N`, needs no gate."""
    if CHECKPOINT_ALIAS.fullmatch(alias) is None:
        require_gated(version, f"be {version.name}@{alias}", ungated=ungated)


def newest(found: Sequence[ModelVersion]) -> ModelVersion | None:
    """The version that a name without an alias means: the newest that passed the gate, else the newest.

    `found`: the versions of a model, oldest first. None: there are none.
    """
    gated = [version for version in found if version.lineage.gated]
    return next(reversed(gated or found), None)
