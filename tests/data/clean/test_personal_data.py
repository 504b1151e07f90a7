"""What is found in texts: recall and false alarms on held-out texts, offsets, labels, overlaps, hostile texts."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.clean.finding import Finding, FoldedText
from ray_jobs.data.clean.folding import fold, lower
from ray_jobs.data.clean.personal_data import DETECTORS, find
from ray_jobs.spec.personal_data import KINDS
from tests.data.clean import development_texts, held_out_texts
from tests.data.clean.evaluation import held_out
from tests.repository import ROOT


def values(text: str, label: str = "") -> list[tuple[str, str]]:
    return [(kind, text[start:end]) for kind, start, end in find(text, label)]


def test_recall_and_false_alarms_on_held_out_texts(capsys: pytest.CaptureFixture[str]) -> None:
    table = held_out()
    with capsys.disabled():
        print(f"\n{table}")
    assert {kind: table.recall(kind) for kind in KINDS if table.recall(kind) < 0.99} == {}, table.missed[:20]
    assert {kind: table.precision(kind) for kind in KINDS if table.precision(kind) < 0.98} == {}, table.alarms[:20]
    assert table.clean_rows >= 1000
    assert table.alarms_per_1000 <= 10, table.alarms[:20]


def test_no_held_out_text_is_a_development_text() -> None:
    held_out_sentences = {text for kind in KINDS for text in held_out_texts.PLANTED[kind]} | set(held_out_texts.CLEAN)
    developed = {text for kind in KINDS for text in development_texts.PLANTED[kind]} | set(development_texts.CLEAN)
    assert not held_out_sentences & developed


def test_offsets_are_those_of_the_original_text() -> None:
    text = "İ😀 ＴＥＬ：０３−１２３４−５６７８ は ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏ．ｊｐ まで"
    assert values(text) == [("phone", "０３−１２３４−５６７８"), ("email", "ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏ．ｊｐ")]


@pytest.mark.parametrize("hyphen", "-ー－−–‐‑ｰ―")
def test_every_hyphen_between_digits(hyphen: str) -> None:
    number = hyphen.join(["03", "1234", "5678"])
    assert values(f"番号{number}です") == [("phone", number)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("口座番号 1234567", [("bank_account", "1234567")]),
        ("受付番号 1234567", []),
        ("1234567", []),
        ("口座の件、受付番号 1234567", []),  # the closest label decides
        ("1234567（口座番号）", [("bank_account", "1234567")]),
        ("普通 1234567円", []),
        ("口座は2024-05-01に開設", []),
        ("The bank reported losses in 2023-2024", []),
        ("免許の更新は20240501", []),
        ("123-4567", []),
        ("〒1234567", [("postal_code", "1234567")]),
        ("住所 123-4567", [("postal_code", "123-4567")]),
        ("123-4567 東京都", [("postal_code", "123-4567")]),
        ("TK1234567", []),
        ("旅券 TK1234567", [("passport", "TK1234567")]),
        ("GB82 WEST 1234 5698 7654 32", [("bank_account", "GB82 WEST 1234 5698 7654 32")]),
        ("GB82 WEST 1234 5698 7654 33", []),
        ("4111 1111 1111 1111", [("credit_card", "4111 1111 1111 1111")]),
        ("4111 1111 1111 1112", []),
        ("9999 9999 9999 9995", []),  # no issuer
        ("注文番号 4111111111111111", []),
        ("1234-5678-9018", [("my_number", "1234-5678-9018")]),
        ("1234-5678-9019", []),
        ("伝票番号 1234-5678-9018", []),
        ("123456789018", []),  # without groups only beside its label
        ("個人番号 123456789018", [("my_number", "123456789018")]),
        ("法人番号 7000012050002", [("corporate_number", "7000012050002")]),  # the National Tax Agency's
        ("法人番号 8000012050002", []),
        ("09012345678", [("phone", "09012345678")]),
        ("注文 09012345678", []),
        ("0312345678", []),
        ("電話 0312345678", [("phone", "0312345678")]),
        ("+81 (0)3-1234-5678", [("phone", "+81 (0)3-1234-5678")]),
        ("02-14-2024", []),
        ("8.8.8.8", []),
        ("DNS 8.8.8.8", [("ip_address", "8.8.8.8")]),
        ("127.0.0.1, 0.0.0.0 and 255.255.255.0", []),
        ("version 10.20.30.40", []),
        ("00:1a:2b:3c:4d:5e at 12:34:56, ::1", []),
        ("git@github.com:team/app.git", []),
        ("東京都港区芝公園4丁目2番8号 東京タワー3階", [("address", "東京都港区芝公園4丁目2番8号 東京タワー3階")]),
        ("横浜市西区みなとみらい2丁目2-1", [("address", "横浜市西区みなとみらい2丁目2-1")]),
        ("大阪府では2-3日かかります", []),
    ],
)  # fmt: skip
def test_a_number_counts_by_its_check_digit_and_its_label(text: str, found: list[tuple[str, str]]) -> None:
    assert values(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("password = hunter2hunter9", "hunter2hunter9"),
        ('"api_key": "q8Zr2LmW0vTx"', "q8Zr2LmW0vTx"),
        ("パスワードは「Sakura-2024x」", "Sakura-2024x"),
        ("postgres://app:S3cr3t!x@db.example.com/a", "S3cr3t!x"),
        ("password = get_password2()", None),
        ("api_key = YOUR_API_KEY_123", None),
        ("api_key = os.environ['KEY1']", None),
        ("token: 20240512", None),
        ("the token is required", None),
        ("task-sk-learn-compatible-estimators-1", None),
    ],
)
def test_secrets_beside_words(text: str, found: str | None) -> None:
    assert [value for kind, value in values(text) if kind == "api_key"] == ([found] if found else [])


def test_a_private_key_counts_as_far_as_it_goes() -> None:
    begin, end = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
    whole, cut = f"{begin}\nQUJD\n{end}", f"{begin}\nQUJD\n"
    assert values(f"{cut}{whole} {end} {cut}次") == [("private_key", cut), ("private_key", whole), ("private_key", cut)]
    assert values("-----BEGIN PUBLIC KEY-----") == []


def test_the_name_of_a_field_is_a_label() -> None:
    assert values("0312345678", label="phone") == [("phone", "0312345678")]
    assert values("0312345678", label="order") == []


def test_the_more_specific_kind_wins_an_overlap_then_the_longer_value() -> None:
    def overlapping(text: FoldedText) -> list[Finding]:
        return [Finding("phone", 0, 9), Finding("email", 4, 6), Finding("phone", 6, 8), Finding("ip_address", 7, 9)]

    assert find("x" * 9, detectors=[overlapping]) == [Finding("email", 4, 6), Finding("phone", 6, 8)]


def test_a_detector_can_be_added() -> None:
    def names(text: FoldedText) -> list[Finding]:
        return [Finding("address", text.folded.index("山田"), text.folded.index("山田") + 2)]

    assert values("山田です") == []
    assert find("山田です", detectors=[*DETECTORS, names]) == [Finding("address", 0, 2)]


@given(st.text(st.sampled_from("0０1-ー−@.a:／/ 〒東京都港区丁目番口座電話+(）{\"'\n"), max_size=200))
@settings(max_examples=200, deadline=None)
def test_findings_are_sorted_apart_and_inside_the_text(text: str) -> None:
    found = find(text)
    assert all(0 <= each.start < each.end <= len(text) for each in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_folding_keeps_the_length(text: str) -> None:
    assert len(fold(text)) == len(lower(text)) == len(text)


def test_hostile_texts_end_soon() -> None:
    # A quadratic pattern takes hours here, the present ones some seconds; the limit is for a slow machine.
    command = [sys.executable, "-m", "tests.data.clean.hostile", "40000"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.count("findings") > 50


def test_a_megabyte_of_one_text_ends_soon() -> None:
    code = (
        "from ray_jobs.data.clean.personal_data import find\n"
        "for piece in ['東京都港', 'a@', '0 ', 'eyJa', 'password']: find(piece * (1_000_000 // len(piece)) + '!')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, check=True)
