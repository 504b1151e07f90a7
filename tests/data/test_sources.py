"""Sources of rows: a file, a folder, a glob, a prefix; their order, bounds and fingerprints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_jobs.data import sources
from ray_jobs.data.dataset import load
from ray_jobs.data.prepare import prepare
from ray_jobs.data.sources import find_files, fingerprint, is_here
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from tests.data.builders import CHAT, rows_of, write_jsonl

ROWS = rows_of(30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in three files, one of them in a folder of its own, with files that are no rows."""
    (tmp_path / "rows" / "more").mkdir(parents=True)
    write_jsonl(tmp_path / "rows/b.jsonl", ROWS[10:20])
    write_jsonl(tmp_path / "rows/a.jsonl", ROWS[:10])
    write_jsonl(tmp_path / "rows/more/c.jsonl", ROWS[20:])
    (tmp_path / "rows/README.md").write_text("about")
    (tmp_path / "rows/picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "rows/.hidden").mkdir()
    write_jsonl(tmp_path / "rows/.hidden/d.jsonl", ROWS)
    return tmp_path / "rows"


def names(store: Workspace, source: str) -> list[str]:
    return [file.address.rpartition("/")[2] for file in find_files(store, source).files]


def upload(store: Workspace, folder: Path) -> str:
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and ".hidden" not in path.parts:
            store.upload_file(path, f"files/data/{path.relative_to(folder)}")
    return store.uri("files/data")


def test_a_folder_is_its_files_by_name_and_names_the_others(folder: Path, store: Workspace) -> None:
    found = find_files(store, str(folder))
    assert names(store, str(folder)) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    (notice,) = found.notices
    assert "README.md" in notice
    assert "picture.png" in notice


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jsonl", "ab"),
        ("**/*.jsonl", "abc"),
        ("[ac].jsonl", "a"),
        ("[!a].jsonl", "b"),
        ("?.jsonl", "ab"),
        ("more/*", "c"),
    ],
)
def test_a_glob_means_the_same_here_and_in_the_store(folder: Path, store: Workspace, pattern: str, wanted: str) -> None:
    expected = [f"{name}.jsonl" for name in wanted]
    assert names(store, f"{folder}/{pattern}") == expected
    assert names(store, f"{upload(store, folder)}/{pattern}") == expected


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_is_its_objects_by_name(folder: Path, store: Workspace, slash: str) -> None:
    assert names(store, upload(store, folder) + slash) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_texts_are_rows_where_there_is_nothing_else(tmp_path: Path, store: Workspace) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.md").write_text("a")
    assert names(store, str(tmp_path)) == ["a.md", "b.txt"]


def test_a_source_without_rows_names_what_is_there(tmp_path: Path, store: Workspace) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no file of rows .* but .*x\.png"):
        find_files(store, str(tmp_path))
    with pytest.raises(DataError, match="no rows at s3://"):
        find_files(store, store.uri("files/none/*.jsonl"))
    with pytest.raises(DataError, match="a bucket and no key"):
        find_files(store, "s3://bucket")
    with pytest.raises(DataError, match="has no files"):
        find_files(store, f"{tmp_path}/*.csv")


def test_too_many_files_are_refused(folder: Path, store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    with pytest.raises(DataError, match="more than 2 files of rows"):
        find_files(store, str(folder))


@pytest.mark.parametrize("kind", ["folder", "glob", "prefix", "list"])
def test_the_same_rows_in_several_files_are_the_same_dataset(
    tmp_path: Path, folder: Path, store: Workspace, kind: str
) -> None:
    whole = write_jsonl(tmp_path / "whole.jsonl", ROWS)
    train: object = {
        "folder": str(folder),
        "glob": f"{folder}/**/*.jsonl",
        "prefix": upload(store, folder),
        "list": [str(folder / "a.jsonl"), str(folder / "b.jsonl"), str(folder / "more")],
    }[kind]
    notes: list[str] = []
    one = prepare(store, DataSection(train=str(whole)), CHAT)
    several = prepare(store, DataSection.model_validate({"train": train}), CHAT, notes.append)
    assert several.digest == one.digest
    assert len(load(store, one.digest).train_rows) == one.train_rows
    assert len(notes) == (1 if kind in ("folder", "prefix") else 0)


def test_a_bad_row_names_its_file(folder: Path, store: Workspace) -> None:
    (folder / "b.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(DataError) as caught:
        prepare(store, DataSection(train=str(folder)), CHAT)
    assert any(detail.startswith(f"{folder}/b.jsonl") for detail in caught.value.details)


def test_a_fingerprint_changes_with_each_file(folder: Path, store: Workspace) -> None:
    prefix = upload(store, folder)
    first = [fingerprint(store, source) for source in (str(folder), prefix, str(folder / "a.jsonl"))]
    assert first == [fingerprint(store, source) for source in (str(folder), prefix, str(folder / "a.jsonl"))]
    write_jsonl(folder / "more/c.jsonl", ROWS[21:])
    upload(store, folder)
    again = [fingerprint(store, source) for source in (str(folder), prefix, str(folder / "a.jsonl"))]
    assert [old == new for old, new in zip(first, again, strict=True)] == [False, False, True]


def test_a_glob_is_here_if_it_names_a_file(folder: Path) -> None:
    assert is_here(f"{folder}/*.jsonl")
    assert not is_here(f"{folder}/*.csv")
    assert is_here(os.fspath(folder))


def test_encoding_and_notices_reach_the_job(tmp_path: Path, store: Workspace) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("prompt,completion\n" + "".join(f"質問{i},答え{i}\n" for i in range(60))).encode("cp932"))
    notes: list[str] = []
    prepare(store, DataSection(train=str(path)), CHAT, notes.append)
    assert "seems Shift-JIS" in notes[0]
    prepare(store, DataSection(train=str(path), encoding="cp932"), CHAT, notes.append)
    assert "as requested" in notes[1]
    with pytest.raises(DataError, match="no encoding of text"):
        prepare(store, DataSection(train=str(path), encoding="cp9322"), CHAT)


def test_a_name_that_begins_with_a_tilde_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_here("~nobody.csv")
    Path("~nobody.csv").write_text("text,label\na,x\n")
    assert is_here("~nobody.csv")


def test_a_lock_of_excel_is_no_file_of_rows(tmp_path: Path, store: Workspace) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows_of(3))
    (tmp_path / "~$rows.xlsx").write_bytes(b"\x05user")
    assert [Path(file.address).name for file in find_files(store, str(tmp_path)).files] == ["a.jsonl"]
