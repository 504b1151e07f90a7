"""Constraints that no engine may get: what cannot be enforced, what is too large, and what stops a grammar compiler."""

from __future__ import annotations

from typing import Any

from tests.serving.hostile_requests import CHAT, COMPLETIONS, Hostile

SCHEMA = "response_format.json_schema.schema"
ITEM = {"type": "string"}


def nested(depth: int, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A schema of arrays of arrays."""
    found = schema or ITEM
    for _ in range(depth):
        found = {"type": "array", "items": found} | more
    return found


SCHEMAS: list[tuple[Any, str]] = [
    ([], ""),
    ("{}", ""),
    (True, ""),
    ({"type": "array", "items": [ITEM, ITEM]}, ".items"),
    ({"type": "array", "items": ITEM, "minItems": 10**6}, ".minItems"),
    ({"type": "array", "items": ITEM, "maxItems": 10**6}, ".maxItems"),
    ({"type": "array", "items": ITEM, "minItems": -1}, ".minItems"),
    ({"type": "array", "items": ITEM, "minItems": 1.5}, ".minItems"),
    ({"type": "array", "items": ITEM, "minItems": 5, "maxItems": 3}, ".minItems"),
    ({"type": "string", "minLength": 10**6}, ".minLength"),
    ({"type": "string", "maxLength": 10**9}, ".maxLength"),
    ({"type": "string", "maxLength": "9"}, ".maxLength"),
    ({"type": "object", "minProperties": 10**6}, ".minProperties"),
    ({"type": "object", "additionalProperties": ITEM, "maxProperties": 10**5}, ".maxProperties"),
    (nested(2, minItems=900), ".items"),
    (nested(4, minItems=30), ".items.items.items"),
    (nested(40), ""),
    ({"type": "object", "properties": {f"p{i}": ITEM for i in range(2001)}}, ""),
    ({"type": "object", "properties": {"a": {"description": "x" * 70_000}}}, ""),
    ({"enum": [f"v{i}" for i in range(1001)]}, ".enum"),
    ({"enum": []}, ".enum"),
    ({"enum": "a"}, ".enum"),
    ({"type": "not-a-type"}, ".type"),
    ({"type": []}, ".type"),
    ({"type": {"a": 1}}, ".type"),
    ({"type": ["string", "wizard"]}, ".type"),
    ({"type": "object", "properties": []}, ".properties"),
    ({"type": "object", "properties": {"a": 3}}, ".properties.a"),
    ({"type": "object", "properties": {"a": {"type": "wizard"}}}, ".properties.a.type"),
    ({"type": "object", "required": "a"}, ".required"),
    ({"type": "object", "patternProperties": {"a": ITEM}}, ".patternProperties"),
    ({"type": "object", "propertyNames": ITEM}, ".propertyNames"),
    ({"type": "array", "uniqueItems": True}, ".uniqueItems"),
    ({"type": "array", "contains": ITEM}, ".contains"),
    ({"type": "array", "additionalItems": False}, ".additionalItems"),
    ({"type": "integer", "multipleOf": 3}, ".multipleOf"),
    ({"type": "integer", "minimum": "3"}, ".minimum"),
    ({"not": ITEM}, ".not"),
    ({"if": ITEM, "then": ITEM}, ".if"),
    ({"allOf": [ITEM, ITEM]}, ".allOf"),
    ({"anyOf": []}, ".anyOf"),
    ({"anyOf": ITEM}, ".anyOf"),
    ({"oneOf": [3]}, ".oneOf[0]"),
    ({"$ref": "http://169.254.169.254/schema"}, ".$ref"),
    ({"$ref": "file:///etc/passwd"}, ".$ref"),
    ({"$ref": 3}, ".$ref"),
    ({"type": "string", "format": "wizard"}, ".format"),
    ({"type": "string", "pattern": "(?=a)b"}, ".pattern"),
    ({"type": "string", "pattern": "a{1,100000}"}, ".pattern"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, ".pattern"),
    ({"type": "string", "pattern": 3}, ".pattern"),
    ({"typ": "string"}, ".typ"),
]
FORMATS: list[tuple[Any, str]] = [
    ("json_object", "response_format"),
    ([], "response_format"),
    ({}, "response_format.type"),
    ({"type": 3}, "response_format.type"),
    ({"type": "xml"}, "response_format.type"),
    ({"type": "structural_tag", "format": {}}, "response_format.type"),
    ({"type": "grammar", "grammar": "root ::= root"}, "response_format.type"),
    ({"type": "json_schema"}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": None}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": "x"}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, SCHEMA),
    ({"type": "json_schema", "json_schema": {"name": 3, "schema": {}}}, "response_format.json_schema.name"),
    ({"type": "json_object", "schema": {}}, "response_format.schema"),
]
OUTPUTS: list[tuple[Any, str]] = [
    ({}, ""),
    ("json", ""),
    ({"json": ITEM, "regex": "a"}, ""),
    ({"choice": ["a"], "grammar": 'root ::= "a"'}, ""),
    ({"json": ITEM, "json_object": True}, ""),
    ({"json": "{"}, ".json"),
    ({"json": "[]"}, ".json"),
    ({"json": 3}, ".json"),
    ({"json": "[" * 60_000}, ".json"),
    ({"json": {"type": "array", "items": [ITEM]}}, ".json.items"),
    ({"json_object": False}, ".json_object"),
    ({"regex": ""}, ".regex"),
    ({"regex": 3}, ".regex"),
    ({"regex": "a\x00"}, ".regex"),
    ({"regex": "a" * 5000}, ".regex"),
    ({"regex": "(a{1,9999}){1,9999}"}, ".regex"),
    ({"regex": "(?<!a)b"}, ".regex"),
    ({"regex": r"(a)\1"}, ".regex"),
    ({"regex": r"\p{L}+"}, ".regex"),
    ({"regex": "a{" + "1" * 4000}, ".regex"),
    ({"grammar": 'root ::= "a"{' + "1" * 32_000}, ".grammar"),
    ({"grammar": 'root ::= "a"{1 , 99999}'}, ".grammar"),
    ({"choice": []}, ".choice"),
    ({"choice": "a"}, ".choice"),
    ({"choice": [3]}, ".choice"),
    ({"choice": [""]}, ".choice"),
    ({"choice": ["a"] * 1001}, ".choice"),
    ({"choice": ["a" * 70_000]}, ".choice"),
    ({"grammar": ""}, ".grammar"),
    ({"grammar": "start: /a/"}, ".grammar"),
    ({"grammar": 'root ::= "a"{1,99999}'}, ".grammar"),
    ({"grammar": "root ::= " + '"a" ' * 10_000}, ".grammar"),
    ({"structural_tag": "{}"}, ".structural_tag"),
    ({"whitespace_pattern": " ", "json": ITEM}, ".whitespace_pattern"),
    ({"disable_any_whitespace": True, "json": ITEM}, ".disable_any_whitespace"),
    ({"_backend": "outlines", "json": ITEM}, "._backend"),
]
COMPILED: list[tuple[Any, str]] = [
    # Refused by the compiler, or by its limits.
    ({"json": {"$ref": "#/$defs/missing"}}, ".json"),
    ({"json": {"type": "string", "pattern": "(a"}}, ".json"),
    ({"json": {"$ref": "#"}}, ".json"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, ".json"),
    ({"regex": "(a"}, ".regex"),
    ({"regex": "[z-a]"}, ".regex"),
    ({"regex": "((a*)*)*b"}, ".regex"),
    ({"grammar": "root ::= "}, ".grammar"),
    ({"grammar": 'a ::= "b"'}, ".grammar"),
    ({"grammar": 'root ::= missing "a"'}, ".grammar"),
    ({"grammar": "root ::= root"}, ".grammar"),
]


def with_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def with_tool(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"}


def hostile_constraints() -> list[Hostile]:
    """Every request with a constraint that is refused without compiling it."""
    found = [Hostile(CHAT, with_schema(schema), f"{SCHEMA}{part}") for schema, part in SCHEMAS]
    objects = [(schema, part) for schema, part in SCHEMAS if isinstance(schema, dict)]
    found += [Hostile(CHAT, with_tool(schema), f"tools[0].function.parameters{part}") for schema, part in objects]
    found += [
        Hostile(COMPLETIONS, {"structured_outputs": {"json": schema}}, f"structured_outputs.json{part}")
        for schema, part in objects
    ]
    found += [Hostile(CHAT, {"response_format": form}, param) for form, param in FORMATS]
    found += [Hostile(CHAT, {"structured_outputs": given}, f"structured_outputs{part}") for given, part in OUTPUTS]
    json_object = {"response_format": {"type": "json_object"}}
    outputs = {"structured_outputs": {"regex": "a"}}
    deep = {"structured_outputs": {"json": nested(200)}}
    found.append(Hostile(CHAT, deep, "structured_outputs"))
    found.append(Hostile(CHAT, json_object | outputs, "structured_outputs"))
    found.append(Hostile(CHAT, json_object | with_tool({}), "response_format"))
    found.append(Hostile(CHAT, outputs | with_tool({}), "structured_outputs"))
    return found


def uncompilable() -> list[Hostile]:
    """Every request with a constraint that its compiler refuses."""
    found = [Hostile(CHAT, {"structured_outputs": given}, f"structured_outputs{part}") for given, part in COMPILED]
    found.append(Hostile(CHAT, with_schema({"$ref": "#/$defs/missing"}), SCHEMA))
    return found
