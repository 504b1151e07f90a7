"""The labels of a dataset: whether they can be learnt, and which of them are perhaps one. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from ray_jobs.data.clean.duplicates import conflicting
from ray_jobs.data.formats.records import listed
from ray_jobs.data.row_arrays import Digests, Ints, numbers_of
from ray_jobs.data.split import FEWEST
from ray_jobs.errors import DataError

_SEPARATORS = re.compile(r"[,;/|、，；／・\n]")


def check_labels(train: set[str], held_out: set[str]) -> None:
    """Raise DataError for labels that a classifier cannot learn."""
    if len(train) < 2:
        found = f"only the label {next(iter(train))!r}" if train else "no label"
        raise DataError(f"the training rows have {found}, and a classifier needs two or more: add rows of other labels")
    unknown = sorted(held_out - train)
    if unknown:
        raise DataError(
            f"{len(unknown)} label(s) occur only in held-out rows, so they cannot be learnt: add training rows with "
            "them, or remove them",
            details=[repr(label) for label in unknown[:20]],
        )


def doubtful(rows: Mapping[str, int]) -> list[str]:
    """Sentences about labels that may be meant otherwise. `rows`: how many each label has."""
    return [*_alike(rows), *_joined(rows), *_rare(rows)]


def contradictory(inputs: Digests, labels: Sequence[str | None], rows: Ints) -> list[str]:
    """A sentence about inputs that have several labels, among these rows."""
    labelled = np.array([row for row in rows.tolist() if labels[row] is not None], dtype=np.int64)
    found = np.array(list(conflicting(inputs, numbers_of(labels), labelled)), dtype=np.int64)
    count = len(np.unique(inputs[found]))
    return (
        [f"{count} text(s) have several labels, in different rows: at most one of them can be learnt"] if count else []
    )


def _alike(labels: Iterable[str]) -> list[str]:
    """Groups of labels that differ in case alone."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(label.casefold(), []).append(label)
    return [
        f"the labels {', '.join(map(repr, group))} differ in case alone, and count as {len(group)}"
        for group in groups.values()
        if len(group) > 1
    ]


def _joined(labels: Collection[str]) -> list[str]:
    """Labels of which each part is a label itself, or a part of another one too."""
    parts = {label: [part.strip() for part in _SEPARATORS.split(label)] for label in labels}
    joined = {label: found for label, found in parts.items() if len(found) > 1 and all(found)}
    uses = Counter(part for found in joined.values() for part in set(found))
    several = sorted(
        label for label, found in joined.items() if all(part in labels or uses[part] > 1 for part in found)
    )
    if not several:
        return []
    return [f"each of {listed(map(repr, several))} seems to be several labels, and counts as one: a row has one label"]


def _rare(rows: Mapping[str, int]) -> list[str]:
    few = sorted(label for label, count in rows.items() if count < FEWEST)
    if not few or len(few) == len(rows):
        return []
    return [
        f"{len(few)} label(s) have fewer than {FEWEST} rows, and may have none held out: "
        f"{listed(map(repr, few))}; remove the rows if they are notes or totals"
    ]
