"""The job file's `data.split`: the shares of the three sides, and what keeps rows together or orders them."""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, model_validator

from ray_jobs.spec.problems import quoted
from ray_jobs.spec.section import SpecSection

_PART = r"[0-9]{1,4}(?:\.[0-9]{1,3})?"
_RATIO = re.compile(rf"({_PART}):({_PART}):({_PART})")
SMALL = 1000
"""Fewer rows are split 8:1:1, more 18:1:1."""


class Shares(NamedTuple):
    """Shares of the rows, which add up to 1."""

    train: float
    validation: float
    test: float


def _checked(text: str) -> str:
    found = _RATIO.fullmatch(text)
    if found is None or not all(map(float, found.groups())):
        raise ValueError(
            f"is {quoted(text)}; it must be three numbers above 0, for training, validation and test, such as 7:1:2"
        )
    return text


Ratio = Annotated[str, AfterValidator(_checked)]


class SplitSection(SpecSection):
    """How the rows are split; a text such as `7:1:2` is the ratio."""

    ratio: Ratio | None = None
    """Rows for training, validation and test, such as `7:1:2`. None: `8:1:1` below 1,000 rows, else `18:1:1`."""
    group: str | None = None
    """Column of the file, such as a user or a document: rows with one value are on one side. None: no such column."""
    time: str | None = None
    """Column of the file with dates or numbers: the newest rows are tested, those before them validated. None: the
    sides are random."""

    @model_validator(mode="before")
    @classmethod
    def _ratio_alone(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):  # YAML 1.1 reads 7:1:2 as 25262
            raise ValueError(f'is {value}; write the ratio in quotes, such as "7:1:2"')
        return {"ratio": value} if isinstance(value, str) else value

    def shares(self, rows: int) -> Shares:
        """The shares for this number of rows."""
        found = _RATIO.fullmatch(self.ratio or ("8:1:1" if rows < SMALL else "18:1:1"))
        assert found is not None  # validated
        parts = [float(part) for part in found.groups()]
        return Shares(*(part / sum(parts) for part in parts))
