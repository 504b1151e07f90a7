"""The strings inside a row: one visit of each, in place, with its path. Pure; knows no task and no policy.

JSON inside a string, such as a tool call's arguments, stays valid JSON: the strings in it are visited one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

Row = dict[str, Any]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_WORDS = re.compile(r"[A-Za-z_-]{1,15}")
"""Names too plain and short to hold a value."""
_JSON_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')
_BEFORE_VALUE = re.compile(r"\s*:")


class Visit(Protocol):
    """Returns a text as it becomes, and whether a name may stand in a path (no value was found in it).

    `path`: where in the row, such as `messages[2].content`. `label`: the name of the field.
    """

    def __call__(self, text: str, path: str, label: str) -> tuple[str, bool]: ...


def walk(row: Row, visit: Visit, *, names_and_numbers: bool) -> Row:
    """A copy of the row with every string as `visit` returns it. Raises RecursionError for one nested too deeply.

    `names_and_numbers`: visit names of fields and whole numbers too; a number becomes text only if it changes.
    """
    walked: Row = _Walker(visit, names_and_numbers).value(row, "", "")
    return walked


class _Walker:
    def __init__(self, visit: Visit, names_and_numbers: bool) -> None:
        self._visit, self._all = visit, names_and_numbers

    def value(self, value: Any, path: str, label: str) -> Any:
        if isinstance(value, str):
            return self._string(value, path, label)
        if isinstance(value, dict):
            walked: dict[str, Any] = {}
            for place, (key, inner) in enumerate(value.items()):
                name, is_plain = key, True
                if self._all and not _is_word(key):
                    name, is_plain = self._visit(key, f"{path}{{{place}}}", "")
                # A name is part of a path only if it is surely no value.
                shown = key if is_plain and _is_plain(key) else f"{{{place}}}"
                if name in walked:  # a changed field name may occur twice; both fields stay
                    name = next(other for at in count(2) if (other := f"{name}({at})") not in walked)
                walked[name] = self.value(inner, f"{path}.{shown}" if path else shown, key)
            return walked
        if isinstance(value, list | tuple):
            return [self.value(each, f"{path}[{at}]", label) for at, each in enumerate(value)]
        if self._all and isinstance(value, int) and not isinstance(value, bool):
            text = str(value)
            visited, _ = self._visit(text, path, label)
            return value if visited == text else visited
        return value

    def _string(self, text: str, path: str, label: str) -> str:
        if not _is_json(text):
            return self._visit(text, path, label)[0]
        pieces, done = [], 0
        for literal, name, value in _json_values(text, names=self._all):
            walked = self.value(value, path, name or label)
            if walked != value:
                escaped = "\\u" in literal[0]
                pieces += [text[done : literal.start()], json.dumps(walked, ensure_ascii=escaped)]
                done = literal.end()
        return "".join([*pieces, text[done:]])


@lru_cache(maxsize=4096)
def _is_plain(name: str) -> bool:
    return _PLAIN_KEY.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _is_word(name: str) -> bool:
    return _WORDS.fullmatch(name) is not None


def _is_json(text: str) -> bool:
    """True for the text of a JSON object or array."""
    if text.lstrip()[:1] not in {"{", "["}:
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _json_values(text: str, *, names: bool) -> Iterator[tuple[re.Match[str], str, str | int | float]]:
    """(literal, name of its field, value) of each string and number in a JSON text; `names`: of names of fields too."""
    name = ""
    for literal in _JSON_LITERAL.finditer(text):
        value = json.loads(literal[0])
        is_name = literal[0].startswith('"') and _BEFORE_VALUE.match(text, literal.end()) is not None
        if names or not is_name:
            yield literal, "" if is_name else name, value
        if is_name:
            name = value
