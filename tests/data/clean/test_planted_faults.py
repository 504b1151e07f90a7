"""Recall and precision for each kind of fault, planted in texts that were not used to write the rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from examples.assets import DEFAULT_DIRECTORY
from ray_jobs.data.clean.characters import visible
from ray_jobs.data.clean.label_noise import Doubt, doubted
from ray_jobs.data.clean.mojibake import is_damaged, repaired
from ray_jobs.data.clean.near_duplicates import GramSets, clusters, keepers, signatures
from ray_jobs.data.clean.ngrams import gram_set, jaccard
from ray_jobs.data.clean.outliers import features
from ray_jobs.data.clean.set_steps import RowTable, clean_set
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.row_arrays import Digests, digests_of, short_keys
from ray_jobs.data.split import input_digest, row_digest
from ray_jobs.spec.cleaning import CleaningPolicy
from tests.data.clean.support_texts import ENGLISH, JAPANESE, OTHERS, edited, requests

SENTENCES = [text for language in (ENGLISH, JAPANESE) for texts in language.values() for text in texts]
ACCENTED = [text for text in (*SENTENCES, *OTHERS[:6]) if not text.isascii()]
SPAM = DEFAULT_DIRECTORY / "spam.jsonl"


def table_of(rows: Sequence[tuple[str, str]]) -> RowTable:
    lines = [canonical_line({"text": text, "label": label}) for text, label in rows]
    return RowTable(
        ids=short_keys(digests_of([row_digest(line) for line in lines])),
        digests=digests_of([row_digest(line) for line in lines]),
        inputs=_inputs(rows),
        labels=[label for _, label in rows],
        text_of=lambda row: rows[row][0],
        place_of=lambda row: f"rows.jsonl line {row + 1}",
        signatures=signatures([text for text, _ in rows]),
        features=features([text for text, _ in rows]),
    )


def test_every_exact_duplicate_and_conflict_is_found_and_no_other_row() -> None:
    clean = requests(400, seed=1)
    copies, turned = clean[:50], [(text, "other") for text, _ in clean[50:100]]
    found = clean_set(
        CleaningPolicy(exact_duplicates="drop", conflicts="drop"), table_of([*clean, *copies, *turned])
    ).removed
    duplicates = {row for row, step in found.items() if step == "exact_duplicates"}
    conflicts = {row for row, step in found.items() if step == "conflicts"}
    assert len(duplicates) == 50
    assert {row % 400 for row in duplicates} == set(range(50))
    assert conflicts == {*range(50, 100), *range(450, 500)}


@pytest.mark.parametrize("edits", [1, 2, 4, 6])
def test_near_duplicates_reach_98_percent_at_each_distance(edits: int) -> None:
    clean = [text for text, _ in requests(300, seed=edits)]
    random = Random(edits)
    texts = [*clean, *(edited(text, edits, random) for text in clean)]
    similar = {
        number for number in range(300) if jaccard(gram_set(texts[number]), gram_set(texts[number + 300])) >= 0.8
    }
    assert len(similar) >= 100
    marks = signatures(texts)
    groups = clusters(marks, texts.__getitem__, 0.8)
    assert sum(groups[number] == groups[number + 300] for number in similar) >= 0.98 * len(similar)
    for group in set(groups.tolist()):
        members = [number for number in range(600) if groups[number] == group]
        for row, stays in keepers(members, marks, GramSets(texts.__getitem__), 0.8).items():
            assert jaccard(gram_set(texts[row]), gram_set(texts[stays])) >= 0.8


def as_browsers(text: str) -> str:
    return text.encode().decode("sloppy-windows-1252")


def as_latin_1(text: str) -> str:
    return text.encode().decode("latin-1")


def twice(text: str) -> str:
    return as_browsers(as_browsers(text))


@pytest.mark.parametrize("misread", [as_browsers, as_latin_1, twice])
def test_western_mojibake_is_repaired_to_the_byte(misread: Callable[[str], str]) -> None:
    import ftfy.bad_codecs  # noqa: F401  registers sloppy-windows-1252

    assert [text for text in ACCENTED if repaired(misread(text)) != text] == []


def test_cp932_mojibake_of_japanese_is_repaired_where_no_byte_is_lost_and_noticed_else() -> None:
    japanese = [text for text in SENTENCES if not text.isascii()]
    pieces = [text[start : start + 8] for text in japanese for start in range(len(text) - 7)]
    lossless = {piece: read for piece in pieces if (read := _as_cp932(piece)) is not None}
    assert len(lossless) >= 20
    assert sum(repaired(read) == piece for piece, read in lossless.items()) >= 0.95 * len(lossless)
    lost = [text for text in japanese if _as_cp932(text) is None]
    assert len(lost) >= 10
    noticed = [is_damaged(repaired(text.encode().decode("cp932", "replace"))) for text in lost]
    assert sum(noticed) >= 0.9 * len(lost)


def _as_cp932(text: str) -> str | None:
    """The text read as CP932. None: bytes of it are lost."""
    try:
        return text.encode().decode("cp932")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("encoding", ["big5", "gb18030", "shift_jis", "euc_kr"])
def test_another_encoding_than_utf_8_is_noticed_and_not_made_worse(encoding: str) -> None:
    text = "這是一封測試郵件。" if encoding in {"big5", "gb18030"} else "テスト郵便です。返金をお願いします。"
    read = f"Hello\n{text.encode(encoding, 'ignore').decode('latin-1')}"
    assert repaired(read) == read
    assert is_damaged(read)


@pytest.mark.parametrize("beginning", ["", "café – "])
def test_a_text_that_lost_bytes_as_windows_1252_is_noticed_and_not_repaired_in_part(beginning: str) -> None:
    read = f"{beginning}とても良い商品でした。".encode().decode("cp1252", "replace")
    assert repaired(read) == read
    assert is_damaged(read)
    assert is_damaged(f"{beginning}caf\u00c3\u00a9 \ufffd")


VALID_BY_CHANCE = ("縺れた", "窶れた", "站点", "ﾃｽﾄ", "ABCﾃｽﾄ", "ﾃﾞｰﾀ", "·······", "1½–2½ ±5°C", "«½×§» ÄÖÜ")
"""Right texts whose bytes in CP932 are, or nearly are, valid UTF-8."""


@pytest.mark.parametrize("text", [*OTHERS, *SENTENCES, *VALID_BY_CHANCE])
def test_a_text_that_is_right_stays_as_it_is(text: str) -> None:
    assert repaired(text) == text
    assert not is_damaged(text)
    assert visible(text) == text


@pytest.mark.parametrize(
    "character", ["\u200b", "\ufeff", "\u00ad", "\u2060", "\u200d", "\u200c", "\x07", "\U000e0041"]
)
@pytest.mark.parametrize("text", SENTENCES)
def test_an_invisible_character_is_removed_and_nothing_else(text: str, character: str) -> None:
    middle = len(text) // 2
    assert visible(text[:middle] + character + text[middle:]) == text
    assert visible(character + text + character) == text


def test_70_percent_of_the_flipped_labels_are_in_the_first_15_percent() -> None:
    assert _found_of_flipped(requests(300, seed=9)) >= 0.7


@pytest.mark.skipif(not SPAM.exists(), reason="python -m examples.assets spam brings the mails")
def test_70_percent_of_the_flipped_labels_of_mails_are_in_the_first_15_percent() -> None:
    mails = [(row["text"], row["label"]) for row in map(json.loads, _lines(SPAM, 500))]
    assert _found_of_flipped(mails) >= 0.7


def test_copies_of_a_row_do_not_confirm_its_wrong_label() -> None:
    rows = requests(150, seed=6)
    text, label = rows[0]
    rows[:1] = [(text, "access" if label == "billing" else "billing")] * 8
    assert {each.row for each in _doubts(rows)} >= set(range(8))


def test_the_order_of_the_rows_changes_no_doubt() -> None:
    rows = requests(120, seed=4)
    rows[3:9] = [(text, "access" if label == "billing" else "billing") for text, label in rows[3:9]]
    turned = rows[::-1]
    assert [rows[each.row] for each in _doubts(rows)] == [turned[each.row] for each in _doubts(turned)]


def _inputs(rows: Sequence[tuple[str, str]]) -> Digests:
    return digests_of([input_digest(text) for text, _ in rows])


def _doubts(rows: Sequence[tuple[str, str]]) -> list[Doubt]:
    return list(
        doubted(lambda row: rows[row][0], [label for _, label in rows], _inputs(rows), np.arange(len(rows)))
    )  # fmt: skip


def _found_of_flipped(rows: Sequence[tuple[str, str]]) -> float:
    names = sorted({label for _, label in rows})
    flipped = set(Random(2).sample(range(len(rows)), len(rows) // 10))
    given = [names[1 - names.index(label)] if row in flipped else label for row, (_, label) in enumerate(rows)]
    first = doubted(lambda row: rows[row][0], given, _inputs(rows), np.arange(len(rows)))
    return sum(each.row in flipped for each in first[: len(rows) * 15 // 100]) / len(flipped)


def _lines(path: Path, count: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return Random(1).sample(lines, count)
