"""Near duplicates: what is found at which similarity, whatever the order, and in bounded time on rows of a template."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.clean import near_duplicates
from ray_jobs.data.clean.near_duplicates import WIDTH, clusters, keepers, signatures
from ray_jobs.data.clean.ngrams import gram_set, jaccard

ENGLISH = "The invoice for March was paid twice, and the customer asks for the second amount to be returned."
JAPANESE = "三月分の請求書が二重に支払われたため、お客様は二回目の金額の返金を希望されています。"


def found(texts: Sequence[str], similarity: float = 0.8) -> list[int]:
    numbers: list[int] = clusters(signatures(texts), texts.__getitem__, similarity).tolist()
    return numbers


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE])
def test_an_edit_is_a_near_duplicate_and_another_text_is_none(text: str) -> None:
    edited = text.replace("twice", "twise").replace("三月", "四月")
    assert found([text, "Please reset my password.", edited, "パスワードを忘れました。"]) == [0, 1, 0, 3]


def test_white_space_width_and_case_are_no_difference() -> None:
    assert found(["ＡＢＣ　コード", "abc\nｺｰﾄﾞ", "A b c コード", "abd コード"]) == [0, 0, 0, 3]


def test_short_texts_are_near_duplicates_only_if_they_are_the_same() -> None:
    assert found(["yes", "Yes", "yet", "はい", "いい", "", " ", "ok", "no"]) == [0, 0, 2, 3, 4, 5, 5, 7, 8]


def test_no_rows_have_no_clusters() -> None:
    assert signatures([]).shape == (0, WIDTH)
    assert found([]) == []


@pytest.mark.parametrize("similarity", [0.5, 1.1])
def test_a_similarity_that_cannot_be_found_is_refused(similarity: float) -> None:
    with pytest.raises(ValueError, match=r"it must be from 0\.6 to 1"):
        found(["a"], similarity)


def test_only_the_same_grams_have_similarity_one() -> None:
    assert found([ENGLISH, ENGLISH.upper(), ENGLISH[:-1]], 1.0) == [0, 0, 2]


def test_signatures_of_batches_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{ENGLISH} {number}" for number in range(20)]
    whole = signatures(texts)
    monkeypatch.setattr(near_duplicates, "_BATCH_CHARACTERS", 300)
    assert np.array_equal(signatures(texts), whole)
    assert np.array_equal(np.concatenate([signatures(texts[:7]), signatures(texts[7:])]), whole)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)))
def test_the_order_of_the_rows_changes_nothing(order: list[int]) -> None:
    texts = _family(Random(3), 40)
    groups = found(texts)
    shuffled = found([texts[number] for number in order])
    assert _partition(groups, range(40)) == _partition(shuffled, order)
    assert all(group == min(i for i, other in enumerate(groups) if other == group) for group in groups)


def test_a_chain_is_one_cluster_of_which_several_rows_stay() -> None:
    texts = [_chain_link(step) for step in range(30)]
    marks = signatures(texts)
    assert set(clusters(marks, texts.__getitem__, 0.8).tolist()) == {0}
    assert jaccard(gram_set(texts[0]), gram_set(texts[-1])) < 0.2
    keeper = keepers(range(30), marks, near_duplicates.GramSets(texts.__getitem__), 0.8)
    kept = {row for row, stays in keeper.items() if row == stays}
    assert 3 <= len(kept) < 30
    for row, stays in keeper.items():
        assert stays in kept
        assert jaccard(gram_set(texts[row]), gram_set(texts[stays])) >= 0.8


def test_rows_of_a_template_are_compared_in_linear_time_and_found() -> None:
    rows, comparisons = 800, 0
    random = Random(5)
    texts = [f"{ENGLISH} {JAPANESE} Reference {random.randrange(10**9):09}" for _ in range(rows)]

    def text_of(row: int) -> str:
        nonlocal comparisons
        comparisons += 1
        return texts[row]

    assert set(clusters(signatures(texts), text_of, 0.8).tolist()) == {0}
    assert comparisons <= 2 * rows


def test_rows_that_are_just_not_similar_are_compared_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    random, compared = Random(6), 0
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [f"{ENGLISH} {''.join(random.choice(letters) for _ in range(14))}" for _ in range(500)]
    similar = near_duplicates.GramSets.similar

    def counted(sets: near_duplicates.GramSets, one: int, other: int, similarity: float) -> bool:
        nonlocal compared
        compared += 1
        return similar(sets, one, other, similarity)

    monkeypatch.setattr(near_duplicates.GramSets, "similar", counted)
    assert len(set(found(texts, 0.9))) == 500
    assert compared <= 64 * 500


def _family(random: Random, count: int) -> list[str]:
    """Texts of which some are edits of others."""
    texts = [" ".join(random.choice(ENGLISH.split()) for _ in range(25)) for _ in range(count // 2)]
    return texts + [text.replace("the", "The", 1)[: -random.randint(1, 5)] for text in texts]


def _chain_link(step: int) -> str:
    words = [f"word{number * 7919 % 1000}" for number in range(step * 2, step * 2 + 40)]
    return " ".join(words)


def _partition(groups: Sequence[int], numbers: Sequence[int]) -> set[frozenset[int]]:
    return {
        frozenset(number for group, number in zip(groups, numbers, strict=True) if group == each) for each in groups
    }
