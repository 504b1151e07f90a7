"""The report of a preparation: what every step did to the rows, and what the dataset holds. No I/O.

It is stored beside the dataset and holds no value of personal data: `clean.samples.masked` is applied to every sample.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Step = Literal[
    "mojibake",
    "invisible",
    "nfkc",
    "boilerplate",
    "length",
    "personal_data",
    "exact_duplicates",
    "near_duplicates",
    "conflicts",
    "outliers",
    "language",
    "label_noise",
    "drop_rows",
    "leaks",
]
"""Steps in the order of the report."""
STEPS: tuple[Step, ...] = get_args(Step)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Sample(_Part):
    """A row that a step changed, removed or lists."""

    row: str
    """Its id: 16 hex digits over the row as it was read."""
    place: str
    """File and number, such as `reviews.csv line 12`."""
    before: str
    """Its text, masked and cut."""
    after: str | None = None
    """Its text after a change. None: the row was removed, or is only listed."""
    why: str
    """In a few words, such as `14 of 20 rows say the same`."""


class StepReport(_Part):
    """What a step did."""

    step: Step
    action: Literal["report", "list", "change", "drop"]
    """`report`: only counted. `list`: a model decides, so the rows are listed and stay."""
    rows: int
    """Rows that it concerns."""
    samples: tuple[Sample, ...] = ()
    """At most ten; of a step that lists, at most a thousand, worst first."""
    detail: dict[str, int] = {}
    """Counts within the step, such as the kinds of personal data."""

    @property
    def sentence(self) -> str:
        """What it did, for an event. Empty: nothing."""
        if not self.rows:
            return ""
        what = {"report": "found, and kept", "list": "listed, and kept", "change": "changed", "drop": "left out"}
        return f"cleaning, {self.step.replace('_', ' ')}: {self.rows:,} row(s) {what[self.action]}"


class DuplicateCluster(_Part):
    """Rows that are near duplicates of each other."""

    rows: int
    kept: int
    """Rows of it in the dataset."""
    texts: tuple[str, ...]
    """Two or three of them, masked and cut."""


class Side(_Part):
    """The rows of one side."""

    rows: int
    labels: dict[str, int] = {}
    """Rows of each label. Empty for a task without labels."""


class TokenFit(_Part):
    """How rows fit a base's tokenizer and `data.max_tokens`."""

    rows: int
    """Rows that were counted: the first ones."""
    max_tokens: int
    too_long: Literal["error", "drop", "truncate"]
    """What happens to a longer row."""
    longest_tokens: int = 0
    long_rows: int = 0
    """Rows over `max_tokens`."""
    cut_rows: int = 0
    """Rows of which that limit would cut what is trained."""
    untrained_rows: int = 0
    """Rows in which nothing is trained, whatever the limit."""


class Preparation(_Part):
    """From the rows that were read to the dataset's sides."""

    task: str
    sources: tuple[str, ...]
    read: int
    """Rows that were read, all of them valid."""
    sides: dict[Literal["train", "validation", "test"], Side]
    lengths: dict[int, int]
    """Rows of the dataset by length: the lower bound of each bin, in characters, powers of two."""
    steps: tuple[StepReport, ...]
    clusters: tuple[DuplicateCluster, ...] = ()
    """The largest, at most twenty."""
    notices: tuple[str, ...] = ()
    """What was guessed, converted or not used."""
    fit: TokenFit | None = None
    """In a plan, how the rows fit the base. None in the report of a dataset, which is for any base."""
