"""Files of rows: which are read, and which are refused and why."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import ENDINGS, LONGEST_LINE_BYTES, Notice, Record, read_records
from ray_jobs.data.ingest import read_rows
from ray_jobs.errors import DataError
from ray_jobs.tasks.base import Row
from tests.data.builders import CHAT, CLASSIFY, chat_row, rows_of, write_jsonl


def read(path: Path, rules: Any = CHAT, columns: Mapping[str, str] | None = None) -> tuple[list[Row], list[str]]:
    """(good rows, findings without the file's name)."""
    findings = Findings()
    rows = [row for _, row in read_rows(path, "rows", rules, columns or {}, findings)]
    return rows, [detail.removeprefix("rows ").removeprefix("rows: ") for detail in findings.details]


# ---- formats ----------------------------------------------------------------------------------------------------


def test_japanese_rows_of_every_format_are_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    wanted = [{"text": "返品できますか？\n「はい」", "label": "問い合わせ"}, {"text": "最高です👍", "label": "称賛"}]
    jsonl = write_jsonl(tmp_path / "a.jsonl", wanted)
    tsv = tmp_path / "a.tsv"
    tsv.write_text('text\tlabel\n"返品できますか？\n「はい」"\t問い合わせ\n最高です👍\t称賛\n', encoding="utf-8-sig")
    comma = tmp_path / "a.csv"
    comma.write_text(
        'label,text\r\n問い合わせ,"返品できますか？\n「はい」"\r\n称賛,最高です👍\r\n', encoding="utf-8", newline=""
    )
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wanted), parquet)

    for path in (jsonl, tsv, comma, parquet):
        assert read(path, CLASSIFY) == (wanted, []), path.name


def test_parquet_conversations_lose_null_keys(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [chat_row("こんにちは", "はい"), chat_row("hi", "hello")]
    rows[1]["messages"] = [{"role": "assistant", "content": "hi", "weight": 0}, *rows[1]["messages"]]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path) == (rows, [])


def test_byte_order_mark_mixed_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    lines = [json.dumps(chat_row(f"質問{i}", "答え"), ensure_ascii=False) for i in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n{lines[1]}\n\n{lines[2]}\r{lines[3]}".encode())
    rows, findings = read(path)
    assert [row["messages"][0]["content"] for row in rows] == ["質問0", "質問1", "質問2", "質問3"]
    assert not findings
    assert [record.number for record in read_records(path) if not isinstance(record, Notice)] == [1, 2, 4, 5]


def test_prompt_and_completion_become_messages(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "送料は？", "completion": "無料です。", "id": 7}])
    assert read(path) == ([chat_row("送料は？", "無料です。")], [])


def test_label_types_become_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in (1, True, "spam", "1")])
    rows, findings = read(path, CLASSIFY)
    assert [row["label"] for row in rows] == ["1", "true", "spam", "1"]
    assert not findings


def test_records_are_numbered_from_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(2))
    assert [(type(record), record.number) for record in read_records(path) if not isinstance(record, Notice)] == [
        (Record, 1),
        (Record, 2),
    ]


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("cp932", "Shift-JIS"),
        ("euc_jp", "EUC-JP"),
        ("iso2022_jp", "ISO-2022-JP"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_other_encodings_are_converted_with_a_notice(tmp_path: Path, codec: str, name: str, ending: str) -> None:
    text = '{"prompt": "パスワードを忘れた場合はどうすればよいですか", "completion": "再設定してください。"}\n' * 3
    if ending == ".csv":
        text = "prompt,completion\nパスワードを忘れた場合はどうすればよいですか,再設定してください。\n"
    path = tmp_path / f"a{ending}"
    path.write_bytes(text.encode(codec))
    findings = Findings()
    rows = [row for _, row in read_rows(path, "rows", CHAT, {}, findings)]
    assert [row["messages"][0]["content"] for row in rows] == ["パスワードを忘れた場合はどうすればよいですか"] * (
        3 if ending == ".jsonl" else 1
    )
    assert not findings.count
    (notice,) = findings.notices
    assert name in notice
    assert "converted" in notice


@pytest.mark.parametrize("codec", ["cp932", "euc_jp"])
def test_a_short_japanese_line_is_recognised_in_either_encoding(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "送料は？", "completion": "無料です"}\n'.encode(codec))
    findings = Findings()
    (row,) = (row for _, row in read_rows(path, "rows", CHAT, {}, findings))
    assert row["messages"][0]["content"] == "送料は？"
    assert {"cp932": "Shift-JIS", "euc_jp": "EUC-JP"}[codec] in findings.notices[0]


def test_one_line_in_another_encoding_is_refused_alone(tmp_path: Path) -> None:
    good = json.dumps(chat_row("返品の期限はいつまでですか", "三十日です"), ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{good}\n".encode() + good.encode("cp932") + f"\n{good}\n".encode())
    rows, findings = read(path)
    assert len(rows) == 2
    assert len(findings) == 1
    assert findings[0].startswith("line 2: byte 0x")
    assert "Shift-JIS" in findings[0]


BAD_LINES = {
    "not json": ('{"messages": [', "not JSON"),
    "two objects": ('{"prompt": "a", "completion": "b"} {"prompt": "c"}', "one object a line"),
    "a list": ("[1, 2]", "a list, not an object"),
    "a text": ('"messages"', "a text, not an object"),
    "null": ("null", "null, not an object"),
    "duplicate key": ('{"prompt": "a", "prompt": "b", "completion": "c"}', "'prompt' occurs twice"),
    "duplicate key inside": ('{"messages": [{"role": "user", "role": "user"}]}', "'role' occurs twice"),
    "NaN": ('{"prompt": "a", "completion": NaN}', "NaN is not JSON"),
    "NUL byte": ('{"prompt": "a\x00", "completion": "c"}', "NUL byte at character 14"),
    "NUL escape": (r'{"prompt": "a\u0000", "completion": "c"}', "NUL character"),
    "half an emoji": (r'{"prompt": "a\ud83d", "completion": "c"}', "lone surrogate"),
    "empty answer": ('{"prompt": "a", "completion": " "}', "completion"),
    "no columns": ('{"title": "a"}', "none of the columns"),
    "deep": ('{"prompt": ' + "[" * 200_000, "nested too deeply"),
}


def test_every_malformed_row_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    good = json.dumps(chat_row("q", "a"))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(f"{good}\n{line}" for line, _ in BAD_LINES.values()), encoding="utf-8")
    rows, findings = read(path)
    assert len(rows) == len(BAD_LINES)
    found = {int(detail.split(":")[0].removeprefix("line ")): detail for detail in findings}
    for i, (name, (_, reason)) in enumerate(BAD_LINES.items()):
        assert reason in found[2 * i + 2], name
    assert len(found) == len(BAD_LINES)


def test_an_escaped_backslash_before_u0000_is_no_nul(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [chat_row("what is \\u0000?", "NUL")])
    assert read(path)[1] == []


def test_a_line_too_long_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    good = json.dumps(chat_row("q", "a"))
    path = tmp_path / "a.jsonl"
    path.write_text(f'{good}\n{{"prompt": "{"x" * (2 * LONGEST_LINE_BYTES)}"}}\n{good}\n')
    rows, findings = read(path)
    assert len(rows) == 2
    assert findings == ["line 2: longer than 10 MB; is a line end missing?"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("extra", [0, 1, LONGEST_LINE_BYTES - 1, LONGEST_LINE_BYTES])
def test_a_line_end_at_the_longest_length_is_one_line_end(tmp_path: Path, extra: int, mark: str) -> None:
    """The line is too long by its end alone, or its end is where a later read of it stops."""
    path = tmp_path / "a.jsonl"
    path.write_text(f"{mark}{'x' * (LONGEST_LINE_BYTES + extra)}\r\nnot JSON\r\n", newline="")
    _, findings = read(path)
    assert [finding.partition(":")[0] for finding in findings] == ["line 1", "line 2"]
    assert "longer than 10 MB" in findings[0]


def test_a_big_file_with_old_macintosh_line_ends(tmp_path: Path) -> None:
    line = json.dumps(chat_row("q", "x" * 60_000))
    count = LONGEST_LINE_BYTES // len(line) + 20
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{line}\r".encode() * count)
    rows, findings = read(path)
    assert len(rows) == count
    assert not findings


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert read(path) == ([], ["it holds no rows"])


def test_a_csv_with_a_header_alone_holds_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n")
    assert read(path, CLASSIFY) == ([], ["it holds no rows"])


def test_csv_findings_have_the_line_where_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",x\nb,y,z\nc"d"\n"e"f,g\n,x\nlast,x\n')
    rows, findings = read(path, CLASSIFY)
    assert [row["text"] for row in rows] == ["two\nlines", "last"]
    assert [detail.split(":")[0] for detail in findings] == ["line 4", "line 5", "line 6", "line 7"]
    assert "3 fields, where the header has 2" in findings[0]
    assert "not well quoted" in findings[2]


def test_an_unclosed_quote_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,x\n"b,y\nc,z\n')
    rows, findings = read(path, CLASSIFY)
    assert len(rows) == 1
    assert findings == ["line 3: not well quoted: unexpected end of data"]


def test_a_csv_header_that_names_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,text\na,b,c\n")
    assert read(path, CLASSIFY)[1] == ["the header names 'text' twice; rename one"]


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    assert "not readable as Parquet" in read(path)[1][0]


@pytest.mark.parametrize(
    ("ending", "hint"),
    [(".zip", "unpack"), (".parquet.gz", "unpack"), (".gz", "what it packs"), (".xls", ".xlsx"), ("", "name it")],
)
def test_an_unknown_kind_of_file(tmp_path: Path, ending: str, hint: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match=hint):
        list(read_records(path))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [b'{"prompt":', b'"a"', b",", b"}", b"\r", b"\n", b'"', b"\x00", b"\x83", b"[", b"text", b"\t"]
            )
        ).map(b"".join),
    ),
    st.sampled_from(ENDINGS),
)
def test_no_file_is_anything_but_rows_and_findings(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a{ending}"
        path.write_bytes(content)
        rows, findings = read(path)
    assert rows or findings


# ---- columns ----------------------------------------------------------------------------------------------------


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,body,is_spam\n1,買って,true\n")
    assert read(path, CLASSIFY, {"text": "body", "label": "is_spam"}) == ([{"text": "買って", "label": "true"}], [])


def test_a_name_of_a_column_may_be_composed_in_another_way(tmp_path: Path) -> None:
    written = unicodedata.normalize("NFD", "レビュー（ガジェット）")
    path = write_jsonl(tmp_path / "a.jsonl", [{written: "良い", "label": "x"}])
    columns = {"text": unicodedata.normalize("NFC", written)}
    assert columns["text"] != written
    for mapping in (columns, {"text": written}):
        assert read(path, CLASSIFY, mapping) == ([{"text": "良い", "label": "x"}], [])


def test_a_missing_column_is_reported_once_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("texts,label\n" + "a,b\n" * 500)
    findings = read(path, CLASSIFY)[1]
    assert findings == [
        "no row has a column 'text'; did you mean 'texts'?; name it in data.columns: {text: …}",
    ]
    assert read(path, CLASSIFY, {"text": "texst"})[1] == [
        "no row has a column 'texst'; did you mean 'texts'?; correct data.columns",
    ]


def test_a_column_missing_in_some_rows_is_reported_by_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b"}])
    assert read(path, CLASSIFY)[1] == ["line 2: no column 'label'"]


def test_none_of_several_optional_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"title": "a", "body": "b"}] * 3)
    (finding,) = read(path)[1]
    assert "'title', 'body'" in finding
    assert "data.columns" in finding
