"""Character n-grams of texts, as hashes: what near duplicates are compared by. Pure; knows no rows.

Texts are compared without differences of width, case (NFKC, casefold) and white space, all of which is removed. A gram
has three characters where it starts with a Chinese, Japanese or Korean one, else five: a kanji says about as much as
two letters, so one edit costs a Japanese text about as much of its similarity as an English one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LONG, SHORT = 5, 3
"""Characters of a gram; `SHORT` where it starts with a Chinese, Japanese or Korean character."""
_CJK_FIRST, _CJK_END, _CJK_SUPPLEMENT = 0x2E80, 0xD800, 0x20000
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Multipliers of SplitMix64's mixing step (Steele, Lea, Flood 2014)."""


@dataclass(frozen=True)
class Grams:
    """Hashed grams of several texts, one after the other."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    """Grams of text i: `hashes[offsets[i]:offsets[i + 1]]`, at least one, with repetitions."""


def compared(text: str) -> str:
    """The text as it is compared."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(plain.split())


def identity(text: str) -> bytes:
    """64 bits of the SHA-256 of a `compared` text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]


def grams(texts: Sequence[str]) -> Grams:
    """Grams of `compared` texts, one from each character on: the end is padded, so that a last number counts."""
    padded = [(text or "\0") + "\0" * (LONG - 1) for text in texts]
    codes = np.frombuffer("".join([*padded, "\0" * LONG]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    ends = np.cumsum(lengths)
    at = np.arange(int(ends[-1]) if len(ends) else 0)
    is_short = _is_cjk(codes[: len(at)])
    size = np.where(is_short, SHORT, LONG)
    complete = at + size <= np.repeat(ends, lengths)
    counts = np.concatenate([[0], np.cumsum(complete)])[np.concatenate([[0], ends])]
    wide = codes.astype(np.uint64)
    first, second, third, fourth, fifth = (wide[shift : shift + len(at)] for shift in range(LONG))
    mixed = mix(first | second << np.uint64(21) | third << np.uint64(42))
    tail = np.where(is_short, np.uint64(0), fourth | fifth << np.uint64(21) | np.uint64(1 << 42))
    return Grams(mix(mixed ^ tail)[complete], counts.astype(np.uint64))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash of each value: a bijection of 64 bits."""
    values = values + _ODD[0]
    values = (values ^ values >> np.uint64(30)) * _ODD[1]
    values = (values ^ values >> np.uint64(27)) * _ODD[2]
    return values ^ values >> np.uint64(31)


def gram_sets(texts: Sequence[str]) -> list[NDArray[np.uint64]]:
    """Sorted distinct grams of each text as it was read."""
    found = grams(list(map(compared, texts)))
    ends = found.offsets.tolist()
    ordered = [np.sort(found.hashes[start:end]) for start, end in pairwise(ends)]
    return [each[np.append(True, each[1:] != each[:-1])] for each in ordered]


def gram_set(text: str) -> NDArray[np.uint64]:
    """Sorted distinct grams of one text."""
    return gram_sets([text])[0]


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Jaccard similarity of two `gram_set`s: the shared part of all their grams, 0 to 1."""
    both = np.sort(np.concatenate([one, other]))
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(one) + len(other) - shared)


def _is_cjk(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return ((codes >= _CJK_FIRST) & (codes < _CJK_END)) | (codes >= _CJK_SUPPLEMENT)
