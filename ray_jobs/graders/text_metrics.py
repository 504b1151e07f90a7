"""Similarity of two texts, from 0 to 1, by the published definitions.

Text is split into words. Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are
split into characters, so that a value does not depend on a word segmenter. ROUGE ignores case and punctuation.

fuzzy_match   normalized Indel similarity of the characters, 2·LCS / (a + b): rapidfuzz's `fuzz.ratio`
bleu          sacrebleu's sentence BLEU with exponential smoothing (Papineni et al. 2002; Chen and Cherry 2014)
gleu          matched 1- to 4-grams over those of the longer text (Wu et al. 2016)
rouge_N       F1 of the N-grams; rouge_l: F1 of the longest common subsequence (Lin 2004)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from ray_jobs.errors import GradingError

MAX_CHARACTERS = 50_000
"""Most characters of a text: the longest common subsequence costs their product."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_WORD_OR_SIGN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[^\w\s]|_")
_MOST_GRAMS = 4
"""Longest n-grams of BLEU and GLEU."""


def words(text: str) -> list[str]:
    """Return ROUGE's words: without case and punctuation."""
    return _WORD.findall(text.casefold())


def words_and_signs(text: str) -> list[str]:
    """Return the words of BLEU and GLEU, and each sign."""
    return _WORD_OR_SIGN.findall(text)


def fuzzy_match(text: str, reference: str) -> float:
    total = len(text) + len(reference)
    return 2 * common_length(text, reference) / total if total else 1.0


def bleu(text: str, reference: str) -> float:
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    score = scorer.sentence_score(" ".join(words_and_signs(text)), [" ".join(words_and_signs(reference))])
    return min(1.0, float(score.score) / 100)


def gleu(text: str, reference: str) -> float:
    mine, wanted = words_and_signs(text), words_and_signs(reference)
    matched = total = 0
    for size in range(1, _MOST_GRAMS + 1):
        own, theirs = _grams(mine, size), _grams(wanted, size)
        matched += (own & theirs).total()
        total += max(own.total(), theirs.total())
    return matched / total if total else 0.0


def rouge_n(size: int, text: str, reference: str) -> float:
    own, theirs = _grams(words(text), size), _grams(words(reference), size)
    return _f1((own & theirs).total(), own.total(), theirs.total())


def rouge_l(text: str, reference: str) -> float:
    own, theirs = words(text), words(reference)
    return _f1(common_length(own, theirs), len(own), len(theirs))


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{size}": partial(rouge_n, size) for size in range(1, 6)},
    "rouge_l": rouge_l,
}


def similarity(metric: str, text: str, reference: str) -> float:
    """Return a metric's value. Raises GradingError for texts over `MAX_CHARACTERS`."""
    longest = max(len(text), len(reference))
    if longest > MAX_CHARACTERS:
        raise GradingError(f"a text has {longest} characters; {metric} compares at most {MAX_CHARACTERS}")
    return METRICS[metric](text, reference)


def common_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence, 64 elements a step (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for place, element in enumerate(first):
        places[element] = places.get(element, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for element in second:
        hits = row & places.get(element, 0)
        row = (row + hits | row - hits) & every
    return len(first) - row.bit_count()


def _grams(tokens: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def _f1(matched: int, own: int, theirs: int) -> float:
    return 2 * matched / (own + theirs) if matched else 0.0
