"""The check of a file of rows on this machine: every malformed row, duplicates, and tokens where a tokenizer is given.

The task checks a row and `ingest` a file, so a file that passes here passes the `dataset` stage. Reads line by line; a
file is never held in memory. Loads no model.
"""

from __future__ import annotations

import hashlib
import re
from datetime import date
from pathlib import Path
from typing import Any

from ray_jobs.data.formats import Record, read_records
from ray_jobs.data.ingest import Findings, canonical_line, read_rows
from ray_jobs.data.report import RowReport
from ray_jobs.errors import DataError
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.tasks import TASKS, task_for
from ray_jobs.tasks.base import PromptSetting


def task_of(path: Path) -> str:
    """Task that recognises the first readable record's columns; the default task where none does."""
    records = (record for record in read_records(path) if isinstance(record, Record))
    columns: set[str] = next((set(record.values) for record in records), set())
    if columns & {"preferred_output", "preferred_completion"}:
        raise DataError(
            "these are rows of preferences (input, preferred_output, non_preferred_output), which nothing here trains "
            "on yet: send conversations, {messages: [...]}"
        )
    return task_for(columns)


def check_file(
    path: Path,
    filename: str,
    name: str,
    tokenizer: Any = None,
    base: CatalogueEntry | None = None,
    *,
    today: date = date.min,
) -> RowReport:
    """Check the rows of the task `name`. `tokenizer`, that of `base`, counts tokens; None: none are counted.

    `today` is the day that a chat template writes.

    Raises DataError with a detail for each bad line, `line 3: …`, up to ten thousand.
    """
    task, prompts = TASKS[name], PromptSetting()
    if tokenizer is not None:
        named = ((f"line {number}", row) for number, row in read_rows(path, filename, task, {}, Findings()))
        prompts = task.setting_for(named, tokenizer, today)
        task = task.with_setting(prompts)
    findings, unwritable = Findings(most=10_000), Findings(most=10_000)
    seen: set[bytes] = set()
    rows = duplicates = tokens = longest = supervised = sequences = 0
    too_long, partial = list[int](), list[int]()
    for number, row in read_rows(path, filename, task, {}, findings):
        rows += 1
        digest = hashlib.blake2b(canonical_line(row).encode(), digest_size=16).digest()
        duplicates += digest in seen
        seen.add(digest)
        if tokenizer is None or findings.count:  # a refused file needs no figures
            continue
        try:
            examples = task.encode(row, tokenizer, () if task.label_column is None else [row[task.label_column]])
        except DataError as error:
            unwritable.add(f"{filename} line {number}", str(error))
            continue
        sequences += len(examples)
        if not task.is_whole(row, examples, tokenizer):
            partial.append(number)
        lengths = [example.length for example in examples]
        supervised += sum(example.supervised for example in examples)
        tokens, longest = tokens + sum(lengths), max(longest, *lengths)
        if base is not None and base.max_tokens is not None and max(lengths) > base.max_tokens:
            too_long.append(number)
    findings.extend(unwritable)
    if findings.count:
        prefix = re.compile(rf"^{re.escape(filename)} (line|row) ")
        findings.details = [prefix.sub(r"\1 ", detail) for detail in findings.details]
        findings.raise_if_any([filename])
    if tokenizer is None or base is None:
        return RowReport(task=name, rows=rows, duplicates=duplicates)
    return RowReport(
        task=name,
        rows=rows,
        duplicates=duplicates,
        tokens=tokens,
        examples=sequences,
        longest_tokens=longest,
        supervised_tokens=supervised,
        model=base.name,
        too_long=tuple(too_long[:100]),
        without_reasoning=tuple(partial[:100]),
        prompts=prompts,
        warnings=tuple(prompts.notes()),
    )
