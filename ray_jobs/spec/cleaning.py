"""What is cleaned in the rows before they are split: the job file's `data.clean`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ray_jobs.spec.problems import quoted
from ray_jobs.spec.section import SpecSection

DropAction = Literal["off", "report", "drop"]
"""`report`: count the rows. `drop`: leave them out."""
RemoveAction = Literal["off", "report", "remove"]
"""`report`: count the rows. `remove`: remove the characters or lines from them."""

_ROW_ID = re.compile("[0-9a-f]{16}")
_CODES = """
    af ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gu he hi hr hu hy id is it ja ka
    kk ko la lg lt lv mi mk mn mr ms nb nl nn pa pl pt ro ru sk sl sn so sq sr st sv sw ta te th tl tn
    tr ts uk ur vi xh yo zh zu
"""
LANGUAGES = frozenset(_CODES.split())
"""Languages that can be recognised (ISO 639-1)."""


def is_row_id(text: str) -> bool:
    """True for 16 hex digits, as reports name a row."""
    return _ROW_ID.fullmatch(text) is not None


def _row_id(text: str) -> str:
    if not is_row_id(text):
        raise ValueError(f"is {quoted(text)}; a row's id is 16 hex digits, as the report of a preparation names it")
    return text


def _language(text: str) -> str:
    if text not in LANGUAGES:
        raise ValueError(
            f"is {quoted(text)}, which cannot be recognised; it must be one of {', '.join(sorted(LANGUAGES))}"
        )
    return text


class CleaningPolicy(SpecSection):
    """The cleaning of rows. `standard` and `report` stand for several fields at once (`SHORTHANDS`)."""

    mojibake: Literal["off", "report", "repair"] = "report"
    """Text that was read in a wrong encoding, such as `cafÃ©`: count the rows, or repair what can be repaired."""
    invisible: RemoveAction = "report"
    """Characters without a width or a meaning, such as zero-width spaces, soft hyphens and byte order marks. The
    joiners of emoji, Arabic and Indic scripts are none."""
    nfkc: bool = False
    """Normalise texts to NFKC: `ＡＢＣ` becomes `ABC`, `①` becomes `1`, half-width kana full-width."""
    boilerplate: RemoveAction = "off"
    """Lines of 12 characters or more that stand in at least 20 rows and 1% of all rows, such as signatures and
    disclaimers. System messages, and texts that have no other line, are left alone."""
    min_characters: int | None = Field(None, ge=1)
    """Drop rows with fewer characters of text. None: no limit."""
    max_characters: int | None = Field(None, ge=1)
    """Drop rows with more characters of text. None: no limit."""
    exact_duplicates: DropAction = "report"
    """Rows that equal another row. One of them stays."""
    near_duplicates: DropAction = "off"
    """Rows that are similar to another row. Each dropped row is similar to one that stays."""
    near_duplicate_similarity: float = Field(0.8, ge=0.6, le=1.0)
    """Jaccard similarity of near duplicates, over character n-grams (three characters of Japanese, Chinese and Korean,
    five of others)."""
    conflicts: DropAction = "report"
    """Rows with one input and different labels or answers. `drop` leaves all rows of such an input out."""
    outliers: DropAction = "off"
    """Rows whose length, or share of letters, digits, symbols or repetitions, is more than 6 robust standard
    deviations from the median of all rows."""
    languages: tuple[Annotated[str, AfterValidator(_language)], ...] = Field((), max_length=50)
    """Languages of the rows (ISO 639-1, such as `[ja, en]`): rows in others are listed, and stay. Empty: not judged."""
    label_noise: bool = False
    """List rows whose label a classifier trained on the other rows doubts, worst first (classification only). They
    stay."""
    drop_rows: tuple[Annotated[str, AfterValidator(_row_id)], ...] | str = ()
    """Rows to leave out, by the ids in the report: a list, or a path or `s3://bucket/key` of a file with one a line.
    An id that no row has is an error."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return SHORTHANDS[value] if isinstance(value, str) and value in SHORTHANDS else value

    @model_validator(mode="after")
    def _limits(self) -> CleaningPolicy:
        low, high = self.min_characters, self.max_characters
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_characters is {low} and max_characters {high}, so no row would stay: swap them")
        return self


SHORTHANDS: dict[str, dict[str, str]] = {
    "standard": {
        "mojibake": "repair",
        "invisible": "remove",
        "exact_duplicates": "drop",
        "near_duplicates": "drop",
        "conflicts": "report",
        "outliers": "report",
    },
    "report": {
        "mojibake": "report",
        "invisible": "report",
        "boilerplate": "report",
        "exact_duplicates": "report",
        "near_duplicates": "report",
        "conflicts": "report",
        "outliers": "report",
    },
}
"""What one word stands for. `report` changes and drops nothing."""
