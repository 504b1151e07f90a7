"""A search space as a job file has it: ranges and lists of values, and the points in it. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ray_jobs.spec.section import SpecSection
from ray_jobs.spec.sections import TrainingSection


class Range(SpecSection):
    min: float
    """Least value."""
    max: float
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """`log`: as likely between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min >= self.max:
            raise ValueError(f"the range from {self.min:g} to {self.max:g} is empty: min must be below max")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"a log range cannot begin at {self.min:g}: min must be above 0")
        return self

    def __contains__(self, value: float) -> bool:
        return self.min <= value <= self.max


RANGE, LIST = "a range", "a list"
FieldSpace = Annotated[
    # The whole job is validated with each value.
    Annotated[Range, Tag(RANGE)] | Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000), Tag(LIST)],
    Discriminator(lambda given: RANGE if isinstance(given, dict | Range) else LIST),
]
"""The values of one field that a search tries."""

Space = dict[str, Range | tuple[Any, ...]]
"""The values of each searched field, such as `lora.rank`."""


def is_whole(name: str) -> bool:
    """Whether a searched field is an integer."""
    section: Any = TrainingSection
    *path, field = name.split(".")
    for part in path:
        section = section.model_fields[part].annotation
    kind = section.model_fields[field].annotation if field in section.model_fields else None
    return kind is int or kind == (int | None)


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the listed values."""
    lists: list[tuple[Any, ...]] = [values for values in space.values() if not isinstance(values, Range)]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]


def fits(space: Space, params: Mapping[str, Any]) -> bool:
    """Whether values cover exactly the fields of a space and are within it."""
    return set(params) == set(space) and all(params[name] in values for name, values in space.items())


def nearest(values: Range | tuple[Any, ...], own: Any) -> Any:
    """A field's own value if it is among those of the space, else the nearest one, else the first."""
    if isinstance(values, Range):
        return values.min if own is None else min(values.max, max(values.min, own))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if own in values or not numbers:
        return own if own in values else values[0]
    return min(values, key=lambda value: abs(value - (own or 0)))
