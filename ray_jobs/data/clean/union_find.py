"""Disjoint sets of numbers: which rows belong together. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class UnionFind:
    """The numbers 0 to `count` - 1, each in a set of its own until sets are joined. The smallest number is the root."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def find(self, number: int) -> int:
        """The root of a number's set."""
        root = number
        while (above := int(self._parent[root])) != root:
            root = above
        while (above := int(self._parent[number])) != root:
            self._parent[number] = root
            number = above
        return root

    def union(self, one: int, other: int) -> None:
        """Join the sets of two numbers."""
        first, second = self.find(one), self.find(other)
        self._parent[max(first, second)] = min(first, second)

    def roots(self) -> NDArray[np.int64]:
        """The root of every number. Only read it."""
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return self._parent
            self._parent = above
