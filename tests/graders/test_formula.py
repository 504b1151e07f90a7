"""`calculate_output`: arithmetic and nothing else."""

from __future__ import annotations

import math

import pytest

from ray_jobs.errors import FormulaError
from ray_jobs.graders.formula import MAX_DEPTH, MAX_LENGTH, parse_formula

SCORES = {"a": 0.5, "b": 2.0, "close_match": 1.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("a + b * 3", 6.5),
        ("(a + b) * 3", 7.5),
        ("b - a - 1", 0.5),
        ("8 / b / 2", 2.0),
        ("-b ^ 2", -4.0),
        ("(-b) ^ 2", 4.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("b ^ -1", 0.5),
        ("min(a, b, close_match) + max(a, 3)", 3.5),
        ("abs(-b) + floor(1.9) + ceil(0.1)", 4.0),
        ("sqrt(b * b) + exp(0) + log(1)", 3.0),
        (".5 + 1.e0 + 2e-1", 1.7),
        ("+a", 0.5),
    ],
)
def test_a_formula_has_the_value_of_its_arithmetic(text: str, value: float) -> None:
    assert math.isclose(parse_formula(text, SCORES)(SCORES), value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__",
        "a.__class__",
        "a if b else 1",
        "[a for a in b]",
        "lambda: a",
        "a ** b",
        "a % b",
        "a = 1",
        "open(a)",
        "min",
        "min()",
        "sqrt(a, b)",
        "a b",
        "a +",
        "(a",
        "a)",
        "",
        "   ",
        "c",
        "1_000",
        "ａ",
        "0x10",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FormulaError, match="calculate_output"):
        parse_formula(text, SCORES)


@pytest.mark.parametrize("text", ["1 / 0", "(0 - 1) ^ 0.5", "9 ^ 9 ^ 9", "exp(1000)", "log(0)", "1e300 * 1e300"])
def test_a_formula_without_a_finite_value_says_so(text: str) -> None:
    with pytest.raises(FormulaError, match="calculate_output"):
        parse_formula(text, SCORES)(SCORES)


def test_depth_and_length_are_bounded() -> None:
    deep = "(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH
    assert parse_formula(deep, SCORES)(SCORES) == 0.5
    for text in (f"({deep})", "-" * 500 + "a", "^".join("a" * 400), "abs(" * 100 + "a" + ")" * 100):
        with pytest.raises(FormulaError, match="nested deeper"):
            parse_formula(text, SCORES)
    assert parse_formula("+".join("a" * (MAX_LENGTH // 2)), SCORES)(SCORES) == MAX_LENGTH // 4
    with pytest.raises(FormulaError, match="characters"):
        parse_formula("a" * (MAX_LENGTH + 1), SCORES)


def test_names_that_a_formula_uses_are_known() -> None:
    assert parse_formula("a + min(b, 1)", SCORES).names == {"a", "b"}
