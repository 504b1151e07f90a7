"""A classifier of texts without a base model: logistic regression on TF-IDF of n-grams, in any language, of bounded
size."""

from __future__ import annotations

from typing import Any

READ_CHARACTERS = 2000
"""Characters of a text that are enough."""
_FEATURES, _FEATURES_OF_MANY = 2**18, 2**15
_MANY_CLASSES = 20
"""The weights are features times classes."""


def ngram_features(classes: int) -> Any:
    """A scikit-learn transformer of texts into sparse rows. Words alone say little of Japanese, characters alone less
    of opinions."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline, make_union

    features = _FEATURES if classes <= _MANY_CLASSES else _FEATURES_OF_MANY
    common = {"n_features": features, "norm": None, "alternate_sign": False}
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), **common)
    words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", **common)
    return make_union(*(make_pipeline(each, TfidfTransformer(sublinear_tf=True)) for each in (characters, words)))


def ngram_classifier(classes: int, inverse_regularisation: float) -> Any:
    """A scikit-learn classifier of such rows; of more than two classes, each against the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model = LogisticRegression(C=inverse_regularisation, solver="liblinear", tol=1e-3, random_state=0)
    return model if classes <= 2 else OneVsRestClassifier(model)
