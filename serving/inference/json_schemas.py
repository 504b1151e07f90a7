"""Bounds of the JSON Schemas and regular expressions that constrain an answer.

Owns which schema forms an engine can enforce, and how large one may be. What a grammar compiler ignores is refused: the
answer would not match the schema. Compiles nothing (`grammar_worker`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from serving.http.errors import bad_request

MAX_BYTES = 64 * 2**10
MAX_REGEX = 4096
MAX_COUNT = 1000
"""Largest bound of a repetition of items, properties or groups."""
MAX_LENGTH = 10_000
"""Largest bound of a text's length."""
_MAX_DEPTH = 32
_MAX_SCHEMAS = 2000
_MAX_REPEATED = 100_000
"""Largest product of the repetitions around one part."""
_MAX_VALUES = 1000
_TYPES = {"string", "number", "integer", "boolean", "null", "array", "object"}
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
_ANNOTATIONS |= {"$schema", "$id", "$comment", "$anchor", "contentEncoding", "contentMediaType"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_ONE = {"items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems"}
_SEVERAL = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED = {"properties", "$defs", "definitions"}
_COUNTS = dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), MAX_COUNT)
_COUNTS |= {"minLength": MAX_LENGTH, "maxLength": MAX_LENGTH}
_FORMATS = {
    "email",
    "date",
    "time",
    "date-time",
    "duration",
    "ipv4",
    "ipv6",
    "hostname",
    "uuid",
    "uri",
    "uri-reference",
}
_FORMATS |= {"uri-template", "json-pointer", "relative-json-pointer"}
"""Formats that the engines' grammar compiler enforces."""
_KNOWN = {"type", "enum", "const", "required", "pattern", "format", "$ref", "uniqueItems", *_NUMBERS, *_ONE, *_SEVERAL}
_KNOWN |= {*_NAMED, *_COUNTS, *_ANNOTATIONS}
_BRACES = re.compile(r"\{([^{}]{0,64})")  # bounded: a longer number is over the limit by its first 64 digits
_ESCAPES = re.compile(r"\\[1-9kpPbBAZzG]|\(\?(?!:)")


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Raise ApiError 400, naming the part of the schema, unless it is enforceable and within the bounds."""
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        _refuse(where, f"has {size} bytes; a schema may have {MAX_BYTES}")
    _Walk(where).schema(schema, where, depth=1, repeated=1)


def check_regex(pattern: str, where: str) -> None:
    """Raise ApiError 400 for a regular expression that is too large or has what the grammar compiler ignores."""
    if not pattern or len(pattern) > MAX_REGEX or "\x00" in pattern:
        _refuse(where, f"has {len(pattern)} characters; an expression has 1 to {MAX_REGEX}, none of them NUL")
    plain = pattern.replace("\\\\", "")
    if found := _ESCAPES.search(plain):
        _refuse(where, f"has {found[0]!r}; lookaround, back references, boundaries and properties are not supported")
    check_counts(plain, where)


def check_counts(text: str, where: str) -> None:
    """Raise ApiError 400 for a repetition `{m,n}` of a pattern or grammar that is over the limit."""
    for inside in _BRACES.findall(text):
        for bound in inside.split(","):
            digits = bound.strip()
            if digits.isdecimal() and (len(digits) > 6 or int(digits) > MAX_COUNT):
                _refuse(where, f"repeats {digits[:12]} times; {MAX_COUNT} is the most")


class _Walk:
    def __init__(self, root: str) -> None:
        self.root = root
        self.seen = 0

    def schema(self, schema: Any, where: str, *, depth: int, repeated: int) -> None:
        if isinstance(schema, bool) and depth > 1:
            return
        if not isinstance(schema, dict):
            _refuse(where, "must be an object")
        self.seen += 1
        if self.seen > _MAX_SCHEMAS:
            _refuse(self.root, f"has over {_MAX_SCHEMAS} parts")
        if depth > _MAX_DEPTH:
            _refuse(self.root, f"is nested deeper than {_MAX_DEPTH}")
        for name in schema:
            if name not in _KNOWN:
                _refuse(f"{where}.{name[:40]}", "is a keyword that the engines do not enforce")
        _check_values(schema, where)
        _check_text(schema, where)
        repeated *= max(1, *(schema.get(name, 1) for name in _COUNTS if name[3:] in ("Items", "Properties")))
        if repeated > _MAX_REPEATED:
            _refuse(where, f"is repeated {repeated} times by the counts around it; {_MAX_REPEATED} is the most")
        self.parts(schema, where, depth + 1, repeated)

    def parts(self, schema: dict[str, Any], where: str, depth: int, repeated: int) -> None:
        for name in _ONE & schema.keys():
            if isinstance(schema[name], list):
                _refuse(f"{where}.{name}", "is a list; write a tuple as prefixItems")
            self.schema(schema[name], f"{where}.{name}", depth=depth, repeated=repeated)
        for name in _SEVERAL & schema.keys():
            parts = schema[name]
            if not isinstance(parts, list) or not parts:
                _refuse(f"{where}.{name}", "must be a list of schemas")
            if name == "allOf" and len(parts) > 1:
                _refuse(f"{where}.allOf", "has several schemas, which the engines do not enforce together; merge them")
            for i, part in enumerate(parts):
                self.schema(part, f"{where}.{name}[{i}]", depth=depth, repeated=repeated)
        for name in _NAMED & schema.keys():
            if not isinstance(schema[name], dict):
                _refuse(f"{where}.{name}", "must be an object of schemas")
            for key, part in schema[name].items():
                self.schema(part, f"{where}.{name}.{key[:64]}", depth=depth, repeated=repeated)


def _check_values(schema: dict[str, Any], where: str) -> None:
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not all(isinstance(kind, str) and kind in _TYPES for kind in kinds) or schema.get("type") == []:
        _refuse(f"{where}.type", f"must be one of {', '.join(sorted(_TYPES))}, or a list of them")
    values = schema.get("enum", [None])
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_VALUES:
        _refuse(f"{where}.enum", f"must be a list of 1 to {_MAX_VALUES} values")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        _refuse(f"{where}.required", "must be a list of names")
    ref = schema.get("$ref", "#")
    if not isinstance(ref, str) or not ref.startswith("#"):
        _refuse(f"{where}.$ref", "must refer to a part of the same schema: #/$defs/NAME")
    if schema.get("uniqueItems", False) is not False:
        _refuse(f"{where}.uniqueItems", "is a keyword that the engines do not enforce")
    for name in _NUMBERS & schema.keys():
        if type(schema[name]) not in (int, float):
            _refuse(f"{where}.{name}", "must be a number")
    for name in _COUNTS.keys() & schema.keys():
        if type(schema[name]) is not int or not 0 <= schema[name] <= _COUNTS[name]:
            _refuse(f"{where}.{name}", f"must be a whole number from 0 to {_COUNTS[name]}")
    for what in ("Items", "Properties", "Length"):
        if schema.get(f"min{what}", 0) > schema.get(f"max{what}", MAX_LENGTH):
            _refuse(f"{where}.min{what}", f"is greater than max{what}")


def _check_text(schema: dict[str, Any], where: str) -> None:
    form = schema.get("format")
    if form is not None and (not isinstance(form, str) or (_may_be_text(schema) and form not in _FORMATS)):
        _refuse(f"{where}.format", f"must be one of {', '.join(sorted(_FORMATS))}")
    if (pattern := schema.get("pattern")) is not None:
        if not isinstance(pattern, str):
            _refuse(f"{where}.pattern", "must be a text")
        check_regex(pattern, f"{where}.pattern")
    shaped = [name for name in ("pattern", "format") if name in schema]
    if shaped and not {"minLength", "maxLength"}.isdisjoint(schema):
        _refuse(f"{where}.{shaped[0]}", "cannot be enforced together with a length; put the length into a pattern")


def _may_be_text(schema: dict[str, Any]) -> bool:
    kinds = schema.get("type", "string")
    return "string" in (kinds if isinstance(kinds, list) else [kinds])


def _refuse(where: str, problem: str) -> NoReturn:
    shown = where if len(where) <= 200 else f"{where[:200]}…"
    raise bad_request(f"{shown} {problem}", param=shown, code="invalid_constraint")
