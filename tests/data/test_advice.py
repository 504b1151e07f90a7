"""What to fix first: each rule fires at its limit and not below, in the order of importance, with a line that works."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import yaml

from ray_jobs.data.advice import LONG_CHARACTERS, Importance, Rule, advise
from ray_jobs.data.advice_messages import ADVICE, line
from ray_jobs.data.page import page
from ray_jobs.data.preparation import Preparation, Sample, Side, Step, StepReport, TokenFit
from ray_jobs.pages.messages import Language
from ray_jobs.spec.sections import DataSection
from tests.data.builders import make_preparation

EVEN = {"a": 100, "b": 100}
SETTINGS: dict[str, set[Any]] = {
    "mojibake": {"repair"},
    "invisible": {"remove"},
    "boilerplate": {"remove"},
    "exact_duplicates": {"drop"},
    "near_duplicates": {"drop"},
    "conflicts": {"drop"},
    "outliers": {"drop"},
}
"""Settings below `clean:` that an advice may name."""


def sides(train: dict[str, int], held_out: dict[str, int] | None = None) -> dict[str, Any]:
    """Fields of a report with these labels on the training side and on the test side."""
    parts = {"train": train, "test": EVEN if held_out is None else held_out}
    made = {name: Side(rows=sum(labels.values()), labels=labels) for name, labels in parts.items()}
    return {"sides": made, "read": sum(side.rows for side in made.values())}


def step(name: Step, rows: int, action: Any = "report", **detail: int) -> dict[str, Any]:
    sample = Sample(row="1234567890123456", place="a", before="a", why="a")
    return {"steps": (StepReport(step=name, rows=rows, action=action, samples=(sample,), detail=detail),)}


def fit(**fields: Any) -> dict[str, Any]:
    """How the rows fit a base."""
    return {"fit": TokenFit(**{"rows": 400, "max_tokens": 512, "too_long": "error"} | fields)}


FIRES: list[tuple[Rule, dict[str, Any], dict[str, Any]]] = [
    ("no_rows", {"sides": {"train": Side(rows=0)}}, {}),
    ("no_training_rows", {"sides": {"test": Side(rows=400)}}, {}),
    ("side_without_rows", {"sides": {"train": Side(rows=400), "test": Side(rows=0)}}, {}),
    ("one_label", sides({"a": 100}, {"a": 100}), sides(EVEN)),
    ("label_not_trained", sides(EVEN, EVEN | {"c": 1}), sides(EVEN | {"c": 100}, EVEN | {"c": 1})),
    ("secrets", step("personal_data", 1, api_key=1), step("personal_data", 1, "change", api_key=1)),
    ("personal_data", step("personal_data", 1, email=1), step("personal_data", 1, "drop", email=1)),
    ("leaks", step("leaks", 1), step("leaks", 1, "drop")),
    ("conflicts", step("conflicts", 1), step("conflicts", 1, "drop")),
    ("label_noise", step("label_noise", 1, "list"), step("label_noise", 0, "list")),
    ("few_rows", {"sides": {"train": Side(rows=49)}, "read": 49}, {"sides": {"train": Side(rows=50)}, "read": 50}),
    ("few_rows_of_labels", sides({"a": 49, "b": 100}), sides({"a": 50, "b": 100})),
    ("label_not_measured", sides(EVEN, {"a": 1}), sides(EVEN, {"a": 1, "b": 1})),
    ("imbalance", sides({"a": 1000, "b": 100}), sides({"a": 999, "b": 100})),
    ("many_dropped", {"read": 572}, {"read": 571}),
    ("exact_duplicates", step("exact_duplicates", 21), step("exact_duplicates", 20)),
    ("near_duplicates", step("near_duplicates", 21), step("near_duplicates", 20)),
    ("mojibake", step("mojibake", 1), step("mojibake", 1, "change")),
    ("invisible", step("invisible", 1), step("invisible", 1, "change")),
    ("boilerplate", step("boilerplate", 1), step("boilerplate", 1, "change")),
    ("outliers", step("outliers", 1), step("outliers", 1, "drop")),
    ("language", step("language", 1, "list"), step("language", 0, "list")),
    ("too_long", fit(long_rows=1), fit(long_rows=1, too_long="drop")),
    ("too_long_left_out", fit(long_rows=1, too_long="drop"), fit(long_rows=1, too_long="truncate")),
    ("answers_cut", fit(cut_rows=1, long_rows=1, too_long="truncate"), fit(long_rows=1, too_long="truncate")),
    ("nothing_trained", fit(untrained_rows=1), fit()),
    ("long_texts", {"lengths": {LONG_CHARACTERS: 1}}, {"lengths": {LONG_CHARACTERS // 2: 400}}),
]  # fmt: skip
"""(rule, changes for which it fires, changes for which it does not quite)."""


def rules(report: Preparation) -> list[Rule]:
    return [each.rule for each in advise(report)]


def test_a_good_report_needs_nothing() -> None:
    assert rules(make_preparation()) == []
    assert "found nothing that you need to fix" in page(make_preparation(), "en")


def test_every_rule_has_a_case_and_words() -> None:
    assert sorted(rule for rule, _, _ in FIRES) == sorted(get_args(Rule)) == sorted(ADVICE)


@pytest.mark.parametrize(("rule", "fires", "not_quite"), FIRES, ids=[rule for rule, _, _ in FIRES])
def test_a_rule_fires_at_its_limit(rule: Rule, fires: dict[str, Any], not_quite: dict[str, Any]) -> None:
    assert rule in rules(make_preparation(**fires))
    assert rule not in rules(make_preparation(**not_quite))


@pytest.mark.parametrize(("rule", "fires", "not_quite"), FIRES, ids=[rule for rule, _, _ in FIRES])
def test_every_line_is_a_setting_of_data(rule: Rule, fires: dict[str, Any], not_quite: dict[str, Any]) -> None:
    advice = next(each for each in advise(make_preparation(**fires)) if each.rule == rule)
    setting: dict[str, Any] = yaml.safe_load(line(advice)) if line(advice) else {}
    for name, value in setting.pop("clean", {}).items():
        assert value == [advice.example] if name == "drop_rows" else value in SETTINGS[name]
    DataSection.model_validate({"train": "a.jsonl", **setting})


def test_the_rows_of_an_advice_are_enough() -> None:
    (imbalance,) = advise(make_preparation(**sides({"a": 1000, "b": 60}, EVEN)))
    assert (imbalance.rule, imbalance.rows, imbalance.ratio) == ("imbalance", 41, 16)
    assert rules(make_preparation(**sides({"a": 1000, "b": 100}, EVEN))) == ["imbalance"]
    assert rules(make_preparation(**sides({"a": 1000, "b": 60 + imbalance.rows}, EVEN))) == []
    (few,) = advise(make_preparation(**sides({"a": 100, "b": 20}, EVEN)))
    assert rules(make_preparation(**sides({"a": 100, "b": 20 + few.rows}, EVEN))) == []


def test_an_id_is_text_in_yaml_and_without_one_there_is_no_line() -> None:
    listed = StepReport(step="label_noise", action="list", rows=1)
    (advice,) = advise(make_preparation(steps=(listed,)))
    assert line(advice) == ""
    (advice,) = advise(make_preparation(**step("label_noise", 1, "list")))
    assert yaml.safe_load(line(advice)) == {"clean": {"drop_rows": ["1234567890123456"]}}


def test_the_order_is_importance_and_then_rows() -> None:
    report = make_preparation(
        **sides({"a": 1000, "b": 20}, {"a": 10, "b": 10, "c": 1}),
        lengths={LONG_CHARACTERS: 7},
        steps=(
            StepReport(step="mojibake", action="report", rows=900),
            StepReport(step="invisible", action="report", rows=1),
            StepReport(step="conflicts", action="report", rows=40),
            StepReport(step="personal_data", action="report", rows=90, detail={"email": 90, "my_number": 3}),
        ),
    )
    found = advise(report)
    assert [(each.rule, each.rows) for each in found] == [
        ("secrets", 3),
        ("label_not_trained", 1),
        ("personal_data", 90),
        ("imbalance", 81),
        ("conflicts", 40),
        ("few_rows_of_labels", 30),
        ("mojibake", 900),
        ("long_texts", 7),
        ("invisible", 1),
    ]
    assert [each.importance for each in found] == sorted(each.importance for each in found)
    assert {each.importance for each in found} == set(Importance)
    html = page(report, "en")
    words = [ADVICE[each.rule].problem.en[-12:] for each in found]
    places = [html.index(word) for word in words if "{" not in word and word in html]
    assert len(places) > 5
    assert places == sorted(places)


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize(("rule", "fires", "not_quite"), FIRES, ids=[rule for rule, _, _ in FIRES])
def test_every_advice_can_be_written(
    language: Language, rule: Rule, fires: dict[str, Any], not_quite: dict[str, Any]
) -> None:
    html = page(make_preparation(**fires), language)
    remedy = ADVICE[rule].remedy.template(language)
    assert max(remedy.replace("}", "{").split("{")[::2], key=len) in html.replace("&#x27;", "'")


def test_labels_and_kinds_are_named() -> None:
    html = page(make_preparation(**step("personal_data", 5, email=5, phone=2)), "ja")
    assert "個人情報が含まれています：メールアドレス、電話番号。" in html
    few = {f"l{place:02}": 10 for place in range(30)}
    assert "l08, l09 and 20 more." in page(make_preparation(**sides(few, few)), "en")
    # A label that is spelt as a kind or a side remains a label.
    assert "training rows: email, train." in page(
        make_preparation(**sides({"email": 20, "train": 20}, {"email": 1, "train": 1})), "en"
    )
