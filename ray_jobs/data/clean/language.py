"""The language of a text, with a confidence. Pure; the models come with the package and load on first use.

A text is compared with the wanted languages and with those that most texts are in: a language outside both is taken
for its nearest relative. Texts too short to be judged have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua import LanguageDetector

COMMON = ("ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "vi", "zh")
LEAST_CONFIDENCE = 0.9
LEAST_LETTERS = 40
"""Letters of a text that is judged; a Chinese, Japanese or Korean character counts as `_CJK_LETTERS`."""
_CJK_LETTERS = 4
_READ_CHARACTERS = 2000
_NO_WORDS = re.compile(r"[!-~]*[<>%{}_/=\\@][!-~]*")
"""Addresses, tags, placeholders and code, which are in no language."""


@dataclass(frozen=True)
class Judged:
    """A text's language."""

    language: str
    """ISO 639-1."""
    confidence: float


class LanguageJudge:
    """Judges texts against the languages that a policy names."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = frozenset(wanted)

    def other(self, text: str) -> Judged | None:
        """The text's language, if it is surely none of the wanted ones."""
        judged = self.judge(text)
        return (
            judged if judged and judged.confidence >= LEAST_CONFIDENCE and judged.language not in self._wanted else None
        )

    def judge(self, text: str) -> Judged | None:
        """The likeliest language. None: the text is too short, or has too few letters."""
        head = _NO_WORDS.sub(" ", text[:_READ_CHARACTERS])
        letters = sum((_CJK_LETTERS if "\u2e80" <= each < "\ud800" else 1) for each in head if each.isalpha())
        if letters < LEAST_LETTERS:
            return None
        found = _detector(self._wanted | frozenset(COMMON)).compute_language_confidence_values(head)
        return Judged(found[0].language.iso_code_639_1.name.lower(), found[0].value) if found else None


@lru_cache(maxsize=2)
def _detector(codes: frozenset[str]) -> LanguageDetector:
    from lingua import Language, LanguageDetectorBuilder

    chosen = [language for language in Language.all() if language.iso_code_639_1.name.lower() in codes]
    return LanguageDetectorBuilder.from_languages(*chosen).with_low_accuracy_mode().build()
