"""The check of a file of rows on this machine: every malformed row, duplicates, and tokens where a tokenizer is given.

The task checks a row and `ingest` a file, so a file that passes here passes the `dataset` stage. Reads line by line and
keeps two digests a row; a file is never held in memory. Loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.data.clean.duplicates import conflicting
from ray_jobs.data.clean.row_steps import RowSteps
from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.columns import check_mapping
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import Record, read_records
from ray_jobs.data.guess import refuse_preferences
from ray_jobs.data.ingest import canonical_line, read_rows
from ray_jobs.data.preparation import StepReport
from ray_jobs.data.report import RowReport
from ray_jobs.data.row_arrays import digests_of, numbers_of
from ray_jobs.data.split import input_digest, row_digest
from ray_jobs.errors import DataError
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.spec.cleaning import CleaningPolicy
from ray_jobs.tasks import TASKS, task_for
from ray_jobs.tasks.base import PromptSetting, Task


def task_of(path: Path, mapping: Mapping[str, str] | None = None) -> str:
    """Task that recognises the first readable record's columns; the default task where none does.

    `mapping`: as `data.columns`.
    """
    records = (record for record in read_records(path) if isinstance(record, Record))
    columns: frozenset[str] = next((record.ambiguous.union(record.values) for record in records), frozenset())
    columns = (columns - set((mapping or {}).values())) | set(mapping or {})
    refuse_preferences(columns)
    return task_for(columns)


def check_file(
    path: Path,
    filename: str,
    name: str,
    tokenizer: Any = None,
    base: CatalogueEntry | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    today: date = date.min,
) -> RowReport:
    """Check the rows of the task `name`. `tokenizer`, that of `base`, counts tokens; None: none are counted.

    `columns`: as `data.columns`. `today` is the day that a chat template writes.

    Raises DataError with a detail for each bad line, `line 3: …`, up to ten thousand.
    """
    task, prompts, mapping = TASKS[name], PromptSetting(), dict(columns or {})
    check_mapping(task, mapping)
    if tokenizer is not None:
        named = ((record.place, row) for record, row in read_rows(path, filename, task, mapping, Findings()))
        prompts = task.setting_for(named, tokenizer, today)
        task = task.with_setting(prompts)
    findings, unwritable = Findings(most=10_000), Findings(most=10_000)
    rows = tokens = longest = supervised = sequences = 0
    too_long, partial, personal = list[int](), list[int](), Cleaning()
    steps, labels = RowSteps(CleaningPolicy(), task.label_column), list[str | None]()
    digests, inputs = list[bytes](), list[bytes]()
    for record, row in read_rows(path, filename, task, mapping, findings):
        rows += 1
        personal.clean(row, record.number)
        steps.apply(row, record.place)
        digests.append(row_digest(canonical_line(row)))
        inputs.append(input_digest(task.input_of(row)))
        labels.append(None if task.label_column is None else row[task.label_column])
        if tokenizer is None or findings.count:  # a refused file needs no figures
            continue
        try:
            examples = task.encode(row, tokenizer, () if task.label_column is None else [row[task.label_column]])
        except DataError as error:
            unwritable.add(f"{filename} {record.place}", str(error))
            continue
        sequences += len(examples)
        if not task.is_whole(row, examples, tokenizer):
            partial.append(record.number)
        lengths = [example.length for example in examples]
        supervised += sum(example.supervised for example in examples)
        tokens, longest = tokens + sum(lengths), max(longest, *lengths)
        if base is not None and base.max_tokens is not None and max(lengths) > base.max_tokens:
            too_long.append(record.number)
    findings.extend(unwritable)
    if findings.count:
        prefix = re.compile(rf"^{re.escape(filename)} (line|row|record) ")
        findings.details = [prefix.sub(r"\1 ", detail) for detail in findings.details]
        findings.raise_if_any([filename])
    found = [each for each in (*steps.reports(), _conflicts(inputs, digests, labels, task)) if each.rows]
    counted = RowReport(
        task=name,
        rows=rows,
        columns=mapping,
        duplicates=rows - len(set(digests)),
        personal_data=personal.counts,
        cleaning={each.step: each.rows for each in found},
        warnings=(*findings.notices, *personal.notes(), *(each.sentence for each in found)),
    )
    if tokenizer is None or base is None:
        return counted
    of_tokens = {
        "tokens": tokens,
        "examples": sequences,
        "longest_tokens": longest,
        "supervised_tokens": supervised,
        "model": base.name,
        "too_long": tuple(too_long[:100]),
        "without_reasoning": tuple(partial[:100]),
        "prompts": prompts,
        "warnings": (*prompts.notes(), *counted.warnings),
    }
    return counted.model_copy(update=of_tokens)


def _conflicts(
    inputs: Sequence[bytes], digests: Sequence[bytes], labels: Sequence[str | None], task: Task[Any]
) -> StepReport:
    """Rows with one input and different labels or answers, as the step of a preparation counts them."""
    answers = digests_of(digests) if task.label_column is None else numbers_of(labels)
    found = conflicting(digests_of(inputs), answers, np.arange(len(inputs)))
    return StepReport(
        step="conflicts", action="report", rows=len(found), detail={"inputs": len({inputs[row] for row in found})}
    )
