"""pydantic's errors as problems that a user can act on: the field as written, its value, what it must be. Pure.

pydantic reports an error for each member of a union, with the member's name in the location. Here a field has one
problem: of the members that fit the value's kind if there are any, else all that the field accepts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

Problem = tuple[str, str]
"""(field, message); the field is empty where the whole document is at fault."""
UNKNOWN = "unknown field"
"""The message of a field that does not exist, for callers that can suggest another."""

_MOST_SHOWN = 60
"""Characters of a value in a message."""
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "datetime": "a date and time",
    "none": "null",
}
"""What the first word of an error's type asks for."""
_LIMITS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "int_from_float": "a whole number",
}
_LENGTHS = {
    "string_too_long": "characters; at most {max_length}",
    "string_too_short": "characters; at least {min_length}",
    "too_long": "entries; at most {max_length}",
    "too_short": "entries; at least {min_length}",
}


def problems(errors: Iterable[Mapping[str, Any]], document: Any, *, secret: Collection[str] = ()) -> list[Problem]:
    """One problem for each invalid field of a document, in pydantic's order. `errors`: `ValidationError.errors()`.
    `secret`: sections whose values are not shown."""
    by_field: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for error in errors:
        by_field.setdefault(_written(error, document), []).append(error)
    above = {path[:end] for path in by_field for end in range(len(path))}
    return [
        (field_name(path), _message(group, shown=not path or path[0] not in secret))
        for path, group in by_field.items()
        # Else the value is of another member's kind, whose errors are those below it.
        if path not in above or not all(map(_is_other_kind, group))
    ]


def field_name(path: Sequence[Any]) -> str:
    """A field as its user writes it: `messages[0].content`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def quoted(value: Any) -> str:
    """A value in a message, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def _written(error: Mapping[str, Any], document: Any) -> tuple[Any, ...]:
    """The parts of an error's location that the document has, or lacks; the others name a union's members."""
    path, value = list[Any](), document
    for place, part in enumerate(error["loc"], 1):
        if _has(value, part):
            path, value = [*path, part], value[part]
        elif error["type"] == "missing" and place == len(error["loc"]):
            path = [*path, part]
    return tuple(path)


def _has(value: Any, part: Any) -> bool:
    if isinstance(value, list | tuple):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def _is_other_kind(error: Mapping[str, Any]) -> bool:
    """Whether an error says only that the value is of another kind, or not one of some constants."""
    kind = error["type"]
    return kind == "literal_error" or (kind not in _LIMITS and _kind(kind) is not None)


def _kind(kind: str) -> str | None:
    """What an error of this type asks for: `int_type` and `int_parsing` for a whole number. None: something else."""
    name, _, what = kind.partition("_")
    return _KINDS.get(name) if what in ("type", "parsing", "attributes_type", "required", "unicode") else None


def _message(errors: Sequence[Mapping[str, Any]], *, shown: bool) -> str:
    own = [error for error in errors if not _is_other_kind(error)]
    value, kind = errors[0].get("input"), own[0]["type"] if own else ""
    if kind == "missing":
        return "required, and missing"
    if kind == "extra_forbidden":
        return UNKNOWN
    if kind == "value_error":
        return str(own[0]["ctx"]["error"])
    if kind in _LENGTHS and isinstance(value, str | list | tuple | Mapping):
        return f"has {len(value)} {_LENGTHS[kind].format_map(own[0]['ctx'])}"
    literals = [error for error in errors if error["type"] == "literal_error"]
    asked = list(dict.fromkeys(filter(None, map(_asked, (*literals, *(own or errors))))))
    if not asked:
        return str(own[0]["msg"])
    must = f"must be {' or '.join(asked)}"
    return f"is {quoted(value)}; it {must}" if shown else must


def _asked(error: Mapping[str, Any]) -> str | None:
    if error["type"] in _LIMITS:
        return _LIMITS[error["type"]].format_map(error.get("ctx", {}))
    return _kind(error["type"])
