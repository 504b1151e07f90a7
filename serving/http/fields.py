"""Kinds of request fields: type and bounds, as JSON Schema for the document and as a check with the caller's own words.

Owns the wording of a refusal: the field as the caller wrote it, its value or JSON type, and what is accepted. Does not
know the fields of any route.

    FIELDS = {"temperature": number(0, 2), "stop": either(text(256), array(text(256), 4))}
    given = known_fields(body, FIELDS, {})  # ApiError 400, or the fields that are not null
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ray_jobs.errors import suggestion
from ray_jobs.storage.unreadable import nested_deeper
from serving.http.errors import ApiError, bad_request

_MAX_QUOTE = 60
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
"""OpenAI's limits of metadata."""
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_NAMES = {"string": "a text", "array": "a list", "object": "an object", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class FieldType:
    """Values that a field may have."""

    schema: Mapping[str, Any]
    """As JSON Schema."""
    words: str
    """As the end of `it must be …`."""
    check: Callable[[Any, str], None]
    """Raises ApiError 400 for a value that is not of this kind, at the given place."""


def json_type(value: object) -> str:
    """Return a parsed value's type in JSON Schema's words."""
    return "null" if value is None else _TYPES[type(value)]


def refuse(where: str, value: object, words: str) -> NoReturn:
    """Raise ApiError 400. Texts, lists and objects are not quoted: they may be prompts."""
    kind = json_type(value)
    shown = json.dumps(value)[:_MAX_QUOTE] if kind in ("boolean", "integer", "number") else _NAMES[kind]
    raise wrong(where, f"{where} is {shown}; it must be {words}")


def number(least: float, most: float, *, above: bool = False) -> FieldType:
    """A number from `least` to `most`; with `above`, greater than `least`."""
    words = f"a number over {least:g}, at most {most:g}" if above else f"a number from {least:g} to {most:g}"

    def check(value: Any, where: str) -> None:
        fits = type(value) in (int, float) and (least < value if above else least <= value) and value <= most
        if not fits:
            refuse(where, value, words)

    return FieldType(
        {"type": "number", "exclusiveMinimum" if above else "minimum": least, "maximum": most}, words, check
    )


def integer(least: int, most: int) -> FieldType:
    words = f"a whole number from {least} to {most}"

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            refuse(where, value, words)

    return FieldType({"type": "integer", "minimum": least, "maximum": most}, words, check)


def boolean() -> FieldType:
    def check(value: Any, where: str) -> None:
        if type(value) is not bool:
            refuse(where, value, _NAMES["boolean"])

    return FieldType({"type": "boolean"}, _NAMES["boolean"], check)


def text(most: int, least: int = 0, pattern: str | None = None) -> FieldType:
    """A text of `least` to `most` characters, which may have to match a pattern as a whole."""
    words = f"a text of {f'{least} to' if least else 'at most'} {most} characters"
    words += f" that matches {pattern}" if pattern else ""
    whole = re.compile(pattern) if pattern else None

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or (whole and len(value) <= most and not whole.fullmatch(value)):
            refuse(where, value, words)
        if not least <= len(value) <= most:
            raise wrong(where, f"{where} has {len(value)} characters; it must be {words}")

    schema = {"type": "string", "minLength": least, "maxLength": most}
    return FieldType(schema | ({"pattern": f"^{pattern}$"} if pattern else {}), words, check)


def one_of(*names: str) -> FieldType:
    words = " or ".join(map(repr, names))

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str):
            refuse(where, value, words)
        if value not in names:
            raise wrong(where, f"{where} is {value[:_MAX_QUOTE]!r}; it must be {words}")

    return FieldType({"type": "string", "enum": list(names)}, words, check)


def array(item: FieldType, most: int, least: int = 1) -> FieldType:
    words = f"a list of {least} to {most} items, each {item.words}"

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            refuse(where, value, words)
        if not least <= len(value) <= most:
            raise wrong(where, f"{where} has {len(value)} items; it must have {least} to {most}")
        for i, each in enumerate(value):
            item.check(each, f"{where}[{i}]")

    return FieldType({"type": "array", "items": item.schema, "minItems": least, "maxItems": most}, words, check)


def mapping(value_kind: FieldType, most: int, *, keys: str = r".{1,64}") -> FieldType:
    """An object with up to `most` keys, each of which matches a pattern as a whole."""
    words = f"an object of at most {most} keys, each {value_kind.words}"
    whole = re.compile(keys)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, value, words)
        if len(value) > most:
            raise wrong(where, f"{where} has {len(value)} keys; it may have {most}")
        for key, each in value.items():
            if not whole.fullmatch(key):
                raise wrong(where, f"a key of {where} does not match {keys}")
            value_kind.check(each, f"{where}.{key}")

    schema = {"type": "object", "maxProperties": most, "additionalProperties": value_kind.schema}
    return FieldType(schema | {"propertyNames": {"pattern": f"^{keys}$"}}, words, check)


def record(fields: Mapping[str, FieldType], required: Sequence[str] = ()) -> FieldType:
    """An object with these fields; the required ones must not be null."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, value, "an object")
        known_fields(value, fields, {}, where, required)

    return FieldType(object_schema(fields, required), "an object", check)


def anything(most_bytes: int, depth: int) -> FieldType:
    """Any JSON object of limited size and nesting."""
    words = f"an object of at most {most_bytes} bytes, nested at most {depth} deep"

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, value, words)
        if nested_deeper(value, depth) or len(json.dumps(value)) > most_bytes:
            raise wrong(where, f"{where} is too large; it must be {words}")

    return FieldType({"type": "object"}, words, check)


def either(*kinds: FieldType) -> FieldType:
    """One of several kinds with different JSON types; the value's type selects the one that checks it."""
    words = " or ".join(kind.words for kind in kinds)
    by_type = {kind.schema["type"]: kind for kind in kinds}

    def check(value: Any, where: str) -> None:
        kind = by_type.get(json_type(value))
        if kind is None:
            refuse(where, value, words)
        kind.check(value, where)

    return FieldType({"anyOf": [kind.schema for kind in kinds]}, words, check)


def known_fields(
    body: Mapping[str, Any],
    fields: Mapping[str, FieldType],
    refused: Mapping[str, str],
    where: str = "",
    required: Sequence[str] = (),
) -> dict[str, Any]:
    """Check an object's fields and return those that are not null.

    `refused`: real fields that are not supported → what to do instead. Raises ApiError 400 for the first wrong field.
    """
    found = {}
    prefix = f"{where}." if where else ""
    for name, value in body.items():
        if value is None and (name in fields or name in refused):
            continue
        place = f"{prefix}{name}"
        if name in refused:
            raise bad_request(f"{place} is not supported: {refused[name]}", param=place, code="unsupported")
        if name not in fields:
            shown = place[:_MAX_QUOTE]
            hint = suggestion(name[:_MAX_QUOTE], fields, "docs/api.md lists the fields")
            raise bad_request(f"unknown field {shown!r}; {hint}", param=shown, code="unknown_field")
        fields[name].check(value, place)
        found[name] = value
    for name in required:
        if name not in found:
            raise missing(f"{prefix}{name}")
    return found


def metadata_problems(pairs: Mapping[str, str] | None) -> list[tuple[str | None, str]]:
    """List what is wrong with an object's metadata, as (field, message)."""
    found: list[tuple[str | None, str]] = []
    if len(pairs or {}) > _MAX_PAIRS:
        found.append(("metadata", f"it has {len(pairs or {})} pairs; at most {_MAX_PAIRS}"))
    for key, value in (pairs or {}).items():
        if len(key) > _MAX_KEY:
            found.append(("metadata", f"the key {key[:20]!r}… has {len(key)} characters; at most {_MAX_KEY}"))
        if len(value) > _MAX_VALUE:
            found.append((f"metadata.{key[:20]}", f"it has {len(value)} characters; at most {_MAX_VALUE}"))
    return found


def wrong(where: str, message: str) -> ApiError:
    """400: the field at this place is not as it must be."""
    return bad_request(message, param=where)


def missing(where: str) -> ApiError:
    """400: a required field is absent or null."""
    return wrong(where, f"{where} is required but missing")


def object_schema(fields: Mapping[str, FieldType], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON Schema of an object with these fields; one that is not required may be null."""
    properties = {
        name: kind.schema if name in required else {"anyOf": [kind.schema, {"type": "null"}]}
        for name, kind in fields.items()
    }
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
