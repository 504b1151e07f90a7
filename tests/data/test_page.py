"""The page of a preparation: its numbers, both languages, hostile texts, and reports at the extremes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any, get_args

import pytest

from ray_jobs.data import page_messages as messages
from ray_jobs.data.differences import difference
from ray_jobs.data.page import page
from ray_jobs.data.page_figures import short
from ray_jobs.data.preparation import DuplicateCluster, Preparation, Sample, Side, Step, StepReport
from ray_jobs.pages.messages import Language
from tests.data.builders import make_preparation

LANGUAGES: tuple[Language, ...] = get_args(Language)
EVIL = "</script><script>alert(1)</script><b>"
VOID = {"meta"}
MOST_BYTES = 200_000
"""Size of a page with 1,000 listed rows, without plotly.js."""


class Balanced(HTMLParser):
    """Fails on an element that is not closed, and gathers the cells of tables and the other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += data
            if "td" in self.open:
                self.cells[-1] += data


def without_library(html: str) -> str:
    """The page without plotly.js, which is its longest script."""
    return html.replace(max(re.findall(r"<script.*?</script>", html, flags=re.DOTALL), key=len, default=""), "")


def figures(html: str) -> dict[str, dict[str, Any]]:
    """Data and layout of each figure by its key."""
    found: dict[str, dict[str, Any]] = {}
    decoder = json.JSONDecoder()
    small = without_library(html)
    for call in re.finditer(r'Plotly\.newPlot\(\s*"(\w+)",\s*', small):
        data, end = decoder.raw_decode(small, call.end())
        layout, _ = decoder.raw_decode(small, re.compile(r"[\s,]*").match(small, end).end())  # type: ignore[union-attr]  # matches always
        found[call[1]] = {"data": data, "layout": layout}
    return found


def many_labels(count: int) -> Preparation:
    labels = {f"label {place}": 100 + place for place in range(count)}
    sides = {name: Side(rows=sum(labels.values()), labels=labels) for name in ("train", "validation", "test")}
    return make_preparation(read=3 * sum(labels.values()), sides=sides)


def test_the_summary_has_the_numbers_of_the_report() -> None:
    side = Side(rows=3121)
    report = make_preparation(
        read=4213, sides={"train": side, "validation": Side(rows=390), "test": Side(rows=390)}, steps=()
    )
    english, japanese = (Balanced(page(report, language)).text for language in LANGUAGES)
    assert "4,213 rows were read; 3,901 rows are in the dataset. 312 rows were left out (7.4%)" in english
    assert "312 of these were left out by none of the steps" in english
    assert "The rows are divided into 3,121 to train, 390 to validate, 390 to test." in english
    assert "4,213行を読み込み、そのうち3,901行がデータセットに入りました。312行（7.4%）は除外されました。" in japanese
    assert "内訳は、学習用3,121行、検証用390行、テスト用390行です。" in japanese


def test_one_row_is_singular_and_a_tiny_share_is_not_zero() -> None:
    report = make_preparation(read=100_001, sides={"train": Side(rows=100_000)}, steps=())
    assert "1 row was left out (less than 0.1%)" in page(report, "en")
    assert "1行（0.1%未満）は除外されました。" in page(report, "ja")


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_text_is_escaped_in_tables_and_figures(language: Language) -> None:
    def report(text: str) -> Preparation:
        sample = Sample(row=text, place=text, before=text, after="x" + text, why=text)
        listed = Sample(row=text, place=text, before=text, why=text)
        return make_preparation(
            task=text,
            sources=(text,),
            sides={
                "train": Side(rows=3, labels={text: 1, text + "2": 2}),
                "validation": Side(rows=1, labels={"untrained " + text: 1}),
            },
            steps=(
                StepReport(step="invisible", action="change", rows=1, samples=(sample,), detail={text: 1}),
                StepReport(step="label_noise", action="list", rows=1, samples=(listed,)),
                StepReport(step="personal_data", action="report", rows=1, detail={text: 1}),
            ),
            clusters=(DuplicateCluster(rows=2, kept=1, texts=(text, text)),),
            notices=(text,),
        )

    hostile, harmless = page(report(EVIL), language), page(report("harmless"), language)
    assert Balanced(hostile).text.count("alert(1)") == Balanced(harmless).text.count("harmless") > 15
    for tag in ("<script", "</script", "<b>"):
        assert hostile.count(tag) == harmless.count(tag), tag
    drawn = figures(hostile)["labels"]
    for names in (drawn["layout"]["yaxis"]["ticktext"], drawn["data"][0]["hovertext"]):
        assert len(names) == 3
        assert not any("<" in name for name in names)
        assert any(name.startswith("&lt;/script&gt;") for name in names)


def test_a_difference_is_marked_and_shows_what_is_invisible() -> None:
    sample = Sample(row="0" * 16, place="a", before="half\u200bway\u202e there", after="halfway there", why="")
    steps = (StepReport(step="invisible", action="change", rows=1, samples=(sample,)),)
    html = page(make_preparation(steps=steps), "en")
    assert "<del>⟨U+200B⟩</del>" in html or "<del>half⟨U+200B⟩way⟨U+202E⟩</del>" in html
    assert "\u202e" not in html
    assert "\u200b" not in html


@pytest.mark.parametrize(
    ("before", "after", "removed", "added"),
    [
        ("", "", [], []),
        ("", "a", [], ["a"]),
        ("same", "same", [], []),
        ("one two three", "one 2 three", ["two"], ["2"]),
        ("aXbXc", "aXbXcX", ["aXbXc"], ["aXbXcX"]),
        ("ｱとｲと", "アとイと", ["ｱ", "ｲ"], ["ア", "イ"]),
        ("ああ" * 5, "ああ" * 4, ["ああ"], []),
        # Too many equal pairs to align: all between the common ends counts as changed.
        ("x" + "あ" * 300 + "い" + "あ" * 299, "y" + "あ" * 300 + "う" + "あ" * 299, 301 + 1, 301 + 1),
        ("あ" * 600, "あい" * 300, 599, 599),
    ],
)
def test_differences(before: str, after: str, removed: list[str] | int, added: list[str] | int) -> None:
    old, new = difference(before, after)
    for parts, text, mark, expected in ((old, before, "del", removed), (new, after, "ins", added)):
        assert "".join(part.text for part in parts) == (text if len(text) <= 600 else text[:600] + "…")
        marked = [part.text for part in parts if part.mark == mark]
        assert len("".join(marked)) == expected if isinstance(expected, int) else marked == expected


def test_direction_marks_in_unchanged_text_reach_no_other_cell() -> None:
    mark = "\u202e"
    changed = Sample(row="0" * 16, place="a" + mark, before=mark + "one", after=mark + "two", why=mark)
    listed = Sample(row="1" * 16, place="b", before="three" + mark, why="")
    steps = (
        StepReport(step="nfkc", action="change", rows=1, samples=(changed,)),
        StepReport(step="outliers", action="list", rows=1, samples=(listed,)),
    )
    html = page(
        make_preparation(steps=steps, notices=(mark,), clusters=(DuplicateCluster(rows=2, kept=1, texts=(mark,)),)),
        "en",
    )
    assert mark not in html
    assert html.count("⟨U+202E⟩") == 7


def test_at_most_ten_rows_of_a_step_are_shown_and_the_page_stays_small() -> None:
    samples = tuple(
        Sample(
            row=f"{place:016x}",
            place=f"reviews.csv line {place}",
            before=f"row {place}: {'これは長い文章' * 40}",
            why="a",
        )
        for place in range(1000)
    )
    steps = (StepReport(step="label_noise", action="list", rows=1500, samples=samples),)
    html = page(make_preparation(steps=steps), "ja")
    assert [f"row {place}:" in html for place in (0, 9, 10, 999)] == [True, True, False, False]
    assert "1,500行のうち10行を表示しています。JSON形式のレポートには1,000行が入っています。" in html
    assert len(without_library(html).encode()) < MOST_BYTES
    assert len(without_library(page(many_labels(200), "ja")).encode()) < MOST_BYTES


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_empty_report_is_a_page(language: Language) -> None:
    report = Preparation(task="chat", sources=(), read=0, sides={}, lengths={}, steps=())
    html = page(report, language)
    Balanced(html)
    assert "plotly" not in html
    assert f'<html lang="{language}">' in html
    for message in (messages.NO_STEPS, messages.NO_LENGTHS, messages.NOT_SEARCHED, messages.NO_NOTICES):
        assert message.template(language) in html


@pytest.mark.parametrize("count", [0, 1, 2, 40, 41, 200, 1000])
def test_the_figure_has_at_most_forty_labels_and_the_table_two_hundred(count: int) -> None:
    html = page(many_labels(count) if count else make_preparation(sides={"train": Side(rows=400)}), "en")
    drawn = figures(html)["labels" if count else "sides"]
    bars = len(drawn["layout"]["yaxis"]["ticktext"])
    assert bars == (min(count, 40) or 1)
    assert all(len(trace["x"]) == len(trace["y"]) == bars for trace in drawn["data"])
    assert len(drawn["data"]) == (3 if count else 1)
    cells = Balanced(html).cells
    assert sum(cell.startswith("label ") for cell in cells) == min(count, 200)
    if count > 40:  # the most frequent and the rarest
        ticks = drawn["layout"]["yaxis"]["ticktext"]
        assert [ticks[0], ticks[-1]] == [f"label {count - 1}", "label 0"]
    assert ("of 41 labels" in html) == (count == 41)
    assert ("The table has 200" in html) == (count == 1000)


def test_labels_that_look_like_numbers_or_begin_alike_have_bars_of_their_own() -> None:
    labels = {"1": 60, "1.0": 60, "a" * 50 + "x": 60, "a" * 50 + "y": 60}
    drawn = figures(page(make_preparation(sides={"train": Side(rows=240, labels=labels)}), "en"))["labels"]
    assert drawn["data"][0]["y"] == [0, 1, 2, 3]
    assert drawn["layout"]["yaxis"]["ticktext"] == ["1", "1.0", "a" * 19 + "…", "a" * 19 + "…"]
    assert drawn["data"][0]["x"] == [60] * 4


def test_lengths_have_a_bar_for_every_power_of_two_between() -> None:
    drawn = figures(page(make_preparation(lengths={0: 1, 1: 2, 8: 4, 16: 0}), "en"))["lengths"]
    assert drawn["layout"]["xaxis"]["ticktext"] == ["0", "1", "2–3", "4–7", "8–15"]
    assert drawn["data"][0]["y"] == [1, 2, 0, 0, 4]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_step_and_action_has_words(language: Language) -> None:
    names: tuple[Step, ...] = get_args(Step)
    steps = tuple(
        StepReport(step=name, action=action, rows=1)
        for name in names
        for action in ("report", "list", "change", "drop")
    )  # fmt: skip
    cells = Balanced(page(make_preparation(steps=steps), language)).cells
    for name in names:
        assert cells.count(messages.STEP_NAMES[name][1].template(language)) == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("ab\n c", "ab c"), ("a" * 20, "a" * 20), ("a" * 21, "a" * 19 + "…"), ("日" * 11, "日" * 9 + "…")],
)
def test_a_name_is_cut_by_its_width(text: str, shown: str) -> None:
    assert short(text, 20) == shown
