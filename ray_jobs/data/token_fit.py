"""How rows fit a base: their lengths by its tokenizer, and what `data.max_tokens` would do to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ray_jobs.data.preparation import TokenFit
from ray_jobs.spec import DataSection
from ray_jobs.tasks.base import Example, Row, Task


def token_fit(
    rows: Collection[Row], task: Task[Any], processor: Any, labels: Sequence[str], data: DataSection
) -> tuple[TokenFit, int]:
    """The fit, and the number of examples that the rows become. Raises DataError as `Task.encode`."""
    longest = long = cut = untrained = examples = 0
    for row in rows:
        found = task.encode(row, processor, labels)
        examples += len(found)
        longest = max(longest, *(each.length for each in found), 0)
        supervised = sum(each.supervised for each in found)
        untrained += not supervised
        if any(each.length > data.max_tokens for each in found):
            long += 1
            kept = sum(each.truncated(data.max_tokens).supervised for each in found if isinstance(each, Example))
            cut += kept < supervised
    fit = TokenFit(
        rows=len(rows),
        max_tokens=data.max_tokens,
        too_long=data.too_long,
        longest_tokens=longest,
        long_rows=long,
        cut_rows=cut,
        untrained_rows=untrained,
    )
    return fit, examples
