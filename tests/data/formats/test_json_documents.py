"""JSON lines and documents: each is read as what it is, whatever its name."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.formats import LONGEST_LINE_BYTES, read_records
from tests.data.formats.reading import read

ROWS = [{"text": f'日本 {i} "}}]\\', "deep": [{"a": [i, {}]}]} for i in range(40)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("escaped", [True, False])
def test_an_array(tmp_path: Path, indent: int | None, escaped: bool) -> None:
    found = read(tmp_path / "a.json", json.dumps(ROWS, indent=indent, ensure_ascii=escaped))
    assert (found.values, found.reasons, found.notices) == (ROWS, [], [])
    assert found.places[:2] == ["record 1", "record 2"]


@pytest.mark.parametrize("indent", [None, 1])
def test_the_only_list_of_objects_in_an_object(tmp_path: Path, indent: int | None) -> None:
    document = {"version": 1, "tags": ["data", {"data": [{}]}], "meta": {"data": [{}]}, "data": ROWS, "end": {}}
    found = read(tmp_path / "a.json", json.dumps(document, indent=indent))
    assert (found.values, found.reasons) == (ROWS, [])
    assert "'data'" in found.notices[0]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_below_a_usual_name_are_found_in_any_file(tmp_path: Path, name: str) -> None:
    found = read(tmp_path / name, json.dumps({"rows": ROWS, "total": 40}))
    assert (found.values, found.reasons) == (ROWS, [])
    one = {"prompt": "a", "tools": [{"type": "function"}]}
    assert read(tmp_path / "b.jsonl", json.dumps(one)).values == [one]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "document",
    [
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"text": ["a", "b"], "label": ["x", "y"]},
    ],
)
def test_columns_in_place_of_rows_are_refused(tmp_path: Path, name: str, document: dict[str, Any]) -> None:
    found = read(tmp_path / name, json.dumps(document))
    assert found.values == []
    assert "one object with the columns 'text', 'label'" in found.reasons[0]
    assert 'orient="records"' in found.reasons[0]


def test_several_lists_of_objects_are_refused_with_their_names(tmp_path: Path) -> None:
    (reason,) = read(tmp_path / "a.json", json.dumps({"train": ROWS, "test": ROWS}, indent=1)).reasons
    assert "'train', 'test'" in reason


@pytest.mark.parametrize("indent", [None, 1])
def test_one_conversation_is_one_row(tmp_path: Path, indent: int | None) -> None:
    row = {"messages": [{"role": "user", "content": "a"}]}
    assert read(tmp_path / "a.json", json.dumps(row, indent=indent)).values == [row]
    assert read(tmp_path / "a.jsonl", json.dumps(row)).values == [row]


def test_lines_named_json_and_an_array_named_jsonl(tmp_path: Path) -> None:
    lines = read(tmp_path / "a.json", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert (lines.values, lines.places[1]) == (ROWS, "line 2")
    assert "JSON lines" in lines.notices[0]
    for indent in (None, 1):
        array = read(tmp_path / "a.jsonl", json.dumps(ROWS, indent=indent))
        assert array.values == ROWS
        assert "one array" in array.notices[0]


def test_bad_elements_are_refused_with_their_number_and_the_others_read(tmp_path: Path) -> None:
    bad = ['{"a": 1, "a": 2}', '{"b": NaN}', "[1]", "null", '{"c": tru}', '{"n": [{"k": 1, "k": 2}]}']
    found = read(tmp_path / "a.json", f'[{{"a": 1}}, {", ".join(bad)}, {{"z": 1}}]')
    assert found.values == [{"a": 1}, {"z": 1}]
    assert [reason.split(":")[0] for reason in found.reasons] == [f"record {i}" for i in (2, 3, 4, 5, 6, 7)]
    parts = ("'a' occurs twice", "NaN", "a list", "null", "not JSON", "'k'")
    for reason, part in zip(found.reasons, parts, strict=True):
        assert part in reason


@pytest.mark.parametrize(
    "content", ['[{"a": 1}, {"b": ', '[{"a": 1}', '[{"a": 1}, ', '[{"a": "', "[", '{\n"d": [{"a": 1}']
)
def test_a_document_that_is_cut_off_says_so(tmp_path: Path, content: str) -> None:
    assert any("cut off" in reason for reason in read(tmp_path / "a.json", content).reasons), content


@pytest.mark.parametrize("content", ['[{"a": 1}] x', '[{"a": 1}]\n[{"a": 2}]\n]', '[\n{"a": 1}\n]\n{"b": 1}'])
def test_text_after_the_array_is_refused(tmp_path: Path, content: str) -> None:
    found = read(tmp_path / "a.json", content)
    assert found.reasons


@pytest.mark.parametrize("content", ["", "[]", " \n", "[ ]", '{"data": []}'])
def test_a_document_without_rows(tmp_path: Path, content: str) -> None:
    found = read(tmp_path / "a.json", content)
    assert [values for values in found.values if values != {"data": []}] == []
    assert found.reasons == []


def test_an_element_that_is_too_long_and_one_nested_too_deeply(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    found = read(tmp_path / "a.json", f'[{{"a": "{"x" * (LONGEST_LINE_BYTES + 1)}"}}, {{"a": {deep}}}, {{"a": 1}}]')
    assert found.values == [{"a": 1}]
    assert [reason.split(":")[0] for reason in found.reasons] == ["record 1", "record 2"]
    assert "longer than 10 MB" in found.reasons[0]
    assert "nested too deeply" in found.reasons[1]


def test_memory_does_not_grow_with_the_document(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": [' + ",\n".join(['{"a": "' + "x" * 1000 + '"}'] * 5_000) + "]}")
    list(read_records(path))  # imports
    tracemalloc.start()
    count = sum(1 for _ in read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_001  # with the notice
    assert peak < 2_000_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_any_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], pretty: bool, escaped: bool
) -> None:
    if not escaped:  # a lone surrogate has no UTF-8
        rows = json.loads(json.dumps(rows, ensure_ascii=False).encode(errors="ignore").replace(b"\x00", b""))
    content = json.dumps(rows, indent=1 if pretty else None, ensure_ascii=escaped)
    assert read(tmp_path_factory.mktemp("rows") / "a.json", content).values == json.loads(content)
