"""Identifiers that sort by creation time, `file-01k…`, and cursor pages over lists of them.

Ids contain their time, so the newest page is listed and read without the rest (`ray_jobs.storage.newest`).
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal, TypeVar

from ray_jobs.storage import Store
from ray_jobs.storage.newest import newest_first
from serving.http.errors import bad_request

T = TypeVar("T")
Order = Literal["asc", "desc"]
Page = tuple[list[T], bool]
"""Items of one page, and whether more follow."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case, which sorts numerically."""
_CHARACTERS = 26
_RANDOM_BITS = 80
_AHEAD_S = 900.0
"""How far ids may lie in the future: earlier versions took them from the local clock."""
_FIRST_WINDOW_MS = 3_600_000
_READS_AT_ONCE = 16


def new_id(kind: str, *, now_s: float) -> str:
    """Create `{kind}-{26 characters}`: 48 bits of milliseconds, then 80 random bits (the layout of a ULID).

    A kind that ends with `_` is its own prefix, as in OpenAI's `resp_…`."""
    milliseconds = round(now_s * 1000)
    return _encode(kind, milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))


def derived_id(kind: str, other: str, now_s: float) -> str:
    """Derive an identifier from another one and a time. Deterministic."""
    return _encode(kind, round(now_s * 1000) << _RANDOM_BITS | _decode(other) % 2**_RANDOM_BITS)


def is_id(kind: str, text: str) -> bool:
    """Return whether untrusted text is a well-formed identifier, and so safe within a store key."""
    return re.fullmatch(rf"{_prefix(kind)}[{_ALPHABET}]{{{_CHARACTERS}}}", text) is not None


def created_at_s(identifier: str) -> float:
    """Return the creation time of an identifier in Unix seconds."""
    return (_decode(identifier) >> _RANDOM_BITS) / 1000


def listed(
    store: Store, prefix: str, kind: str, now_s: float, *, after: str | None, order: Order = "desc"
) -> Iterator[str]:
    """Yield the ids in `{prefix}{id}.json`, those that follow `after`, listed as they are consumed.

    Raises ApiError 400 for an `after` that is not an id of this list. The id itself may have been deleted.
    """
    if after is not None and not is_id(kind, after):
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")

    def list_after(name: str) -> Iterator[str]:
        for info in store.list(prefix, after=prefix + name if name else ""):
            name = info.key.removeprefix(prefix).removesuffix(".json")
            if is_id(kind, name):
                yield name

    if order == "asc":
        return list_after("" if after is None else f"{after}.json")
    return newest_first(
        list_after,
        lambda name: _decode(name) >> _RANDOM_BITS,
        lambda milliseconds: _encode(kind, milliseconds << _RANDOM_BITS),
        top=round((now_s + _AHEAD_S) * 1000),
        width=_FIRST_WINDOW_MS,
        before=after,
    )


def listed_by_last_write(store: Store, prefix: str, kind: str, *, after: str | None, order: Order) -> list[str]:
    """List the ids in `{prefix}{id}.json` by the second of their last write, then by creation; those after `after`.

    Raises ApiError 400 for an `after` that is not in the list: without its record, its place is not known.
    """
    infos = [(info.modified_s, info.key.removeprefix(prefix).removesuffix(".json")) for info in store.list(prefix)]
    found = [name for _, name in sorted(infos, reverse=order == "desc") if is_id(kind, name)]
    if after is None:
        return found
    if after not in found:
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
    return found[found.index(after) + 1 :]


def common(lists: Sequence[Iterator[str]], order: Order = "desc") -> Iterator[str]:
    """Yield the ids that are in all of several lists of one order."""
    last = min if order == "desc" else max
    while None not in (heads := [next(each, None) for each in lists]):
        while len(set(heads)) > 1:
            furthest = last(head for head in heads if head is not None)
            heads = [next(each, None) if head != furthest else head for each, head in zip(lists, heads, strict=True)]
            if None in heads:
                return
        yield heads[0]  # type: ignore[misc]


def page(ids: Iterable[str], read: Callable[[str], T | None], *, limit: int) -> Page[T]:
    """Return the first `limit` items of `ids`. Items for which `read` returns None are skipped."""
    left, items = iter(ids), list[T]()
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        while len(items) <= limit and (wanted := list(islice(left, limit + 1 - len(items)))):
            items += [item for item in pool.map(read, wanted) if item is not None]
    return items[:limit], len(items) > limit


def after_in(ids: Sequence[str], after: str | None) -> Iterator[str]:
    """Yield the ids of a short ascending list from the newest, those that follow `after`.

    Raises ApiError 400 for an `after` that is not an id of this list.
    """
    if after is not None and ids and after.partition("-")[0] != ids[0].partition("-")[0]:
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
    return reversed(ids[: len(ids) if after is None else bisect_left(ids, after)])


def _encode(kind: str, number: int) -> str:
    text = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
    return _prefix(kind) + text


def _prefix(kind: str) -> str:
    return kind if kind.endswith("_") else f"{kind}-"


def _decode(identifier: str) -> int:
    number = 0
    for character in identifier[-_CHARACTERS:]:
        number = number << 5 | _ALPHABET.index(character)
    return number
