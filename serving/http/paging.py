"""Cursor pages over lists whose ids sort by creation time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, TypeVar

from serving.http.errors import bad_request

T = TypeVar("T")
Order = Literal["asc", "desc"]
Page = tuple[list[T], bool]
"""Items of one page, and whether more follow."""


def page(
    ids: Sequence[str], read: Callable[[str], T | None], *, limit: int, after: str | None, order: Order = "desc"
) -> Page[T]:
    """Return up to `limit` items after the id `after`.

    `ids` ascend. `after` may have been deleted. Items for which `read` returns None are skipped.
    """
    if after is not None and ids and after.partition("-")[0] != ids[0].partition("-")[0]:
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
    if order == "asc":
        wanted = list(ids[0 if after is None else bisect_right(ids, after) :])
    else:
        wanted = list(reversed(ids[: len(ids) if after is None else bisect_left(ids, after)]))
    found = (item for item in map(read, wanted) if item is not None)
    items = list(islice(found, limit + 1))
    return items[:limit], len(items) > limit
