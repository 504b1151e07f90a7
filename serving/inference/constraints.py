"""Constraints on an answer: `response_format`, `structured_outputs` and the parameters of tools.

Owns their shape and bounds, and what is left to compile. An engine compiles a constraint in the process that answers
every team, so none reaches it unchecked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from serving.http.errors import bad_request
from serving.http.fields import FieldType, boolean, known_fields, missing, one_of, text
from serving.inference.json_schemas import MAX_BYTES, check_counts, check_regex, check_schema

_MAX_GRAMMAR = 32 * 2**10
_MAX_CHOICES = 1000
_MAX_TOOLS_BYTES = 128 * 2**10
_FORMAT = {"type": one_of("text", "json_object", "json_schema")}
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class Constraint:
    """One grammar to compile before a request is sent to an engine."""

    kind: Literal["json", "regex", "grammar"]
    text: str
    where: str
    """The field, as the caller wrote it."""


def constraints_of(given: dict[str, Any]) -> list[Constraint]:
    """Check a request's constraints and return what is left to compile. Drops a format without an effect.

    Raises ApiError 400 `invalid_constraint`, or for fields that do not go together.
    """
    found = [*_tools(given), *_response_format(given), *_structured_outputs(given)]
    constrained = [name for name in ("response_format", "structured_outputs") if name in given]
    if len(constrained) > 1:
        raise bad_request("send response_format or structured_outputs, not both", param="structured_outputs")
    if constrained and given.get("tool_choice", "none") != "none":
        message = f"tool_choice makes the answer a tool call: send it without {constrained[0]}"
        raise bad_request(message, param=constrained[0])
    return found


def _response_format(given: dict[str, Any]) -> list[Constraint]:
    form = given.get("response_format")
    if form is None:
        return []
    where = "response_format"
    kind = form.get("type")
    if not isinstance(kind, str):
        raise missing(f"{where}.type")
    schema_fields: dict[str, FieldType] = {"json_schema": FieldType({"type": "object"}, "an object", _json_schema)}
    fields = _FORMAT | (schema_fields if kind == "json_schema" else {})
    found = known_fields(form, fields, {}, where, ["type", *(["json_schema"] if kind == "json_schema" else [])])
    if kind == "text":
        del given["response_format"]
    if kind != "json_schema":
        return []
    place = f"{where}.json_schema.schema"
    return [Constraint("json", json.dumps(found["json_schema"]["schema"]), place)]


def _json_schema(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise bad_request(f"{where} must be an object with a name and a schema", param=where)
    fields = {"name": text(64, 1, r"[A-Za-z0-9_.-]+"), "description": text(16_384), "strict": boolean()}
    known_fields(value, fields | {"schema": FieldType({}, "a JSON Schema", _schema)}, {}, where, ["name", "schema"])


def _schema(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        _refuse(where, "must be a JSON Schema, an object")
    check_schema(value, where)


def _structured_outputs(given: dict[str, Any]) -> list[Constraint]:
    asked = given.get("structured_outputs")
    if asked is None:
        return []
    where = "structured_outputs"
    any_value = FieldType({}, "a constraint", lambda value, place: None)
    found = known_fields(asked, dict.fromkeys(_KINDS, any_value), {}, where)
    if len(found) != 1:
        _refuse(where, f"has {len(found)} of {', '.join(_KINDS)}; it must have one")
    ((kind, value),) = found.items()
    place = f"{where}.{kind}"
    given[where] = found
    if kind == "json_object":
        if value is not True:
            _refuse(place, "must be true")
        return []
    if kind == "json":
        if isinstance(value, str):
            value = _parsed(value, place)
        _schema(value, place)
        return [Constraint("json", json.dumps(value), place)]
    if kind == "choice":
        return [Constraint("grammar", _choice_grammar(value, place), place)]
    if not isinstance(value, str) or not value.strip():
        _refuse(place, "must be a text that is not empty")
    if kind == "regex":
        check_regex(value, place)
        return [Constraint("regex", value, place)]
    _check_grammar(value, place)
    return [Constraint("grammar", value, place)]


def _parsed(value: str, where: str) -> Any:
    if len(value) > MAX_BYTES:
        _refuse(where, f"has {len(value)} characters; a schema may have {MAX_BYTES} bytes")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        _refuse(where, "is not JSON")


def _choice_grammar(value: Any, where: str) -> str:
    """Check a list of choices and return it as vLLM writes it (`choice_as_grammar`)."""
    texts = isinstance(value, list) and all(isinstance(choice, str) and choice for choice in value)
    if not texts or not 1 <= len(value) <= _MAX_CHOICES or sum(map(len, value)) > MAX_BYTES:
        _refuse(where, f"must be a list of 1 to {_MAX_CHOICES} texts that are not empty, {MAX_BYTES} characters in all")
    return "root ::= " + " | ".join('"' + re.sub(r'(["\\])', r"\\\1", choice) + '"' for choice in value)


def _check_grammar(grammar: str, where: str) -> None:
    if len(grammar) > _MAX_GRAMMAR:
        _refuse(where, f"has {len(grammar)} characters; a grammar may have {_MAX_GRAMMAR}")
    if "::=" not in grammar:
        _refuse(where, "must be EBNF with a rule root ::= …")
    check_counts(grammar, where)


def _tools(given: dict[str, Any]) -> list[Constraint]:
    """Check every tool's parameters, which the model is shown, and which constrain the calls that it may write."""
    found: list[Constraint] = []
    for i, tool in enumerate(given.get("tools") or ()):
        schema = tool["function"].get("parameters")
        if schema is not None:
            where = f"tools[{i}].function.parameters"
            check_schema(schema, where)
            found.append(Constraint("json", json.dumps(schema), where))
    if sum(len(each.text) for each in found) > _MAX_TOOLS_BYTES:
        _refuse("tools", f"have parameters of over {_MAX_TOOLS_BYTES} bytes in all")
    return found if given.get("tool_choice", "none") != "none" else []


def _refuse(where: str, problem: str) -> NoReturn:
    raise bad_request(f"{where} {problem}", param=where, code="invalid_constraint")
