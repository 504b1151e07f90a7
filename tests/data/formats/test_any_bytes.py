"""Any bytes under any name are records, reasons or nothing: no exception, and no record is lost in silence."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tempfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.formats import ENDINGS
from tests.data.formats.reading import Read, read

ROWS = [{"text": f"配送が遅い {i}", "label": "悪い" if i % 2 else "good"} for i in range(8)]
PIECES = [
    b'{"text":', b'"a"', b",", b";", b"}", b"\r", b"\n", b'"', b"\x00", b"\x83", b"[", b"]", b"{", b"text", b"\t",
    b"\\", b"\x1b$B", b"\xff\xfe", b"\xef\xbb\xbf", b"\xa4\xa2", b"NaN", b"<p>", b"<!", b"<script", b"&#x",
    b"PK\x03\x04", b"\x1f\x8b",
]  # fmt: skip


@functools.cache
def valid(ending: str) -> bytes:
    """A good file of this ending with ROWS."""
    table = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    if ending == ".xlsx":
        book, target = openpyxl.Workbook(), io.BytesIO()
        for line in table.splitlines():
            book.worksheets[0].append(line.split(","))
        book.save(target)
        return target.getvalue()
    if ending == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
        return sink.getvalue()
    if ending.endswith(".gz"):
        return gzip.compress(valid(ending.removesuffix(".gz")))
    if ending.endswith(".zst"):
        return bytes(pyarrow.compress(valid(ending.removesuffix(".zst")), codec="zstd", asbytes=True))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    return {
        ".csv": table, ".tsv": table.replace(",", "\t"), ".jsonl": lines, ".json": json.dumps(ROWS, indent=1),
    }.get(ending, "\n".join(row["text"] for row in ROWS)).encode()  # fmt: skip


def read_bytes(ending: str, content: bytes) -> Read:
    with tempfile.TemporaryDirectory() as directory:
        return read(Path(directory) / f"a{ending}", content)


ALL = (*ENDINGS, ".csv.gz", ".jsonl.zst", ".json.gz")


@pytest.mark.parametrize("ending", ALL)
def test_a_valid_file_has_its_rows(ending: str) -> None:
    found = read_bytes(ending, valid(ending))
    assert found.reasons == []
    assert len(found.values) == (1 if ending in (".txt", ".md", ".html", ".htm") else len(ROWS))


@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES)).map(b"".join)), st.sampled_from(ALL))
@settings(max_examples=400, deadline=None)
def test_any_bytes(content: bytes, ending: str) -> None:
    found = read_bytes(ending, content)
    assert all(found.reasons)


@given(st.sampled_from(ALL), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_truncated_file_has_fewer_rows_or_a_reason(ending: str, share: float) -> None:
    whole = valid(ending)
    found = read_bytes(ending, whole[: max(1, int(share * len(whole)))])
    assert len(found.values) <= len(ROWS)
    if ending in (".json", ".json.gz", ".csv.gz", ".jsonl.zst", ".xlsx", ".parquet") and share < 0.99:
        assert found.reasons or len(found.values) == len(ROWS)


@given(st.sampled_from(ALL), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_flipped_bits(ending: str, flips: list[tuple[float, int]]) -> None:
    content = bytearray(valid(ending))
    for share, bit in flips:
        content[int(share * len(content))] ^= 1 << bit
    found = read_bytes(ending, bytes(content))
    assert found.values or found.reasons or found.notices or ending in (".html", ".htm", ".parquet")
