"""What a look at a file of rows found. No I/O."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RowReport(BaseModel):
    """What a file of rows holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str
    """The task whose columns it has."""
    rows: int
    duplicates: int
    """Rows that are the same as an earlier one."""
    tokens: int | None = None
    """In all rows, by the tokenizer of `model`. None: no model was named and there is none to take."""
    longest_tokens: int | None = None
    supervised_tokens: int | None = None
    """Those that are trained."""
    model: str | None = None
    """Whose tokenizer counted."""
    too_long: tuple[int, ...] = ()
    """Numbers of lines that are longer than the model takes, the first hundred."""
