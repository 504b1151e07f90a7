"""The newest names of a listing first, at the cost of those that are wanted. Makes requests through its caller only.

A store lists keys in ascending order, and names that begin with a time or a number ascend with age. So the newest are
listed by windows of that number, from the top down: wider where a window is nearly empty, narrower where it is full.
Prefixes of up to 1,000 names take one request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

_REQUEST = 1000
"""Keys that one request lists."""
_AIM = 700
"""Names that a window should hold."""
_WIDER = 7
"""By how much a window grows at most."""


def newest_first(
    list_after: Callable[[str], Iterator[str]],
    number_of: Callable[[str], int | None],
    name_of: Callable[[int], str],
    *,
    top: int,
    width: int,
    before: str | None = None,
) -> Iterator[str]:
    """Names in descending order, listed as they are consumed.

    `list_after(name)`: the names greater than `name`, ascending, one request per 1,000. `number_of(name)` ascends with
    the names; None: the name does not count. `name_of(number)`: the least name of a number. `top`: a number above all.
    `width`: of the first window. `before`: only lesser names.
    """

    def counted(names: Iterator[str], low: int, high: int) -> Iterator[str]:
        for name in names:
            number = number_of(name)
            if number is not None and number >= high:
                return
            if number is not None and number >= low and (before is None or name < before):
                yield name

    start = list(islice(list_after(""), _REQUEST))
    if len(start) < _REQUEST:
        yield from reversed(list(counted(iter(start), 0, top)))
        return
    least = next((number for name in start if (number := number_of(name)) is not None), top)
    high = top if before is None else min(top, (number_of(before) or 0) + 1)
    full = -1  # low end of the newest window that is known to hold too many names
    while high > least:
        low = max(least, high - width)
        most = _REQUEST if width > 1 else None
        found = list(islice(counted(list_after(name_of(low - 1) if low else ""), low, high), most))
        if len(found) == most:
            covered = (number_of(found[-1]) or low) - low
            full, width = low, max(1, min(width // 2, covered * _AIM // _REQUEST))
            continue
        yield from reversed(found)
        high = low
        width = max(1, width * _AIM // max(len(found), _AIM // _WIDER))
        if full < high:
            width = max(1, min(width, (high - full) // 2))
