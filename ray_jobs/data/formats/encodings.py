"""The encoding of a text file: by its mark, by the bytes that are not ASCII in the whole file, or by its name.

A file of which most such characters are UTF-8 is UTF-8 with broken lines, and has no other encoding. What is left is
decoded by each candidate; the one whose characters read best wins. Reads a file once, in bounded memory.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.frequent_characters import CHINESE, JAPANESE
from ray_jobs.data.formats.records import LONGEST_LINE_BYTES, Unusable
from ray_jobs.errors import DataError

_BLOCK_BYTES = 1 << 18
_SAMPLE_BYTES = 1 << 18
"""Bytes of lines that are not UTF-8 of which the characters are scored."""
_NOT_ASCII = bytes(range(0x80, 0x100))
_HOPELESS_LINES = 1000
"""A codec with more lines that it cannot decode is taken to decode no further line."""
_FIX = "save the file as UTF-8, or name its encoding"


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a file become text."""

    codec: str
    name: str
    """Shown in messages: `Shift-JIS (CP932)`."""
    errors: str = "surrogateescape"
    """Python's error handler by which bytes that cannot be decoded stay recognisable."""
    notice: str = ""
    """What to say about it; empty for UTF-8."""

    def encode(self, text: str) -> bytes:
        """The bytes of a decoded text, without a mark."""
        return text.encode(self.codec.removesuffix("-sig"), errors=self.errors)


@dataclass(frozen=True)
class _Candidate:
    name: str
    codecs: tuple[str, ...]
    """The usual one, then a superset for characters that the usual one lacks."""
    weigh: Callable[[str], float]
    """Mean weight of the text's characters that are not ASCII, between -1 and about 1."""


@dataclass(frozen=True)
class Ranked:
    """A candidate for lines that are not UTF-8."""

    candidate: _Candidate
    codec: str
    score: float


UTF_8 = Encoding("utf-8-sig", "UTF-8")
_MARKS = (  # UTF-32 first: its marks begin with those of UTF-16
    ("UTF-32", "utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", "utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_NO_TEXT = {
    b"\x1f\x8b": "packed by gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "packed by Zstandard (.zst)",
    b"PK\x03\x04": "a ZIP archive (also .xlsx is one)",
    b"PAR1": "Parquet",
    b"%PDF-": "PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office file (.xls)",
}
_ESCAPES = (b"\x1b$B", b"\x1b$@", b"\x1b(J", b"\x1b(I", b"\x1b$(D")
_BOUNDARY = re.compile(rb"[\x00-\x2f](?=[^\x00-\x2f]*\Z)")
"""The last byte that ends a character in every encoding."""


def detect(source: ByteSource) -> Encoding:
    """The encoding of a file's text. Raises Unusable where none fits."""
    with source.open() as file:
        head = file.read(_BLOCK_BYTES)
        for mark, name in _NO_TEXT.items():
            if head.startswith(mark):
                raise Unusable(f"it is no text but {name}; name it after what it holds, or export it as text")
        for name, codec, marks in _MARKS:
            if head.startswith(marks):
                return Encoding(codec, name, "surrogatepass", f"it is {name}, by its mark, and is converted")
        without_mark = _utf_16_without_mark(head)
        if without_mark is not None:
            return without_mark
        survey = _Survey()
        for block in _blocks(file, head):
            survey.add(block)
    if survey.is_utf_8:
        if survey.escapes and not survey.valid_lines:
            name = "ISO-2022-JP (JIS)"
            return Encoding("iso2022_jp_ext", name, notice=f"it is {name}, by its escape sequences, and is converted")
        return UTF_8
    return _guess(survey)


def named(name: str) -> Encoding:
    """The encoding that a caller names. Raises DataError for a name that is none."""
    try:
        codec = codecs.lookup(name)
        "a".encode(codec.name)
        codecs.getincrementaldecoder(codec.name)("surrogateescape").decode(b"a", final=False)
    except (LookupError, TypeError, UnicodeError, ValueError) as error:
        raise DataError(
            f"encoding: {name!r} is no encoding of text; known are utf-8, utf-16, cp932, euc_jp, iso2022_jp, gb18030, "
            "cp1252 and Python's other codecs"
        ) from error
    if codec.name in ("utf-8", "utf-8-sig"):
        return UTF_8
    errors = "surrogatepass" if codec.name.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return Encoding(codec.name, name, errors, f"it is read as {name}, as requested, and is converted")


def rank(lines: list[bytes]) -> list[Ranked]:
    """The candidates for lines that are not UTF-8, the likeliest first."""
    survey = _Survey()
    survey.add_broken(lines)
    return survey.ranked()


def guess_name(line: bytes) -> str:
    """Name of the likely encoding of a line that is not UTF-8; empty where none is likely."""
    best = rank([line])[0]
    return best.candidate.name if best.score > 0 else ""


def _guess(survey: _Survey) -> Encoding:
    best, *others = survey.ranked()
    if best.score <= 0:
        raise Unusable(f"its encoding is not recognised (closest is {best.candidate.name}): {_FIX}")
    name = best.candidate.name
    notice = f"it is not UTF-8 and seems {name} (a guess; the next is {others[0].candidate.name}), and is converted"
    return Encoding(best.codec, name, notice=notice)


@dataclass
class _Survey:
    """Counts over the lines of a file that are not ASCII."""

    valid_lines: int = 0
    broken_lines: int = 0
    valid_characters: int = 0
    """Characters that are UTF-8, and bytes that are not, in broken lines."""
    broken_bytes: int = 0
    escapes: bool = False
    sample: bytearray = field(default_factory=bytearray)
    failing: Counter[str] = field(default_factory=Counter)
    """Broken lines that a codec cannot decode."""

    def add(self, block: bytes) -> None:
        self.escapes = self.escapes or (b"\x1b" in block and any(escape in block for escape in _ESCAPES))
        if block.isascii():
            return
        lines = [line for line in block.splitlines(keepends=True) if not line.isascii()]
        try:
            block.decode()
        except UnicodeDecodeError:
            broken = [line for line in lines if not _decodes(line, "utf-8")]
            self.valid_lines += len(lines) - len(broken)
            self.add_broken(broken)
        else:
            self.valid_lines += len(lines)

    def add_broken(self, lines: list[bytes]) -> None:
        self.broken_lines += len(lines)
        joined = b"".join(lines)
        valid = joined.decode("utf-8", errors="ignore")
        self.broken_bytes += len(joined) - len(valid.encode())
        self.valid_characters += len(valid) - len(joined.translate(None, delete=_NOT_ASCII))
        for candidate in _CANDIDATES:
            for codec in candidate.codecs:
                if self.failing[codec] > _HOPELESS_LINES:  # the others are not counted one by one
                    self.failing[codec] += len(lines)
                elif not _decodes(joined, codec):
                    self.failing[codec] += sum(not _decodes(line, codec) for line in lines)
                else:  # and so does its superset
                    break
        for line in lines:
            if len(self.sample) >= _SAMPLE_BYTES:
                break
            self.sample += line[: _SAMPLE_BYTES - len(self.sample)]

    @property
    def is_utf_8(self) -> bool:
        if not self.broken_lines:
            return True
        return 0 < self.valid_lines >= self.broken_lines or self.valid_characters > 2 * self.broken_bytes

    def ranked(self) -> list[Ranked]:
        found = []
        for candidate in _CANDIDATES:
            codec = min(candidate.codecs, key=lambda codec: self.failing[codec])
            text = bytes(self.sample).decode(codec, errors="replace").replace("\ufffd", "")
            share = self.failing[codec] / max(self.broken_lines, 1)
            found.append(Ranked(candidate, codec, candidate.weigh(text) - 2 * share))
        return sorted(found, key=lambda each: -each.score)


def _blocks(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    """Blocks of whole lines; of a longer line, blocks of whole characters."""
    rest, block = b"", head
    while block:
        block = rest + block + file.readline(LONGEST_LINE_BYTES)
        cut = None if block.endswith((b"\n", b"\r")) else _BOUNDARY.search(block, max(0, len(block) - 4096))
        rest = block[cut.end() :] if cut else b""
        yield block[: cut.end()] if cut else block
        block = file.read(_BLOCK_BYTES)
    if rest:
        yield rest


def _decodes(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


_FEWEST_ZEROS, _ZERO_SHARE, _PLAIN_SHARE = 8, 0.05, 0.3


def _utf_16_without_mark(head: bytes) -> Encoding | None:
    """UTF-16 by its zeros: one byte of every ASCII character is zero, always the same one of the two."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if min(even, odd) or max(even, odd) < 2:
        return None
    codec, name = ("utf-16-le", "UTF-16LE") if odd else ("utf-16-be", "UTF-16BE")
    text = head[: len(head) // 2 * 2].decode(codec, errors="replace")
    # UTF-8 with NULs, read as UTF-16, is ideographs without kana and without ASCII.
    plain = sum(" " <= char <= "~" or char in "\r\n\t" or "\u3000" <= char <= "\u30ff" for char in text)
    many = max(even, odd) >= max(_FEWEST_ZEROS, _ZERO_SHARE * len(head) / 2)
    if "\ufffd" in text or not (many or plain >= _PLAIN_SHARE * len(text)):
        return None
    return Encoding(codec, name, "surrogatepass", f"it is {name} without a mark, and is converted")


def _mean(text: str, weight: Callable[[str], float]) -> float:
    counted = Counter(re.findall("[^\x00-\x7f]", text))
    total = sum(counted.values())
    return sum(weight(char) * count for char, count in counted.items()) / total if total else 0.0


_HALF_KANA_IN_WORD = re.compile("(?<=[A-Za-z])[\uff61-\uff9f]|[\uff61-\uff9f](?=[A-Za-z])")


def _weigh_japanese(text: str) -> float:
    # Latin text read as CP932 has half-width kana inside words; real ones stand apart from ASCII letters.
    return _mean(_HALF_KANA_IN_WORD.sub("\ue000", text), _japanese_weight)


@cache
def _japanese_weight(char: str) -> float:
    if "\u3041" <= char <= "\u3096" or "\u30a1" <= char <= "\u30fc":
        return 1.2
    if "\u3000" <= char <= "\u301f" or "\uff01" <= char <= "\uff5e" or char in "‘’“”…―—×→○●◎△■□※★☆・":
        return 0.8
    if "\uff66" <= char <= "\uff9f":
        return 0.75
    if "\uff61" <= char <= "\uff65":  # every second byte of EUC-JP kana, read as CP932
        return 0.0
    if char in JAPANESE:
        return 1.0
    return _by_level(char, "euc_jp", 0xD0, level_2=-0.5)


def _weigh_chinese(text: str) -> float:
    return _mean(text, _chinese_weight)


@cache
def _chinese_weight(char: str) -> float:
    if char in CHINESE:
        return 1.0
    if "\u3000" <= char <= "\u301f" or "\uff01" <= char <= "\uff5e" or char in "‘’“”…—·":
        return 0.8
    if "\u3041" <= char <= "\u30fc":  # at the same places as in EUC-JP
        return -0.3
    return _by_level(char, "gb2312", 0xD8, level_2=-0.3)


def _by_level(char: str, codec: str, level_2_from: int, *, level_2: float) -> float:
    """Weight of an ideograph: level 1 of its standard has the frequent ones."""
    try:
        row = char.encode(codec)[0]
    except UnicodeEncodeError:
        return -0.6 if "\u3220" <= char <= "\ufaff" and not "\ue000" <= char <= "\uf8ff" else -1.0
    if row < 0xB0:
        return 0.0
    return 0.5 if row < level_2_from else level_2


_LETTER = "[A-Za-z]"
_ACCENTED = re.compile(f"(?<={_LETTER})[À-ÖØ-öø-ÿŒœŠšŽžŸ]{{1,2}}|[À-ÖØ-öø-ÿŒœŠšŽžŸ](?={_LETTER})")
_SIGN = re.compile("(?<![^\x00-\x7f])[“”‘’–—…€£©®°§«»¿¡·½²³\xa0àôÀÉ](?![^\x00-\x7f])")


def _weigh_latin(text: str) -> float:
    total = len(re.findall("[^\x00-\x7f]", text))
    letters = sum(map(len, _ACCENTED.findall(text)))
    signs = len(_SIGN.findall(_ACCENTED.sub("a", text)))
    return (0.9 * letters + 0.7 * signs - (total - letters - signs)) / total if total else 0.0


_CANDIDATES = (
    _Candidate("Shift-JIS (CP932)", ("cp932", "shift_jis_2004"), _weigh_japanese),
    _Candidate("EUC-JP", ("euc_jp", "euc_jis_2004"), _weigh_japanese),
    _Candidate("GB18030", ("gb18030",), _weigh_chinese),
    _Candidate("Windows-1252", ("cp1252",), _weigh_latin),
)
