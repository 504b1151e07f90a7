"""Exact duplicates and conflicts, from digests alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def repeated(digests: Sequence[bytes], ids: Sequence[str], rows: Iterable[int]) -> dict[int, int]:
    """For each row that equals another, the one that stays: that with the smallest id. `digests`: of whole rows."""
    stays: dict[bytes, int] = {}
    rows = sorted(rows, key=lambda row: (ids[row], row))
    for row in rows:
        stays.setdefault(digests[row], row)
    return {row: stays[digests[row]] for row in rows if stays[digests[row]] != row}


def conflicting(
    inputs: Sequence[bytes], answers: Sequence[bytes] | Sequence[str | None], rows: Iterable[int]
) -> dict[int, int]:
    """For each row whose input has another label or answer too, how many different ones the input has.

    `inputs`: digests of the inputs; `answers`: labels, or digests of whole rows.
    """
    rows = list(rows)
    of_input: dict[bytes, set[bytes | str | None]] = {}
    for row in rows:
        of_input.setdefault(inputs[row], set()).add(answers[row])
    return {row: count for row in rows if (count := len(of_input[inputs[row]])) > 1}
