"""Encodings: each is found, converted and reported; one broken line does not change the encoding of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.formats.encodings import rank
from ray_jobs.errors import DataError
from tests.data.formats.reading import read

JAPANESE = [
    "パスワードを忘れた場合はどうすればよいですか。", "配送が遅い。二週間待っても届きません",
    "東京都渋谷区の店舗は本日休業",
    "返品期限 三十日", "株式会社山田製作所 総務部", "アプリの更新後にログインできない", "送料無料", "品質不良", "満足",
    "祇園精舎の鐘の声、諸行無常の響きあり。", "薔薇と檸檬の香り", "吾輩は猫である。名前はまだ無い。",
]  # fmt: skip
HALF_WIDTH = [
    "ﾌﾘｺﾐ ﾔﾏﾀﾞ ﾀﾛｳ", "ｶ)ﾆﾎﾝｼﾖｳｼﾞ", "ﾃﾞﾝﾜﾘﾖｳｷﾝ", "ｼｮｳﾋﾝｶﾞ ｺﾜﾚﾃｲﾏｼﾀ｡", "ｷｬﾝｾﾙ", "ﾊｲｿｳﾁｴﾝ", "ﾐﾂﾋﾞｼUFJｷﾞﾝｺｳ", "ﾜﾙｲ", "ﾌﾂｳ",
]  # fmt: skip
CHINESE = [
    "我的密码忘记了，应该怎么办？", "快递太慢了，等了两个星期还没有收到货。", "东西收到了，包装完好",
    "非常满意", "质量太差",
    "退货退款", "北京市朝阳区建国路八十八号", "音质不错，续航能力强", "酒店位置便利，服务员态度热情。",
]  # fmt: skip
LATIN = [
    "Où est passée ma commande ?", "Très déçu, le produit est arrivé cassé.", "Das Gerät läuft nicht mehr, 30 €",
    "¿Dónde está mi reembolso, señor?", "Não recebi a encomenda até hoje", "“Great product” – it’s fine…",
    "Überweisung",
]  # fmt: skip
SAMPLES = [
    *[("cp932", text) for text in [*JAPANESE, *HALF_WIDTH]],
    *[("euc_jp", text) for text in JAPANESE],
    *[("gb18030", text) for text in CHINESE],
    *[("cp1252", text) for text in LATIN],
]
NAMES = {
    "cp932": "Shift-JIS (CP932)", "euc_jp": "EUC-JP", "gb18030": "GB18030", "cp1252": "Windows-1252",
    "iso2022_jp_ext": "ISO-2022-JP", "utf-16": "UTF-16", "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE",
    "utf-32": "UTF-32",
}  # fmt: skip


@pytest.mark.parametrize(("codec", "text"), SAMPLES)
def test_one_short_line_is_enough(codec: str, text: str) -> None:
    assert rank([f"{text}\n".encode(codec)])[0].candidate.name == NAMES[codec]


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".txt"])
def test_every_format_is_converted(tmp_path: Path, codec: str, ending: str) -> None:
    texts = {"gb18030": CHINESE, "cp1252": LATIN}.get(codec, JAPANESE)
    rows = [{"text": text.replace("，", "").replace(",", "")} for text in texts]
    content = {
        ".csv": "text,label\n" + "".join(f"{row['text']},x\n" for row in rows),
        ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        ".json": json.dumps(rows, ensure_ascii=False, indent=1),
        ".txt": "\n".join(row["text"] for row in rows),
    }[ending]
    found = read(tmp_path / f"a{ending}", content.encode(codec))
    expected = [content] if ending == ".txt" else [row["text"] for row in rows]
    assert ([values["text"] for values in found.values], found.reasons) == (expected, [])
    (notice,) = found.notices
    assert NAMES[codec] in notice
    assert "converted" in notice


@pytest.mark.parametrize("content", ["本文,評価\n遅い,悪\n".encode(), "本文,評価\n遅い,悪\n".encode("utf-8-sig")])
def test_utf_8_needs_no_notice(tmp_path: Path, content: bytes) -> None:
    found = read(tmp_path / "a.csv", content)
    assert (found.values, found.notices) == ([{"本文": "遅い", "評価": "悪"}], [])


def test_a_guess_names_its_runner_up(tmp_path: Path) -> None:
    (notice,) = read(tmp_path / "a.csv", "本文,評価\n遅い,悪\n".encode("cp932")).notices
    assert "a guess; the next is " in notice


@pytest.mark.parametrize("codec", ["cp932", "euc_jp", "iso2022_jp_ext", "utf-8", "utf-16-le"])
def test_the_first_japanese_character_after_the_first_megabyte(tmp_path: Path, codec: str) -> None:
    lines = "text,label\n" + "plain ascii,x\n" * 80_000 + "配送が遅い,悪い\n"
    found = read(tmp_path / "a.csv", lines.encode(codec))
    assert len(found.values) == 80_001
    assert (found.values[-1], found.reasons) == ({"text": "配送が遅い", "label": "悪い"}, [])


@pytest.mark.parametrize("good", [1, 3, 200])
def test_one_broken_line_in_utf_8_is_unreadable_alone(tmp_path: Path, good: int) -> None:
    line = json.dumps({"text": "返品の期限はいつまでですか"}, ensure_ascii=False)
    content = f"{line}\n".encode() * good + line.encode("cp932") + b"\n"
    found = read(tmp_path / "a.jsonl", content)
    assert (len(found.values), found.notices) == (good, [])
    (reason,) = found.reasons
    assert reason.startswith(f"line {good + 1}: byte 0x95 at 11 is not UTF-8; the line seems Shift-JIS")


def test_one_broken_byte_in_a_long_line_of_utf_8(tmp_path: Path) -> None:
    rows = [{"text": f"返品の期限はいつまでですか{i}"} for i in range(100)]
    content = json.dumps(rows, ensure_ascii=False).encode()
    at = content.index("か50".encode())
    found = read(tmp_path / "a.json", content[:at] + b"\xff" + content[at + 1 :])
    assert len(found.values) == 99
    assert [reason.partition(":")[0] for reason in found.reasons] == ["record 51"]


def test_a_broken_line_in_another_encoding_is_unreadable_alone(tmp_path: Path) -> None:
    lines = "本文,評価\n" + "".join(f"配送が遅い{i},悪い\n" for i in range(20))
    found = read(tmp_path / "a.csv", lines.encode("cp932") + "とても良い,良い\n".encode() + b"\x81\n")
    assert len(found.values) >= 20
    assert all("not Shift-JIS" in reason or "fields" in reason for reason in found.reasons)
    assert any(reason.startswith("line 23: ") for reason in found.reasons)


def test_a_line_of_utf_8_longer_than_a_block(tmp_path: Path) -> None:
    rows = [{"text": "あ" * 300_000} for _ in range(5)]
    found = read(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False))
    assert (found.values, found.reasons, found.notices) == (rows, [], [])


def test_an_encoding_that_is_named_is_used(tmp_path: Path) -> None:
    content = "本文,評価\n宿甜,悪\n".encode("euc_jp")
    assert read(tmp_path / "a.csv", content, encoding="euc_jp").values[0]["本文"] == "宿甜"
    with pytest.raises(DataError, match="'shift-jiss' is no encoding of text"):
        read(tmp_path / "a.csv", content, encoding="shift-jiss")
    with pytest.raises(DataError, match="'base64' is no encoding of text"):
        read(tmp_path / "a.csv", content, encoding="base64")


def test_utf_16_that_is_cut_off(tmp_path: Path) -> None:
    content = "text,label\na,x\nあ,y\n".encode("utf-16")
    found = read(tmp_path / "a.csv", content[:-3])
    assert "the file may be cut off" in found.reasons[-1]


def test_nul_bytes_in_utf_8_are_no_utf_16(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", b'{"prompt": "\x00\x00 a", "completion": "bcd"}\n' * 3)
    assert [reason[:18] for reason in found.reasons] == [f"line {i}: a NUL byte"[:18] for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"PK\x03\x04abc", "ZIP"), (b"\x1f\x8babc", "gzip"), (b"%PDF-1.7", "PDF"), (b"PAR1", "Parquet")],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    assert name in read(tmp_path / "a.csv", content).reasons[0]


@given(
    st.lists(st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x30F6), max_size=20), min_size=1),
    st.sampled_from(["cp932", "euc_jp", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "iso2022_jp_ext"]),
)
@settings(max_examples=60)
def test_kana_in_any_encoding_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], codec: str) -> None:
    # With a few ordinary words: kana drawn at random alone look like no language.
    texts = ["これはとても良い品です。" + text.encode(codec, errors="ignore").decode(codec) for text in texts]
    path = tmp_path_factory.mktemp("kana") / "a.jsonl"
    found = read(path, "".join(json.dumps({"t": text}, ensure_ascii=False) + "\n" for text in texts).encode(codec))
    assert [values["t"] for values in found.values] == texts
