"""The report of a row validation. No I/O."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ray_jobs.tasks.base import PromptSetting


class RowReport(BaseModel):
    """Contents of a file of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: str
    """Task whose columns the file has."""
    rows: int
    columns: dict[str, str] = {}
    """The file's column for each of the task's, where the upload named them: its jobs read it so."""
    duplicates: int
    """Rows that equal an earlier one."""
    tokens: int | None = None
    """Tokens in all rows, by the tokenizer of `model`. None: no model counted."""
    examples: int | None = None
    """Sequences that are trained: more than rows if the chat template rewrites what came before an answer."""
    longest_tokens: int | None = None
    supervised_tokens: int | None = None
    """Tokens that count in the loss."""
    model: str | None = None
    """Base model whose tokenizer counted."""
    too_long: tuple[int, ...] = ()
    """Line numbers of rows longer than the model takes, the first hundred."""
    without_reasoning: tuple[int, ...] = ()
    """Line numbers of rows with reasoning that the model's chat template does not write, the first hundred: it is not
    trained."""
    personal_data: dict[str, int] = {}
    """Rows with each kind of personal data or secret, such as `{"email": 12}`; a kind that no row has is absent."""
    cleaning: dict[str, int] = {}
    """Rows that the quick steps of a job's cleaning find, such as `{"mojibake": 3, "conflicts": 2}`."""
    prompts: PromptSetting | None = None
    """How the prompts of these rows are written for the model. None: no model counted."""
    warnings: tuple[str, ...] = ()
    """What was guessed, skipped or converted in the file, such as its encoding, personal data, and what to know of the
    prompts, such as a date in them."""
