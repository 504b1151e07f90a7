"""The newest names come first, all of them once, and few requests list them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.storage.newest import newest_first

TOP = 10**8


class Listing:
    """Ascending names in pages of 1,000."""

    def __init__(self, numbers: list[int], other: tuple[str, ...] = ()) -> None:
        self.names = sorted([*(f"{number:08d}" for number in numbers), *other])
        self.requests = 0

    def after(self, name: str) -> Iterator[str]:
        for at, found in enumerate(found for found in self.names if found > name):
            if at % 1000 == 0:
                self.requests += 1
            yield found
        self.requests += not self.names

    def newest(self, before: str | None = None) -> Iterator[str]:
        return newest_first(
            self.after, lambda name: int(name) if name.isdecimal() else None, "{:08d}".format, top=TOP, width=1000,
            before=before,
        )  # fmt: skip


@given(st.sets(st.integers(1, 10**8 - 1), max_size=20), st.integers(0, 3000), st.integers(1, 10**7))
def test_every_name_comes_once_in_descending_order(scattered: set[int], count: int, start: int) -> None:
    listing = Listing(sorted(scattered | set(range(start, start + count))), ("not-a-number",))
    wanted = [name for name in reversed(listing.names) if name.isdecimal()]
    assert list(listing.newest()) == wanted
    if wanted:
        middle = wanted[len(wanted) // 2]
        assert list(listing.newest(middle)) == wanted[len(wanted) // 2 + 1 :]


@pytest.mark.parametrize(
    ("numbers", "most"),
    [
        (list(range(1, 501)), 1),
        (list(range(1, 5001)), 25),
        (list(range(1, 100_001)), 40),
        ([*range(1, 2000), 99_999_999], 40),
        ([1, *range(50_000_000, 50_100_000)], 40),
    ],
)
def test_the_first_page_of_a_long_list_takes_few_requests(numbers: list[int], most: int) -> None:
    listing = Listing(numbers)
    assert list(islice(listing.newest(), 101)) == [f"{number:08d}" for number in numbers[:-102:-1]]
    assert listing.requests <= most
