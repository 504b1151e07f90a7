"""Formulas: arithmetic over the scores of named graders, such as `0.7 * exact + 0.3 * max(close, 0)`.

Numbers, names, `+ - * / ^`, parentheses and a few functions; nothing else is parsed, so nothing else can run.

    expression = ( expression )  |  number  |  name  |  function(expression, …)  |  -expression
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ray_jobs.errors import FormulaError

MAX_LENGTH = 1000
MAX_DEPTH = 32
"""Nesting of parentheses, signs, powers and functions."""
NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_TOKEN = re.compile(rf"\s*(?:([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{{1,3}})?|\.[0-9]+)|({NAME})|([-+*/^(),]))")

_Value = Callable[[Mapping[str, float]], float]
_FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    "min": (min, 1, 16),
    "max": (max, 1, 16),
    "abs": (abs, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}
"""Name → function, and the least and most arguments."""
FUNCTIONS = frozenset(_FUNCTIONS)
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class Formula:
    """A parsed formula."""

    names: frozenset[str]
    """Graders that it refers to."""
    _value: _Value

    def __call__(self, scores: Mapping[str, float]) -> float:
        """Return its value. Raises FormulaError if it is not a finite number."""
        try:
            value = float(self._value(scores))
        except (ArithmeticError, ValueError) as error:
            raise FormulaError(f"calculate_output has no value for these scores: {error}") from error
        if not math.isfinite(value):
            raise FormulaError("calculate_output is not a finite number for these scores")
        return value


def parse_formula(text: str, known: Collection[str]) -> Formula:
    """Parse a formula over the graders `known`. Raises FormulaError, naming what is wrong."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"calculate_output has {len(text)} characters; it may have {MAX_LENGTH}")
    parser = _Parser(_tokens(text), known)
    value = parser.sum(0)
    if parser.next != "":
        raise FormulaError(f"calculate_output: unexpected {parser.next!r} after a complete expression")
    return Formula(frozenset(parser.used), value)


def _tokens(text: str) -> list[str]:
    found, end = list[str](), 0
    text = text.rstrip()
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            message = (
                f"calculate_output: {text[end : end + 20].strip()!r} is not a number, a grader or one of + - * / ^"
            )
            raise FormulaError(message)
        found.append(match[1] or match[2] or match[3])
        end = match.end()
    return found


class _Parser:
    """Recursive descent, a method for each level of precedence."""

    def __init__(self, tokens: list[str], known: Collection[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0
        self._known = known
        self.used = set[str]()

    @property
    def next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        token = self.next
        self._at += token != ""  # the end stays
        return token

    def sum(self, depth: int) -> _Value:
        return self._chain("+-", self._product, depth)

    def _product(self, depth: int) -> _Value:
        return self._chain("*/", self._power, depth)

    def _chain(self, signs: str, part: Callable[[int], _Value], depth: int) -> _Value:
        """Parse parts with one of two signs between them, which a loop evaluates from the left."""
        first, others = part(depth), list[tuple[Callable[[float, float], float], _Value]]()
        while self.next and self.next in signs:
            others.append((_OPERATORS[self._take()], part(depth)))

        def value(scores: Mapping[str, float]) -> float:
            total = first(scores)
            for combine, each in others:
                total = combine(total, each(scores))
            return total

        return value if others else first

    def _power(self, depth: int) -> _Value:
        """A sign binds weaker than `^`, which is right-associative: -2^2 is -4."""
        if depth > MAX_DEPTH:
            raise FormulaError(f"calculate_output is nested deeper than {MAX_DEPTH} levels")
        if self.next in ("-", "+"):
            negative = self._take() == "-"
            value = self._power(depth + 1)
            return (lambda scores: -value(scores)) if negative else value
        value = self._atom(depth)
        if self.next != "^":
            return value
        self._take()
        exponent = self._power(depth + 1)
        # math.pow raises ValueError where ** would return a complex number.
        return lambda scores: math.pow(value(scores), exponent(scores))

    def _atom(self, depth: int) -> _Value:
        token = self._take()
        if token == "(":
            value = self.sum(depth + 1)
            self._expect(")")
            return value
        if token[:1].isdigit() or token[:1] == ".":
            number = float(token)
            return lambda scores: number
        if self.next == "(" and token in _FUNCTIONS:
            return self._call(token, depth)
        if token in self._known:
            self.used.add(token)
            return lambda scores: scores[token]
        if not re.fullmatch(NAME, token):
            raise FormulaError(f"calculate_output: expected a number or a grader, found {token or 'its end'!r}")
        names = ", ".join([*sorted(self._known), *(f"{name}()" for name in sorted(_FUNCTIONS))])
        raise FormulaError(f"calculate_output: {token!r} is not one of {names}")

    def _call(self, name: str, depth: int) -> _Value:
        function, least, most = _FUNCTIONS[name]
        self._expect("(")
        given = [self.sum(depth + 1)]
        while self.next == ",":
            self._take()
            given.append(self.sum(depth + 1))
        self._expect(")")
        if not least <= len(given) <= most:
            raise FormulaError(f"calculate_output: {name}() has {len(given)} arguments; it takes {least} to {most}")
        return lambda scores: function(*(value(scores) for value in given))

    def _expect(self, token: str) -> None:
        found = self._take()
        if found != token:
            raise FormulaError(f"calculate_output: expected {token!r}, found {found or 'its end'!r}")
