"""The steps over rows: what each changes, drops and reports, in parts and in any order, and without personal data."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ray_jobs.data.clean.boilerplate import LineCounts
from ray_jobs.data.clean.language import LanguageJudge
from ray_jobs.data.clean.row_steps import RowSteps
from ray_jobs.data.clean.samples import is_written, masked, row_id, text_of
from ray_jobs.data.clean.set_steps import clean_set
from ray_jobs.data.preparation import StepReport
from ray_jobs.errors import DataError
from ray_jobs.spec.cleaning import LANGUAGES, CleaningPolicy
from tests.data.clean.support_texts import ENGLISH, OTHERS, requests
from tests.data.clean.test_planted_faults import table_of

BROKEN = "The cafÃ© is open\u200b today, write to taro@example.co.jp please."
CALL: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": BROKEN},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "cafÃ©1", "type": "function",
                    "function": {"name": "cafÃ©", "arguments": {"plÃ¤ce": "cafÃ©", "name": "cafÃ©"}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "cafÃ©1", "content": '{"plÃ¤ce": "cafÃ©"}'},
    ],
    "tools": [{"type": "function", "function": {"name": "cafÃ©", "description": "cafÃ©"}}],
}  # fmt: skip


def report_of(reports: Sequence[StepReport], step: str) -> StepReport:
    (found,) = (report for report in reports if report.step == step)
    return found


# ---- the policy -------------------------------------------------------------------------------------------------


def test_a_word_stands_for_several_fields() -> None:
    standard = CleaningPolicy.model_validate("standard")
    assert (standard.mojibake, standard.invisible, standard.near_duplicates) == ("repair", "remove", "drop")
    assert (standard.conflicts, standard.outliers, standard.boilerplate) == ("report", "report", "off")
    report = CleaningPolicy.model_validate("report")
    changing = {"repair", "remove", "drop", True}
    assert not any(value in changing for value in report.model_dump().values() if isinstance(value, str | bool))


@pytest.mark.parametrize(
    "wrong",
    [
        "thorough", {"mojibake": "drop"}, {"near_duplicate_similarity": 0.5}, {"languages": ["xx"]},
        {"drop_rows": ["12"]}, {"min_characters": 9, "max_characters": 8}, {"duplicates": "drop"},
    ],
)  # fmt: skip
def test_a_wrong_policy_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        CleaningPolicy.model_validate(wrong)


def test_the_languages_are_those_that_the_package_recognises() -> None:
    from lingua import Language

    assert {language.iso_code_639_1.name.lower() for language in Language.all()} == LANGUAGES


# ---- steps of a row ---------------------------------------------------------------------------------------------


def test_texts_are_repaired_and_names_are_not() -> None:
    cleaned = RowSteps(CleaningPolicy.model_validate("standard"), None).apply(CALL, "a.jsonl line 1")
    assert cleaned is not None
    user, assistant, tool = cleaned["messages"]
    assert user["content"] == "The café is open today, write to taro@example.co.jp please."
    (call,) = assistant["tool_calls"]
    assert call["id"] == "cafÃ©1"
    assert call["function"] == {"name": "cafÃ©", "arguments": {"plÃ¤ce": "café", "name": "café"}}
    assert (tool["tool_call_id"], tool["content"]) == ("cafÃ©1", '{"plÃ¤ce": "café"}')
    assert cleaned["tools"] == CALL["tools"]


def test_a_report_changes_nothing_and_shows_no_personal_data() -> None:
    steps = RowSteps(CleaningPolicy())
    row = {"text": BROKEN, "label": "cafÃ©"}
    assert steps.apply(row, "a.csv line 2") == row
    mojibake, invisible = steps.reports()
    assert (mojibake.step, mojibake.action, mojibake.rows, mojibake.detail) == (
        "mojibake", "report", 1, {"repairable": 1}
    )  # fmt: skip
    assert (invisible.step, invisible.rows) == ("invisible", 1)
    (sample,) = mojibake.samples
    assert (sample.row, sample.place, sample.after) == (row_id(row), "a.csv line 2", None)
    assert "[EMAIL]" in sample.before
    assert "taro@" not in str(steps.reports())


def test_a_label_is_not_changed_by_nfkc() -> None:
    row = {"text": "ＡＢＣ①", "label": "Ａ"}
    assert RowSteps(CleaningPolicy(nfkc=True)).apply(row, "") == {"text": "ABC1", "label": "Ａ"}


def test_rows_outside_the_limits_are_dropped_and_counted() -> None:
    steps = RowSteps(CleaningPolicy(min_characters=3, max_characters=5))
    kept = [steps.apply({"text": text, "label": "a"}, "") for text in ("ab", "abc", "abcde", "abcdef")]
    assert [row is not None for row in kept] == [False, True, True, False]
    assert report_of(steps.reports(), "length").detail == {"too long": 1, "too short": 1}


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    rows = [{"text": f"cafÃ© {number}", "label": "a"} for number in range(40)]
    policy = CleaningPolicy.model_validate("standard")
    whole, parts = RowSteps(policy), [RowSteps(policy) for _ in range(3)]
    for number, row in enumerate(rows):
        whole.apply(row, f"line {number}")
        parts[number % 3].apply(row, f"line {number}")
    total = pickle.loads(pickle.dumps(parts[2]))
    total.merge(parts[0])
    total.merge(parts[1])
    assert total.reports() == whole.reports()
    assert len(whole.reports()[0].samples) == 10


def test_boilerplate_is_removed_but_not_from_system_messages_or_as_the_only_line() -> None:
    line = "Sent from my iPhone, please excuse brevity"
    rows = [
        {
            "messages": [
                {"role": "system", "content": f"Answer question {number} briefly.\n{line}"},
                {
                    "role": "user",
                    "content": f"Question {number} about {number * 7} things\n\n{line}" if number else line,
                },
                {"role": "assistant", "content": f"Answer {number}"},
            ]
        }
        for number in range(30)
    ]
    counts = LineCounts()
    for row in rows:
        counts.add(row, None)
    steps = RowSteps(CleaningPolicy(boilerplate="remove"), None, counts.boilerplate())
    cleaned = [steps.apply(row, f"line {number}") for number, row in enumerate(rows)]
    assert cleaned[0] == rows[0]
    assert cleaned[3] is not None
    assert [message["content"] for message in cleaned[3]["messages"]] == [
        f"Answer question 3 briefly.\n{line}", "Question 3 about 21 things", "Answer 3"
    ]  # fmt: skip
    assert report_of(steps.reports(), "boilerplate").rows == 29


def test_a_line_in_few_rows_is_no_boilerplate() -> None:
    counts = LineCounts()
    for number in range(19):
        counts.add({"text": f"Kind regards, your team\n{number} is the number"}, None)
    assert not counts.boilerplate()


def test_what_a_person_or_a_model_wrote() -> None:
    assert text_of(CALL, None).split("\n") == [BROKEN, "cafÃ©", "cafÃ©", "cafÃ©"]
    assert is_written("messages[0].tool_calls[0].function.arguments.type")
    assert not is_written("messages[0].content[1].type")


def test_masked_texts_are_cut_after_they_are_masked() -> None:
    assert masked("x" * 290 + " taro.yamada@example.co.jp") == "x" * 290 + " [EMAIL]"
    assert len(masked("y" * 5000)) == 300


# ---- steps that compare rows ------------------------------------------------------------------------------------

_EVERY = CleaningPolicy(
    exact_duplicates="drop", near_duplicates="drop", conflicts="drop", outliers="drop", label_noise=True
)


def test_the_same_rows_stay_in_any_order() -> None:
    rows = requests(80, seed=3)
    rows += [rows[0], (rows[1][0] + "!", rows[1][1]), (rows[2][0], "other"), ("1234567890" * 200, "billing")]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    shuffled = [rows[number] for number in order]
    one, other = clean_set(_EVERY, table_of(rows)), clean_set(_EVERY, table_of(shuffled))
    kept = sorted(row for number, row in enumerate(rows) if number not in one.removed)
    assert kept == sorted(row for number, row in enumerate(shuffled) if number not in other.removed)
    assert set(one.removed.values()) == {"exact_duplicates", "near_duplicates", "conflicts", "outliers"}
    assert [(each.step, each.rows, each.detail) for each in one.reports] == [
        (each.step, each.rows, each.detail) for each in other.reports
    ]


def test_similar_texts_with_two_labels_are_no_near_duplicates() -> None:
    text = " ".join(ENGLISH["billing"])
    found = clean_set(
        CleaningPolicy(near_duplicates="drop"), table_of([(text, "a"), (text + "!", "b"), (text + "?", "b")])
    )
    assert len(found.removed) == 1
    assert not set(found.removed) & {0}
    (cluster,) = found.clusters
    assert (cluster.rows, cluster.kept) == (3, 2)


def test_answers_of_one_question_conflict_without_labels() -> None:
    table = table_of([("a", "x"), ("a", "y"), ("b", "x")])
    answers = replace(table, labels=[None] * 3)
    found = clean_set(CleaningPolicy(conflicts="drop"), answers)
    assert set(found.removed) == {0, 1}
    assert "2 answers" in report_of(found.reports, "conflicts").samples[0].why


def test_listed_rows_are_dropped_before_others_are_compared_with_them() -> None:
    table = table_of([("a", "x"), ("a", "y"), ("b", "x")])
    found = clean_set(CleaningPolicy(conflicts="drop"), table, drop=[table.id_of(1)])
    assert dict(found.removed) == {1: "drop_rows"}


def test_an_id_that_no_row_has_is_named() -> None:
    table = table_of([("a", "x")])
    with pytest.raises(DataError, match="1 id") as caught:
        clean_set(CleaningPolicy(), table, drop=["0" * 16, "1" * 16, table.id_of(0)], gone=["1" * 16])
    assert list(caught.value.details) == ["0" * 16]


def test_few_rows_have_no_outliers() -> None:
    assert not clean_set(CleaningPolicy(outliers="drop"), table_of([("a", "x"), ("b" * 9999, "x")])).removed


def test_rows_in_other_languages_are_listed_and_stay() -> None:
    rows = [(" ".join(ENGLISH["billing"]), "a"), (OTHERS[0], "a"), (OTHERS[2], "a"), ("Oui, merci", "a")]
    found = clean_set(CleaningPolicy(languages=("en",)), table_of(rows))
    report = report_of(found.reports, "language")
    assert (report.action, report.rows, report.detail) == ("list", 2, {"de": 1, "fr": 1})
    assert not found.removed


def test_a_text_of_code_and_addresses_has_no_language() -> None:
    assert (
        LanguageJudge(["en"]).judge("https://example.com/aktuelle/nachrichten/aus/der/welt {kein_text} <br/>") is None
    )
