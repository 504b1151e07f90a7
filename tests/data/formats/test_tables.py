"""Tables as people have them: delimiters, headers, empty rows and columns; CSV, TSV and Excel alike."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from ray_jobs.data.formats import LONGEST_LINE_BYTES, MOST_COLUMNS
from tests.data.formats.reading import Read, read


def workbook(path: Path, *sheets: Sequence[Sequence[Any]], change: Callable[[Any], None] = lambda _: None) -> Path:
    """A workbook with these sheets' rows. `change` is called with it before it is saved."""
    book = openpyxl.Workbook()
    for number, rows in enumerate(sheets):
        sheet = book.worksheets[0] if number == 0 else book.create_sheet()
        for row in rows:
            sheet.append(list(row))
    change(book)
    book.save(path)
    return path


def table(tmp_path: Path, kind: str, rows: Sequence[Sequence[str]]) -> Read:
    if kind == "xlsx":
        return read(workbook(tmp_path / "a.xlsx", rows))
    return read(tmp_path / "a.csv", "".join(",".join(row) + "\r\n" for row in rows))


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
class TestEveryTable:
    def test_last_columns_that_are_empty_are_ignored(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["text", "label", "", ""], ["a", "x", "", ""], ["b", "y", "", " "]])
        assert (found.values, found.reasons) == ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], [])

    def test_a_cell_in_a_column_without_a_name_is_refused(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["text", "", "label"], ["a", "", "x"], ["b", "note", "y"]])
        assert len(found.values) == 1
        assert "3: 'note' is in column 2, which has no name" in found.reasons[0]

    def test_an_index_without_a_name_is_left_out_and_said(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["", "text", "label"], ["0", "a", "x"]])
        assert found.values == [{"text": "a", "label": "x"}]
        assert "column 1 has no name" in found.notices[0]

    def test_a_name_twice_leaves_both_columns_out(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["id", "text", "id"], ["1", "a", "2"]])
        assert found.values == [{"text": "a"}]
        assert "'id' twice" in found.notices[0]

    def test_empty_rows_are_skipped_and_counted(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["text", "label"], ["", ""], ["a", "x"], ["", " "], ["b", "y"]])
        assert (len(found.values), found.reasons) == (2, [])
        assert found.notices[0].startswith("2 empty row(s) skipped")
        assert "2, 4" in found.notices[0]

    def test_the_header_again_is_skipped_with_its_place(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["text", "label"], ["a", "x"], ["text", "label"], ["b", "y"]])
        assert [values["text"] for values in found.values] == ["a", "b"]
        assert found.notices[0].endswith(" 3")

    @pytest.mark.parametrize(
        "rows",
        [
            [["とても良い。", "good"], ["悪い", "bad"]],
            [["I like it a lot!", "good"], ["no", "bad"]],
            [["nice", "good"], ["bad", "bad"], ["ok", "good"]],
            [["x" * 300, "good"]],
            [["12", "5.5"], ["3", "4"]],
        ],
    )
    def test_no_header_is_refused_with_the_first_row(self, tmp_path: Path, kind: str, rows: list[list[str]]) -> None:
        found = table(tmp_path, kind, rows)
        assert found.values == []
        assert "1: no header: the first row is " in found.reasons[0]
        assert rows[0][0][:10] in found.reasons[0]
        assert "add a first row" in found.reasons[0]

    @pytest.mark.parametrize("header", [["No.", "text"], ["0", "1"], ["Is it spam?", "本文"], ["2020", "text"]])
    def test_odd_headers_are_headers(self, tmp_path: Path, kind: str, header: list[str]) -> None:
        assert table(tmp_path, kind, [header, ["a", "b"]]).values == [dict(zip(header, ["a", "b"], strict=True))]

    def test_more_columns_than_the_limit(self, tmp_path: Path, kind: str) -> None:
        wide = [[f"c{i}" for i in range(MOST_COLUMNS + 1)], ["1"] * (MOST_COLUMNS + 1)]
        found = table(tmp_path, kind, wide)
        assert found.values == []
        assert str(MOST_COLUMNS) in found.reasons[0]

    def test_titles_above_the_header_give_one_reason(self, tmp_path: Path, kind: str) -> None:
        rows = [["売上の声"], ["", ""], ["本文", "評価"], *([f"品{i}", "良い"] for i in range(30))]
        found = table(tmp_path, kind, rows)
        assert found.values == []
        (reason,) = found.reasons
        assert "1: the first row has 1 cell ('売上の声')" in reason
        assert "3 with 2 cells ('本文', '評価')" in reason

    def test_one_row_with_a_note_beside_it_is_that_rows_problem(self, tmp_path: Path, kind: str) -> None:
        found = table(tmp_path, kind, [["text", "label"], ["a", "x"], ["b", "y", "note"], ["c", "x"]])
        assert (len(found.values), len(found.reasons)) == (2, 1)

    def test_the_questions_of_a_form_are_names(self, tmp_path: Path, kind: str) -> None:
        header = ["ご意見をお書きください。", "満足度を教えて下さい", "また利用しますか。"]
        found = table(tmp_path, kind, [header, ["とても良い。", "5", "はい"], ["遅い。", "2", "いいえ"]])
        assert [list(row) for row in found.values] == [header, header]
        no_header = table(tmp_path, kind, [["返金してください。", "要望"], ["遅い。", "苦情"], ["直して。", "要望"]])
        assert "no header" in no_header.reasons[0], "its label is in another row too"


# ---- CSV and TSV ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "，", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, ending: str) -> None:
    rows = [["本文", "評価", "数"], ['"遅い\n本当に"', "悪", "1"], ["良い、とても", "良", "2"]]
    found = read(tmp_path / f"a{ending}", "\n".join(delimiter.join(row) for row in rows))
    assert [values["評価"] for values in found.values] == ["悪", "良"]
    assert bool(found.notices) == (delimiter != {".csv": ",", ".tsv": "\t"}[ending])


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("id;text, long;label\n1;a, b;x\n2;c;y\n", ["id", "text, long", "label"]),
        ("text,label\na;b;c,x\nd;e;f,y\n", ["text", "label"]),
        ("text\na;b\nc, or d\n", ["text"]),
    ],
)
def test_a_header_with_two_delimiters(tmp_path: Path, content: str, columns: list[str]) -> None:
    assert list(read(tmp_path / "a.csv", content.replace("c, or d", "c or d")).values[0]) == columns


def test_a_lost_quote_is_reported_and_takes_no_memory(tmp_path: Path) -> None:
    lines = "a,x\n" * (LONGEST_LINE_BYTES // 4 + 1000)
    found = read(tmp_path / "a.csv", f'text,label\n"open,x\n{lines}')
    assert found.reasons[0].startswith("line 2: not well quoted: a row of more than 10 MB; is a quote missing?")
    assert len(found.values) > 100


# ---- Excel ------------------------------------------------------------------------------------------------------


def test_cells_become_the_texts_that_csv_would_have(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 5, 10, 30)
    cells = [1, 2.0, 2.5, True, datetime.date(2024, 1, 5), moment, datetime.time(9, 0), " あ ", None, 12345678901234]
    header = [f"c{i}" for i in range(len(cells))]
    found = read(workbook(tmp_path / "a.xlsx", [header, cells]))
    expected = ["1", "2", "2.5", "TRUE", "2024-01-05", "2024-01-05T10:30:00", "09:00:00", " あ ", "", "12345678901234"]
    assert list(found.values[0].values()) == expected
    assert (found.places, found.notices) == (["row 2"], [])


def test_the_only_sheet_with_rows_is_read(tmp_path: Path) -> None:
    assert read(workbook(tmp_path / "a.xlsx", [], [["text"], ["a"]])).values == [{"text": "a"}]


def test_several_sheets_with_rows_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["text"], ["a"]], [["text"], ["b"]])
    (reason,) = read(path).reasons
    assert "'Sheet', 'Sheet1'" in reason
    found = read(path, sheet="Sheet1")
    assert found.values == [{"text": "b"}]
    assert "'Sheet1' is read" in found.notices[0]
    assert "no sheet 'Sheet2'; its sheets are 'Sheet', 'Sheet1'" in read(path, sheet="Sheet2").reasons[0]


def test_a_hidden_sheet_does_not_count(tmp_path: Path) -> None:
    def hide(book: Any) -> None:
        book["Sheet1"].sheet_state = "hidden"

    path = workbook(tmp_path / "a.xlsx", [["text"], ["a"]], [["text"], ["b"]], change=hide)
    assert read(path).values == [{"text": "a"}]
    assert read(path, sheet="Sheet1").values == [{"text": "b"}]


def test_rows_that_a_filter_hides_are_read_and_counted(tmp_path: Path) -> None:
    def hide(book: Any) -> None:
        for row in (3, 4):
            book.active.row_dimensions[row].hidden = True

    rows = [["text", "label"], *([f"t{i}", "x"] for i in range(5))]
    found = read(workbook(tmp_path / "a.xlsx", rows, change=hide))
    assert len(found.values) == 5
    assert found.notices == ["2 hidden row(s) are read too: 3, 4; delete those that are not meant"]


def test_merged_cells_in_the_header_are_refused_and_elsewhere_said(tmp_path: Path) -> None:
    rows = [["text", "label"], ["a", "x"], ["b", "y"]]
    header = workbook(tmp_path / "a.xlsx", rows, change=lambda book: book.active.merge_cells("A1:B1"))
    assert read(header).values == []
    assert "A1:B1" in read(header).reasons[0]
    below = read(workbook(tmp_path / "b.xlsx", rows, change=lambda book: book.active.merge_cells("B2:B3")))
    assert [values["label"] for values in below.values] == ["x", ""]
    assert "B2:B3" in below.notices[0]


def test_a_formula_gives_its_stored_value_and_is_refused_without_one(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", "=1+1"], ["b", "y"]])
    found = read(path)
    assert found.values == [{"text": "b", "label": "y"}]
    assert "row 2: cell B2 has a formula and no stored value" in found.reasons[0]
    stored = tmp_path / "b.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stored, "w") as new:
        for name in old.namelist():
            part = re.sub(rb"</f><v ?/>|</f><v></v>", b"</f><v>2</v>", old.read(name))
            new.writestr(name, part)
    assert read(stored).values == [{"text": "a", "label": "2"}, {"text": "b", "label": "y"}]


def test_a_cell_with_an_error_is_refused(tmp_path: Path) -> None:
    def break_it(book: Any) -> None:
        book.active["B2"].data_type = "e"

    found = read(workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", "#N/A"]], change=break_it))
    assert found.reasons == ["row 2: cell B2 has the error #N/A"]


def sheet_of(path: Path, xml: str) -> Path:
    """A workbook whose sheet data is this XML."""
    whole = workbook(path.with_name("whole.xlsx"), [["text"], ["a"]])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            part = old.read(name)
            if name.startswith("xl/worksheets/"):
                begin, end = part.index(b"<sheetData>"), part.index(b"</sheetData>")
                part = part[:begin] + b"<sheetData>" + xml.encode() + part[end:]
            new.writestr(name, part)
    return path


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ('<row r="999999999"><c r="A1" t="str"><v>a</v></c></row>', "row 999999999"),
        ('<row r="2"/><row r="1"/>', "row 1 follows row 2"),
        ('<row r="1"><c r="AAAAAA1" t="str"><v>a</v></c></row>', "'AAAAAA1' is no cell"),
        ('<row r="1"><c r="XFD1" t="str"><v>a</v></c></row>', "column 16384"),
        ('<row r="1"><c r="A1" t="s"><v>77</v></c></row>', "not readable as an Excel workbook"),
        ('<row r="1"><c r="A1"', "not readable as an Excel workbook"),
    ],
)
def test_a_hostile_sheet_is_refused(tmp_path: Path, xml: str, reason: str) -> None:
    found = read(sheet_of(tmp_path / "a.xlsx", xml))
    assert found.values == []
    assert reason in found.reasons[0]


def test_a_workbook_that_unpacks_to_too_much(tmp_path: Path) -> None:
    found = read(sheet_of(tmp_path / "a.xlsx", " " * 101_000_000))
    assert "unpacks to more than 100 MB" in found.reasons[0]


def test_characters_that_excel_escapes_are_read(tmp_path: Path) -> None:
    rows = [("text", "label"), ("one_x000D_\ntwo", "a_x005F_b")]
    assert read(workbook(tmp_path / "a.xlsx", rows)).values == [{"text": "one\ntwo", "label": "a_b"}]
