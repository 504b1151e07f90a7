"""What the evaluation keeps of each test row: the losses and answers of every model that it scored, side by side.

Slices, fairness, the page and `kitae models compare` read these records; nothing is scored twice. They hold texts of
the rows, so they lie in the job's prefix of the team's workspace and are deleted with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter

ROWS_FILE = "rows.jsonl"
"""Name of the records in the evaluation's tree."""

TUNED, BASE, CHAMPION = "tuned", "base", "champion"
"""Names of the models in a record. `base` is the opponent of the gate: the base model, or the task's first baseline."""


class EvaluatedRow(BaseModel, frozen=True):
    """A test row, and what each model made of it."""

    row: int = Field(ge=0)
    """Its number in the test file, from 0."""
    labels: int = Field(ge=0)
    """Its labels that count in the loss."""
    length: int = Field(0, ge=0)
    """Characters of what the model is asked."""
    language: str = ""
    """ISO 639-1 code of what the model is asked. Empty: unknown."""
    expected: str = ""
    """The label or the reference answer, cut to `LONGEST_TEXT` characters."""
    losses: dict[str, float] = {}
    """Sum of the losses of its labels in nats, by model."""
    correct: dict[str, int] = {}
    """Labels that the model would choose, by model."""
    answers: dict[str, str] = {}
    """The label or the text that a model gave, by model; none where it was not asked. Cut as `expected`."""
    chances: dict[str, dict[str, float]] = {}
    """Probability of each label by model, for tasks with labels."""


LONGEST_TEXT = 4000

_ROW = TypeAdapter(EvaluatedRow)


def write_rows(path: Path, rows: Iterable[EvaluatedRow]) -> None:
    """One JSON document a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{row.model_dump_json(exclude_defaults=True)}\n" for row in rows)


def read_rows(path: Path) -> list[EvaluatedRow]:
    """The records in the order of the rows. Raises ValidationError for a file that is none of these."""
    with path.open(encoding="utf-8") as file:
        return [_ROW.validate_json(line) for line in file]
