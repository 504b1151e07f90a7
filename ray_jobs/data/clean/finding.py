"""A finding, and the interface of a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from ray_jobs.data.clean.folding import fold, lower
from ray_jobs.spec.personal_data import Kind


class Finding(NamedTuple):
    """A value of a kind, at `text[start:end]`. It does not hold the value."""

    kind: Kind
    start: int
    end: int


class FoldedText:
    """A text in the forms that detectors read. All three have the same length."""

    def __init__(self, text: str) -> None:
        self.original = text
        self.folded = fold(text)

    @cached_property
    def lowered(self) -> str:
        return lower(self.folded)


Detector = Callable[[FoldedText], Iterable[Finding]]
"""Yields the findings of one or more kinds; in linear time, since a text may have megabytes."""
