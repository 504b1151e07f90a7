"""The rows of a run: read from the request, a file or stored completions, and checked against the eval's item_schema.

Owns what a row may be. All invalid rows are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jsonschema
from pydantic import ValidationError

from ray_jobs.storage.unreadable import nested_deeper, strict_json, summary
from serving.evals.records import MAX_ROWS_BYTES
from serving.files.stored_files import Files
from serving.http.errors import ApiError, bad_request
from serving.http.eval_types import (
    MAX_CONTENT_ITEMS,
    FileContentSource,
    FileIdSource,
    SourceRow,
    StoredCompletionsSource,
    StoredResponsesSource,
)

StoredAnswers = Callable[[str, StoredCompletionsSource | StoredResponsesSource], Iterable[SourceRow]]
"""A team's stored completions or responses with a filter, as rows with `item` and `sample`."""
MAX_ROW_BYTES = 64 * 2**10
MAX_SCHEMA_BYTES = 8 * 2**10
_MAX_DEPTH = 32
_SHOWN = 20
_DETAILS = 100
_REFUSED = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "pattern", "patternProperties", "multipleOf"})
"""Keywords that read another document, recur, or may take exponential time."""
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"enum", "const", "default", "examples"})

CONTENT = "data_source.source.content"
FILE = "data_source.source.id"


def check_item_schema(schema: dict[str, Any], where: str) -> None:
    """Raise ApiError 400 for a schema that is too large, invalid, or has a keyword that is not supported."""
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_BYTES or nested_deeper(schema, _MAX_DEPTH):
        message = f"{where} has {size} bytes; it may have {MAX_SCHEMA_BYTES} and {_MAX_DEPTH} levels"
        raise bad_request(message, param=where)
    if (found := _refused_keyword(schema)) is not None:
        message = f"{where} has {found!r}, which is not supported: describe the values with type, enum and properties"
        raise bad_request(message, param=where, code="unsupported")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise bad_request(f"{where} is not a JSON Schema: {error.message[:200]}", param=where) from error


def item_names(schema: Mapping[str, Any]) -> list[str] | None:
    """Return the names that an item can have. None: any."""
    properties = schema.get("properties")
    closed = schema.get("additionalProperties", False) is False
    return list(properties) if isinstance(properties, dict) and properties and closed else None


def read_rows(
    team: str,
    source: FileContentSource | FileIdSource | StoredCompletionsSource | StoredResponsesSource,
    schema: dict[str, Any],
    files: Files,
    stored: StoredAnswers,
) -> list[SourceRow]:
    """Return a run's rows. Raises ApiError 400, with every invalid row."""
    if isinstance(source, FileContentSource):
        return _checked([(place, row) for place, row in enumerate(source.content)], [], schema, CONTENT, "item")
    if isinstance(source, StoredCompletionsSource | StoredResponsesSource):
        rows = list(stored(team, source))
        if not rows:
            what = "response" if source.type == "responses" else "completion"
            raise bad_request(f"no stored {what} has these properties", param="data_source.source")
        return rows[:MAX_CONTENT_ITEMS]
    return _of_file(team, source.id, schema, files)


def _of_file(team: str, file_id: str, schema: dict[str, Any], files: Files) -> list[SourceRow]:
    record = files.find(team, file_id)
    if record is None:
        raise bad_request(f"the file {file_id!r} does not exist", param=FILE)
    if record.purpose != "evals":
        raise bad_request(f"{file_id} has the purpose {record.purpose}; upload it with evals", param=FILE)
    if record.bytes > MAX_ROWS_BYTES:
        message = f"{file_id} has {record.bytes} bytes; a run reads at most {MAX_ROWS_BYTES}: use several runs"
        raise bad_request(message, param=FILE)
    rows, wrong = list[tuple[int, SourceRow]](), list[tuple[int, str]]()
    for number, line in _lines(b"".join(files.content(record))):
        try:
            rows.append((number, SourceRow.model_validate(strict_json(line, encoding="utf-8-sig"))))
        except ValidationError as error:
            wrong.append((number, f'must be {{"item": {{…}}, "sample": {{…}}}}, the latter optional: {summary(error)}'))
        except (ValueError, RecursionError) as error:
            wrong.append((number, f"not JSON: {str(error)[:200]}"))
        if len(rows) > MAX_CONTENT_ITEMS:
            raise bad_request(f"{file_id} has more than {MAX_CONTENT_ITEMS} rows: use several runs", param=FILE)
    return _checked(rows, wrong, schema, FILE, "line")


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _checked(
    rows: list[tuple[int, SourceRow]], wrong: list[tuple[int, str]], schema: dict[str, Any], param: str, what: str
) -> list[SourceRow]:
    """Return the rows if all are valid. Raises ApiError 400 `invalid_rows`."""
    validator = jsonschema.Draft202012Validator(schema)
    for number, row in rows:
        if len(wrong) >= _DETAILS:
            break
        if (reason := _problem(row, validator)) is not None:
            wrong.append((number, reason))
    if not rows and not wrong:
        raise bad_request(f"{param} has no rows", param=param, code="empty_file")
    if wrong:
        wrong = sorted(wrong)[:_DETAILS]
        shown = [f"{what} {number}: {reason}" for number, reason in wrong[:_SHOWN]]
        more = [f"and {len(wrong) - _SHOWN} more, in error.details"] if len(wrong) > _SHOWN else []
        details = [{"line": number, "reason": reason} for number, reason in wrong]
        raise ApiError(400, "; ".join([*shown, *more]), code="invalid_rows", param=param, details=details)
    return [row for _, row in rows]


def _problem(row: SourceRow, validator: Any) -> str | None:
    """Return why a row is not accepted. None: it is."""
    document = row.model_dump(mode="json")
    if nested_deeper(document, _MAX_DEPTH):
        return f"nested deeper than {_MAX_DEPTH} levels"
    size = len(json.dumps(document, ensure_ascii=False).encode())
    if size > MAX_ROW_BYTES:
        return f"has {size} bytes; a row may have {MAX_ROW_BYTES}"
    try:
        error = next(validator.iter_errors(row.item), None)
    except (ArithmeticError, RecursionError):
        return "cannot be compared with item_schema: it has too large numbers"
    if error is None:
        return None
    place = ".".join(["item", *map(str, error.absolute_path)])
    # The library's own message would quote the row.
    return f"{place} does not match item_schema: {error.validator}"


def _refused_keyword(schema: Any) -> str | None:
    parts: list[Any] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        for name, value in part.items():
            if name in _REFUSED:
                return str(name)
            if name in _NAMED and isinstance(value, dict):
                parts += value.values()
            elif name not in _DATA:
                parts.append(value)
    return None
