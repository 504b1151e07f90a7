"""Parquet with labels, texts and HTML, and packed files."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ray_jobs.data.formats.plain_text import visible_text
from tests.data.formats.reading import read

LABELS = ["negative", "positive"]
CLASS_LABEL = {"names": LABELS, "_type": "ClassLabel"}


def parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> Path:
    written = pyarrow.Table.from_pylist(rows)
    if features is not None:
        written = written.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(written, path)
    return path


def test_a_class_label_becomes_its_name(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": 1, "tags": [0, 1]},
        {"text": "b", "label": 0, "tags": []},
        {"text": "c", "label": None},
    ]
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": CLASS_LABEL,
        "tags": {"feature": CLASS_LABEL, "_type": "List"},
    }
    found = read(parquet(tmp_path / "a.parquet", rows, features))
    assert found.values[0] == {"text": "a", "label": "positive", "tags": LABELS}
    assert found.values[1]["label"] == "negative"
    assert found.values[2] == {"text": "c"}
    assert [notice for notice in found.notices if "'label'" in notice and "ClassLabel" in notice]


def test_a_class_label_without_a_name_is_refused(tmp_path: Path) -> None:
    rows = [{"label": 1}, {"label": -1}, {"label": 2}]
    found = read(parquet(tmp_path / "a.parquet", rows, {"label": CLASS_LABEL}))
    assert found.values == [{"label": "positive"}]
    assert [reason.split(",")[0] for reason in found.reasons] == ["row 2: label is -1", "row 3: label is 2"]


@pytest.mark.parametrize("metadata", [b"no json", b"[]", b'{"info": null}', b'{"info": {"features": {"label": 7}}}'])
def test_foreign_metadata_changes_nothing(tmp_path: Path, metadata: bytes) -> None:
    written = pyarrow.Table.from_pylist([{"label": 1}]).replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(written, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").values == [{"label": 1}]


@pytest.mark.parametrize("ending", [".txt", ".md", ".html"])
def test_a_text_is_one_record(tmp_path: Path, ending: str) -> None:
    found = read(tmp_path / f"a{ending}", "こんにちは\n\n世界\n")
    assert len(found.values) == 1
    assert (found.places, found.values[0]["text"].split()) == ([""], ["こんにちは", "世界"])


def test_a_text_with_a_nul_byte_or_too_long(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", b"a\nb\x00").reasons == ["a NUL byte in line 2; remove it"]
    assert "longer than 10 MB" in read(tmp_path / "a.txt", b"a" * 10_000_001).reasons[0]


def test_the_visible_text_of_a_page() -> None:
    page = """<!doctype html><html><head><title>題</title><style>p { color: red }</style></head><body>
    <h1>見出し</h1><p>一 &amp; <b>二</b>つ<br>改行</p><script>if (1 < 2) { x("<p>no</p>") }</script>
    <ul><li>a</li><li>b</li></ul><noscript>no</noscript><!-- no --></body></html>"""
    assert visible_text(page) == "見出し\n一 & 二つ\n改行\na\nb"


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("inner", [".csv", ".jsonl", ".json"])
def test_packed_files(tmp_path: Path, ending: str, inner: str) -> None:
    row = '{"t": "あ", "u": "b"}'
    data = {".csv": "t,u\nあ,b\n", ".jsonl": f"{row}\n{row}\n", ".json": f"[{row}]"}[inner].encode("cp932")
    packed = gzip.compress(data) if ending == ".gz" else pyarrow.compress(data, codec="zstd", asbytes=True)
    found = read(tmp_path / f"a{inner}{ending}", packed)
    assert found.values[0] == {"t": "あ", "u": "b"}
    assert any("CP932" in notice for notice in found.notices)
    cut = read(tmp_path / f"a{inner}{ending}", packed[:-6])
    assert "cannot be unpacked" in cut.reasons[-1]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_decompression_bomb_ends_at_the_limit(tmp_path: Path, ending: str) -> None:
    lines = b"a,b\n" + b"1,2\n" * 30_000_000
    packed = gzip.compress(lines, 1) if ending == ".gz" else pyarrow.compress(lines, codec="zstd", asbytes=True)
    (reason,) = read(tmp_path / f"a.csv{ending}", packed).reasons
    assert "unpacks to more than 1" in reason


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("a < b &lt; c", "a < b < c"),
        ("<a title=\"x > y\" href='z'>link</a>", "link"),
        ("<p>a<![if !IE]>b<!-- > c --><?php d ?>e", "abe"),
        ("<P>a<SCRIPT>b</Script >c", "ac"),
        ("a<b title='open>b</b>", "ab"),
        ("<p>a</p><p unfinished", "a"),
        ("a<style>b", "a"),
    ],
)
def test_broken_pages_are_read_as_browsers_do(page: str, text: str) -> None:
    assert visible_text(page) == text


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<!--", "</", "<a b='", '<a b="', "<!", "<?", "<script>", "&#", "<p>", "<svg>"]
)
def test_a_page_of_one_repeated_piece_takes_linear_time(piece: str) -> None:
    started = time.process_time()
    visible_text(piece * 30_000)
    assert time.process_time() - started < 1
