"""Every line of an input file is checked, and each problem is returned with its line."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batches.input_file import MAX_ERRORS, MAX_LINES, checked, parse, raw_lines
from tests.serving.batches.batch_store import CHAT, jsonl, request_line


def errors_of(content: bytes, max_bytes: int = 1000) -> list[tuple[str, int | None, str | None]]:
    return [(error.code, error.line, error.param) for error in checked([content], CHAT, max_bytes).errors]


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b"[" * 100_000, "line_too_long", None),
        (request_line("a", custom_id=None), "missing_required_parameter", "custom_id"),
        (request_line("a", custom_id=7), "invalid_custom_id", "custom_id"),
        (request_line("a", custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        (request_line("a", method="GET"), "invalid_method", "method"),
        (request_line("a", url="/v1/embeddings"), "invalid_url", "url"),
        (request_line("a", body="text"), "invalid_body", "body"),
        (request_line("a", body={"stream": True}), "unsupported", "body.stream"),
    ],
)
def test_an_invalid_line_is_named(line: bytes | dict[str, Any], code: str, param: str | None) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    assert errors_of(b"\n".join([jsonl([request_line("b")]), raw])) == [(code, 3, param)]


def test_nothing_and_too_much_are_refused() -> None:
    assert errors_of(b"\n \n") == [("empty_file", None, "input_file_id")]
    many = errors_of(jsonl([request_line("same")] * (MAX_LINES + 1)))
    assert many[0] == ("too_many_lines", None, "input_file_id")
    assert (len(many), many[-1][0]) == (MAX_ERRORS + 2, "more_errors")


def test_a_valid_file_has_its_lines_and_its_model() -> None:
    content = b"\xef\xbb\xbf" + jsonl([request_line("a"), request_line("b", extra=1)]).replace(b"\n", b"\r\n\n")
    found = checked([content], CHAT, 1000)
    assert (found.total, found.model, found.errors) == (2, "m", ())


@given(st.lists(st.text(alphabet="ab \r", max_size=12), max_size=20), st.lists(st.integers(0, 200), max_size=8))
def test_pieces_of_any_size_have_the_same_lines(texts: list[str], cuts: list[int]) -> None:
    content = "\n".join(texts).encode()
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    pieces = [content[first:last] for first, last in pairwise(places)]
    wanted = [
        (number, None if len(line) > 8 else line)
        for number, line in enumerate(content.split(b"\n"), 1)
        if line.strip() or len(line) > 8
    ]
    assert list(raw_lines(pieces, 8)) == wanted


SCALARS = st.none() | st.booleans() | st.integers() | st.text()
VALUES = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=5)


@given(VALUES)
def test_a_body_arrives_as_it_was_written(value: Any) -> None:
    body = {"model": "m", "value": value}
    line = parse(2, json.dumps(request_line("a", body=body)).encode(), CHAT, 10**6)
    assert (line.custom_id, line.body) == ("a", body)
