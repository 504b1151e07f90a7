"""TF-IDF of n-grams of characters and words, for classifiers without a base model. Fixed size, any language."""

from __future__ import annotations

from typing import Any

_FEATURES = 2**18
READ_CHARACTERS = 2000
"""Characters of a text that are enough."""


def ngram_features() -> Any:
    """A scikit-learn transformer of texts into sparse rows, (texts, 2 * _FEATURES). Words alone say little of Japanese,
    characters alone less of opinions."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline, make_union

    common = {"n_features": _FEATURES, "norm": None, "alternate_sign": False}
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), **common)
    words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", **common)
    return make_union(*(make_pipeline(each, TfidfTransformer(sublinear_tf=True)) for each in (characters, words)))
