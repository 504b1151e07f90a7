"""The input file of a batch: its lines, and what is wrong with them. Pure, over pieces of bytes.

A line is `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`; other fields are ignored, and so are empty lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ray_jobs.storage.unreadable import strict_json
from serving.http.batch_types import BatchError

MAX_LINES = 50_000
MAX_CUSTOM_ID = 512
MAX_ERRORS = 100
"""Errors of a file that are returned."""
_MAX_QUOTE = 60


@dataclass(frozen=True)
class BatchLine:
    """One request of a batch."""

    number: int
    """Line of the file, from 1."""
    custom_id: str
    body: dict[str, Any]
    size_bytes: int


@dataclass(frozen=True)
class CheckedInput:
    """What a whole file holds."""

    total: int
    model: str | None
    """That of the first line."""
    errors: tuple[BatchError, ...]


class InvalidLine(Exception):
    """A line that is not a request of this batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def raw_lines(pieces: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that are not empty, with their numbers; None for one of more than `max_bytes`, which is never
    held whole."""
    number, rest, too_long = 1, b"", False
    for piece in pieces:
        *ended, last = piece.split(b"\n")
        for part in ended:
            whole = rest + part
            if too_long or len(whole) > max_bytes:
                yield number, None
            elif whole.strip():
                yield number, whole
            number, rest, too_long = number + 1, b"", False
        rest += last
        if len(rest) > max_bytes:
            rest, too_long = b"", True
    if too_long:
        yield number, None
    elif rest.strip():
        yield number, rest


def parse(number: int, raw: bytes | None, endpoint: str, max_bytes: int) -> BatchLine:
    """Parse a line. Raises InvalidLine."""
    if raw is None:
        raise InvalidLine("line_too_long", f"the line has more than {max_bytes} bytes: send less in one request")
    try:
        found = strict_json(raw, encoding="utf-8-sig" if number == 1 else "utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidLine("invalid_json_line", f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidLine("invalid_json_line", "the line must be a JSON object")
    for name in ("custom_id", "method", "url", "body"):
        if found.get(name) is None:
            raise InvalidLine("missing_required_parameter", f"{name} is required but missing", name)
    custom_id, method, url, body = (found[name] for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise InvalidLine(
            "invalid_custom_id", f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters", "custom_id"
        )
    if method != "POST":
        raise InvalidLine("invalid_method", f"method is {str(method)[:_MAX_QUOTE]!r}; it must be 'POST'", "method")
    if url != endpoint:
        message = f"url is {str(url)[:_MAX_QUOTE]!r}; it must be the batch's endpoint, {endpoint!r}"
        raise InvalidLine("invalid_url", message, "url")
    if not isinstance(body, dict):
        raise InvalidLine("invalid_body", "body must be a JSON object", "body")
    if body.get("stream"):
        raise InvalidLine("unsupported", "body.stream must be false: a batch returns whole answers", "body.stream")
    return BatchLine(number, custom_id, body, len(raw))


def checked(pieces: Iterable[bytes], endpoint: str, max_bytes: int) -> CheckedInput:
    """Check a whole file: every line, that each `custom_id` occurs once, and the number of lines."""
    first_lines: dict[str, int] = {}
    """custom_id → the line that has it."""
    errors: list[BatchError] = []
    total, more, model = 0, 0, None

    def add(code: str, message: str, line: int | None, param: str | None = None) -> None:
        nonlocal more
        if len(errors) < MAX_ERRORS:
            errors.append(BatchError(code=code, message=message, line=line, param=param))
        else:
            more += 1

    for number, raw in raw_lines(pieces, max_bytes):
        total += 1
        if total > MAX_LINES:
            break
        try:
            line = parse(number, raw, endpoint, max_bytes)
        except InvalidLine as error:
            add(error.code, error.message, number, error.param)
            continue
        if total == 1 and isinstance(line.body.get("model"), str):
            model = line.body["model"]
        if (first := first_lines.setdefault(line.custom_id, number)) != number:
            message = f"custom_id {line.custom_id[:_MAX_QUOTE]!r} is that of line {first}: it must be unique in a file"
            add("duplicate_custom_id", message, number, "custom_id")
    if total > MAX_LINES:
        message = f"the file has more than {MAX_LINES} lines: send several batches"
        errors.insert(0, BatchError(code="too_many_lines", message=message, param="input_file_id"))
    if not total:
        add("empty_file", "the file has no lines: send at least one request", None, "input_file_id")
    if more:
        errors.append(BatchError(code="more_errors", message=f"and {more} more errors"))
    return CheckedInput(min(total, MAX_LINES), model, tuple(errors))
