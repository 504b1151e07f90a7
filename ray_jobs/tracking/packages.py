"""Which trackers' packages are installed: checked before a job costs anything."""

from __future__ import annotations

from importlib.util import find_spec

from ray_jobs.errors import MachineError
from ray_jobs.spec import TrackingSection

MODULES = {"mlflow": "mlflow", "wandb": "wandb"}
"""The module of each field of the section `tracking`; the extra has the field's name."""


def require_packages(tracking: TrackingSection) -> None:
    """Raise MachineError naming each configured tracker whose package is missing."""
    missing = [name for name in MODULES if getattr(tracking, name) is not None and not is_installed(name)]
    if missing:
        raise MachineError(
            "a tracker's package is not installed: `make setup` installs them all (the image has them); or remove the "
            "tracker from the job file",
            details=[f"tracking.{name}: the package {MODULES[name]} is missing" for name in missing],
        )


def is_installed(name: str) -> bool:
    """Whether the package of a tracker is installed. Imports nothing."""
    return find_spec(MODULES[name]) is not None
