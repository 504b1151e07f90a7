"""The split into training and held-out rows, by their inputs alone or as the rows say. Pure: digests in, decisions out.

The side of an input follows from its own content and the fraction: rows with one input, such as two answers to one
prompt, are on the same side, and another order of the file gives the same split. Only a label, or a side, that would
have no row gets one that would be on the other side. Rows with a column `split` have the side that it names.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence, Set

from ray_jobs.errors import DataError

SIDE_COLUMN = "split"
"""A column in which a row names its own side."""
_TRAIN = frozenset({"train", "training"})
_HELD_OUT = frozenset({"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "held_out"})
FEWEST = 3
"""Inputs of a label from which on one of them is held out."""


def row_digest(line: str) -> bytes:
    """SHA-256 of a row's canonical line."""
    return hashlib.sha256(line.encode()).digest()


def input_digest(text: str) -> bytes:
    """SHA-256 of a row's input, without differences of width, case and white space: a model would not see them as
    another question."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode()).digest()


def choose(digests: Sequence[bytes], max_rows: int | None) -> list[int]:
    """Rows to use: all, or the `max_rows` with the smallest salted digests, in file order."""
    if max_rows is None or max_rows >= len(digests):
        return list(range(len(digests)))
    # Salted, so that the choice is independent of the side; else a small choice would be held out entirely.
    ranked = sorted(range(len(digests)), key=lambda i: (hashlib.sha256(b"choose" + digests[i]).digest(), i))
    return sorted(ranked[:max_rows])


def is_held_out(digest: bytes, fraction: float) -> bool:
    """True for an input of the share `fraction` that is set aside."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def is_set_aside(side: object) -> bool | None:
    """Whether a value of the column `split` holds its row out: `test` and `validation` do. None: it names no side."""
    name = side.strip().casefold() if isinstance(side, str) else ""
    return True if name in _HELD_OUT else False if name in _TRAIN else None


def split_as_marked(
    inputs: Sequence[bytes], marked: Sequence[bool | None], chosen: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows) of the chosen rows by their marks, without training rows whose input is held out.

    Raises DataError where a side has no row.
    """
    set_aside = [i for i in chosen if marked[i]]
    if not set_aside:
        raise DataError(
            f"none of the {len(chosen)} chosen rows is held out by the column {SIDE_COLUMN!r}: raise data.max_rows, or "
            "rename the column to split the rows by their inputs"
        )
    train = [i for i in chosen if not marked[i]]
    return without_leak(inputs, train, {inputs[i] for i in set_aside}), set_aside


def split(
    inputs: Sequence[bytes], labels: Sequence[str | None], chosen: Sequence[int], fraction: float
) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows) of the chosen rows, by the digest and the label of each row.

    Every label has a training row, and one with three inputs or more a held-out row too. Raises DataError where no
    input can be held out.
    """
    if not chosen:
        raise DataError("no row is left to train on: every one is left out; the job's events say by what")
    of_label: dict[str | None, set[bytes]] = {}
    for i in chosen:
        of_label.setdefault(labels[i], set()).add(inputs[i])
    held_out = {inputs[i] for i in chosen if is_held_out(inputs[i], fraction)}
    held_out |= {min(digests) for digests in of_label.values() if len(digests) >= FEWEST and not digests & held_out}
    held_out -= {max(digests) for digests in of_label.values() if digests <= held_out}
    if not held_out:
        spare = [min(digests) for digests in of_label.values() if len(digests) > 1]
        if not spare:
            raise DataError(
                f"the {len(chosen)} rows have one input{'' if len(of_label) == 1 else ' a label'}, so that none can be "
                "held out to compare with: add rows, or name held-out rows in data.held_out"
            )
        held_out = {min(spare)}
    return [i for i in chosen if inputs[i] not in held_out], [i for i in chosen if inputs[i] in held_out]


def without_leak(inputs: Sequence[bytes], chosen: Sequence[int], held_out: Set[bytes]) -> list[int]:
    """Chosen rows whose inputs are not held out as well. Raises DataError where none is left."""
    kept = [i for i in chosen if inputs[i] not in held_out]
    if not kept:
        raise DataError(
            f"the inputs of all {len(chosen)} training rows are held out too, so none is left to train on: hold other "
            "rows out"
        )
    return kept
