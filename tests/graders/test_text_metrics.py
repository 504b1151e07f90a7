"""Text metrics against values computed by hand, or printed in the documentation of the libraries that define them."""

from __future__ import annotations

import pytest

from ray_jobs.errors import GradingError
from ray_jobs.graders.text_metrics import MAX_CHARACTERS, METRICS, common_length, similarity, words, words_and_signs

CAT, MAT = "the cat sat on the mat", "the cat lay on the mat"
TOKYO, KYOTO = "東京は日本の首都です。", "京都は日本の古都です。"


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        # rapidfuzz's documentation: fuzz.ratio("this is a test", "this is a test!") is 96.55
        ("fuzzy_match", "this is a test", "this is a test!", 2 * 14 / 29),
        ("fuzzy_match", "kitten", "sitting", 2 * 4 / 13),
        ("fuzzy_match", "", "", 1.0),
        ("fuzzy_match", "a", "", 0.0),
        # 京・は・日・本・の・都・で・す・。 in common: 9 of 11
        ("fuzzy_match", TOKYO, KYOTO, 2 * 9 / 22),
        # 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 1 of 4 ("on the mat"), 4-grams 0, smoothed to 1/2 of 3
        ("bleu", CAT, MAT, (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2) / 3) ** 0.25),
        ("bleu", CAT, CAT, 1.0),
        ("bleu", "", CAT, 0.0),
        # 4 characters of 5, 3 pairs of 4 with a brevity penalty of exp(1 - 5/4) for 4 characters
        ("bleu", "猫が好き", "猫が好きだ", 2.718281828459045 ** (1 - 5 / 4)),
        ("gleu", CAT, MAT, (5 + 3 + 1 + 0) / (6 + 5 + 4 + 3)),
        ("gleu", "猫が好き", "猫が好きだ", (4 + 3 + 2 + 1) / (5 + 4 + 3 + 2)),
        ("gleu", "", "", 0.0),
        ("rouge_1", CAT, MAT, 5 / 6),
        ("rouge_2", CAT, MAT, 3 / 5),
        ("rouge_3", CAT, MAT, 1 / 4),
        ("rouge_4", CAT, MAT, 0.0),
        ("rouge_5", CAT, CAT, 1.0),
        ("rouge_1", "The Cat!", "the cat", 1.0),
        # rouge_score's README: target "The quick brown fox jumps over the lazy dog",
        # prediction "The quick brown dog jumps on the log.": rouge1 0.70588, rougeL 0.70588 - 2 * 6/17
        ("rouge_1", "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 12 / 17),
        ("rouge_l", "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 10 / 17),
        ("rouge_l", CAT, MAT, 5 / 6),
        # 10 characters each, without 。: 京 は 日 本 の 都 で す in common
        ("rouge_l", TOKYO, KYOTO, 8 / 10),
        ("rouge_1", TOKYO, KYOTO, 8 / 10),
        # は日 日本 本の 都で です
        ("rouge_2", TOKYO, KYOTO, 5 / 9),
        ("rouge_1", "", "", 0.0),
    ],
)
def test_a_metric_has_its_published_value(metric: str, text: str, reference: str, value: float) -> None:
    assert METRICS[metric](text, reference) == pytest.approx(value, abs=1e-9)


def test_scripts_without_spaces_are_split_into_characters() -> None:
    assert words("GPU 3枚で学習、Kitaeを使う。") == [*("gpu", "3"), *"枚で学習", "kitae", *"を使う"]
    assert words_and_signs("It's ok、はい") == ["It", "'", "s", "ok", "、", "は", "い"]
    assert words("สวัสดี ภาษา")[0] == "ส"
    assert words("naïve_Straße") == ["naïve", "strasse"]


@pytest.mark.parametrize("metric", METRICS)
def test_a_text_without_anything_in_common_scores_0_and_an_equal_one_1(metric: str) -> None:
    long = "one two three four five six"
    assert similarity(metric, long, long) == pytest.approx(1.0)
    assert similarity(metric, "αβγ", long) < 0.1


def test_the_length_of_the_longest_common_subsequence_is_that_of_the_table() -> None:
    first, second = "ACCGGTCGAGTGCGCGGAAGCCGGCCGAA", "GTCGTTCGGAATGCCGTTGCTCTGTAAA"  # Cormen et al.
    assert common_length(first, second) == len("GTCGTCGGAAGCCGGCCGAA")


def test_texts_are_bounded() -> None:
    with pytest.raises(GradingError, match=f"50001 characters; rouge_l compares at most {MAX_CHARACTERS}"):
        similarity("rouge_l", "a" * (MAX_CHARACTERS + 1), "a")
    assert similarity("rouge_l", "あ" * MAX_CHARACTERS, "あ" * MAX_CHARACTERS) == 1.0
