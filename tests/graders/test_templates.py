"""Templates: what a variable may be, what is inserted, and what an unknown one answers."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.errors import GradingError, SampleNotJson, UnknownVariable
from ray_jobs.graders.templates import MAX_TEXT, fill, lookup, parse_path, sample_of

NAMESPACES: dict[str, Any] = {
    "item": {
        "x": "a",
        "n": 1.5,
        "deep": {"list": [{"name": "b"}]},
        "質問": "元気？",
        "trap": "{{ item.x }}",
        "no": None,
    },
    "sample": sample_of('{"a": {"b": [1, "ü"]}}') | {"output_tools": [{"function": {"name": "f"}}]},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ item.x }}", "a"),
        ("{{item.x}}-{{   item.x }}", "a-a"),
        ("{{ item.n }} {{ item.no }} {{ item.deep }}", '1.5 null {"list": [{"name": "b"}]}'),
        ("{{ item.deep.list[0].name }}", "b"),
        ("{{ item.質問 }}", "元気？"),
        ("{{ item.trap }}", "{{ item.x }}"),  # a value is not filled again
        ("{{ sample.output_text }}", '{"a": {"b": [1, "ü"]}}'),
        ("{{ sample.output_json.a }}", '{"b": [1, "ü"]}'),
        ("{{ sample.output_tools }}", '[{"function": {"name": "f"}}]'),
        ("{{ sample.output_tools[0].function.name }}", "f"),
        ("no variable { } {{", "no variable { } {{"),
    ],
)
def test_a_template_is_filled(template: str, text: str) -> None:
    assert fill(template, NAMESPACES) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ item.y }}", "item.y does not exist: item lacks it; known: deep, n, no, trap, x, 質問"),
        ("{{ item.deep.lost }}", "item.deep.lost does not exist: item.deep lacks it; did you mean 'list'?"),
        ("{{ item.x.upper }}", "item.x.upper does not exist: item.x lacks it; it has no such part"),
        ("{{ item.deep.list[1] }}", r"item.deep.list\[1\] does not exist"),
        ("{{ item.__class__ }}", "item.__class__ does not exist"),
        ("{{ other.x }}", "'other.x' is not a variable"),
        ("{{ item }}", "'item' has 0 parts below item"),
        ("{{ item.x | upper }}", "'item.x | upper' is not a variable"),
        ("{{ }}", "'' is not a variable"),
        ("{{ item" + ".a" * 33 + " }}", "has 33 parts"),
    ],
)
def test_an_unknown_variable_is_named(template: str, message: str) -> None:
    with pytest.raises(UnknownVariable, match=message):
        fill(template, NAMESPACES)


def test_an_answer_that_is_not_json_has_no_output_json() -> None:
    for text in ("plain", "NaN", '{"a": 1e999}', '"\\ud800"', "[" * 100_000):
        assert sample_of(text) == {"output_text": text}
        with pytest.raises(SampleNotJson, match=r"sample\.output_json\.a .*is not JSON"):
            fill("{{ sample.output_json.a }}", {"item": {}, "sample": sample_of(text)})


def test_a_filled_template_is_bounded() -> None:
    namespaces = {"item": {"x": "y" * (MAX_TEXT // 4)}}
    assert len(fill("{{item.x}}" * 4, namespaces)) == MAX_TEXT
    with pytest.raises(GradingError, match="longer than"):
        fill("{{item.x}}" * 10_000, namespaces)


def test_a_path_reads_keys_and_positions() -> None:
    assert parse_path(" item.a[2].b ") == ("item", "a", 2, "b")
    assert lookup(("item", "deep", "list"), NAMESPACES) == [{"name": "b"}]
