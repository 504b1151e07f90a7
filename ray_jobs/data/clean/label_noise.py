"""Label noise: rows whose label a classifier doubts that was trained on other rows. Pure; the result is a list to read.

A logistic regression over hashed n-grams of characters and words predicts each row by cross-validation; rows with one
input are in one fold. cleanlab ranks the rows by the confidence in their label (Northcutt, Jiang, Chuang 2021,
arXiv:1911.00068).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np

from ray_jobs.data.row_arrays import Digests, Ints, distinct_in, numbered, numbers_of
from ray_jobs.tasks.ngram_features import READ_CHARACTERS, ngram_classifier, ngram_features

FOLDS = 5
FEWEST_INPUTS = 10
"""Inputs of a label from which on its rows are judged."""
MOST_ROWS = 20_000
"""Rows that are judged, chosen by hash: the classifier holds all of them."""
_INVERSE_REGULARISATION = 3.0
"""Strong enough that a wrong label is not learnt by heart."""


@dataclass(frozen=True)
class Doubt:
    """A row whose label is doubted."""

    row: int
    suggested: str
    confidence: float
    """Estimated probability of the row's own label."""


def doubted(text_of: Callable[[int], str], labels: Sequence[str | None], inputs: Digests, rows: Ints) -> list[Doubt]:
    """Doubted rows, worst first. `inputs`: digests. Of rows with equal labels and texts the order does not matter."""
    usable = _usable(labels, inputs, rows)
    names = sorted({str(labels[row]) for row in usable})
    if len(names) < 2:
        return []
    from cleanlab.filter import find_label_issues

    given = np.array([names.index(str(labels[row])) for row in usable])
    folds = np.array([int.from_bytes(inputs[row].tobytes()[8:12], "big") % FOLDS for row in usable])
    vectors = ngram_features(len(names)).fit_transform([text_of(row)[:READ_CHARACTERS] for row in usable])
    chances = np.zeros((len(usable), len(names)))
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        if not test.any() or len(set(given[train].tolist())) < 2:
            continue
        model = ngram_classifier(len(names), _INVERSE_REGULARISATION)
        model.fit(vectors[train], given[train])
        chances[np.ix_(test, model.classes_)] = model.predict_proba(vectors[test])
    judged = np.flatnonzero(chances.sum(axis=1) > 0)
    worst = find_label_issues(
        given[judged], chances[judged], return_indices_ranked_by="self_confidence",
        filter_by="predicted_neq_given", n_jobs=1,
    )  # fmt: skip
    return [
        Doubt(usable[at], names[int(chances[at].argmax())], float(chances[at, given[at]]))
        for at in judged[worst].tolist()
    ]


def _usable(labels: Sequence[str | None], inputs: Digests, rows: Ints) -> list[int]:
    """Rows of labels with enough inputs, in the order of their digests."""
    labelled = np.array([row for row in rows.tolist() if labels[row] is not None], dtype=np.int64)
    label = numbers_of([labels[row] for row in labelled.tolist()])
    usable = labelled[distinct_in(label, numbered(inputs[labelled]))[label] >= FEWEST_INPUTS].tolist()
    if len(usable) > MOST_ROWS:
        usable = nsmallest(MOST_ROWS, usable, key=lambda row: hashlib.sha256(b"doubt" + inputs[row].tobytes()).digest())
    return sorted(usable, key=lambda row: (inputs[row].tobytes(), labels[row] or "", row))
