"""Messages of the pages in English and Japanese: one text a language, with the same placeholders. Pure.

A placeholder is a name in braces. Whole numbers get thousands separators in both languages. English chooses the plural
after a colon, `{rows:row was|rows were}`, which also writes the number: "1 row was", "4,213 rows were".
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "ja"]


@dataclass(frozen=True)
class Message:
    """A text of a page in every language."""

    en: str
    ja: str

    def template(self, language: Language) -> str:
        """The text with its placeholders."""
        return self.en if language == "en" else self.ja


@dataclass(frozen=True)
class Speaker:
    """Fills in messages in one language. The result is plain text, which the page escapes."""

    language: Language

    def __call__(self, message: Message, **values: str | int) -> str:
        """Raises KeyError for a placeholder without a value."""
        counted = {name: _Count(value) if isinstance(value, int) else value for name, value in values.items()}
        return message.template(self.language).format_map(counted)

    def percent(self, share: float) -> str:
        """A share with a digit after the point; a smaller one than that is not written as zero."""
        if 0 < share < 0.001:
            return "less than 0.1%" if self.language == "en" else "0.1%未満"
        return f"{share:.1%}"

    def join(self, texts: Iterable[str]) -> str:
        """An enumeration: `a, b`, or `a、b`."""
        return (", " if self.language == "en" else "、").join(texts)

    def sentences(self, texts: Iterable[str]) -> str:
        """Sentences in a row; Japanese has no space between them."""
        return (" " if self.language == "en" else "").join(texts)


def placeholders(text: str) -> frozenset[str]:
    """Names in braces. Raises ValueError for braces that do not match."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


class _Count(int):
    """A whole number whose format is `one|other`, the words that follow it, or empty."""

    def __format__(self, words: str) -> str:
        number = f"{int(self):,}"
        if not words:
            return number
        one, other = words.split("|")
        return f"{number} {one if self == 1 else other}"
