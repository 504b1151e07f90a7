"""Imports of large libraries without a package that they import for a part that nothing here uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Let a package count as not installed, unless it is imported already."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]  # the import system's mark of an absent module
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def import_transformers() -> Any:
    """transformers without scikit-learn, which only its assisted generation uses: 1.7 of 6.3 s of every start."""
    with absent("sklearn"):
        import transformers

        transformers.utils.import_utils.is_sklearn_available()  # asked once for the whole process
    return transformers


def import_deepspeed() -> Any:
    """DeepSpeed without MLflow, which only its tuner uses: 2.5 s of every process that trains."""
    with absent("mlflow"):
        import deepspeed
    return deepspeed
