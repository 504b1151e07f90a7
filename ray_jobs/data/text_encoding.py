"""The encoding of a text file: UTF-8, or a guess at another.

Owns the guess that an error message shows. Decides nothing about rows.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

SAMPLE_BYTES = 1 << 20
"""Bytes of a file that the guess reads."""


@dataclass(frozen=True)
class Guess:
    name: str
    """Shown in messages: `Shift-JIS (CP932)`."""
    iconv: str | None
    """Name for `iconv -f`. None: no conversion can be recommended."""

    @property
    def fix(self) -> str:
        if self.iconv is None:
            return "save the file as UTF-8"
        return f"convert it: iconv -f {self.iconv} -t UTF-8 IN > OUT"


_JAPANESE = {"cp932": Guess("Shift-JIS (CP932)", "CP932"), "euc_jp": Guess("EUC-JP", "EUC-JP")}
_BYTE_ORDER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: they begin with UTF-16's
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_FEWEST_ZEROS, _ZERO_SHARE = 8, 0.05
"""Least number and share of zeros in every second byte for UTF-16; fewer are NULs in UTF-8 text."""
_READABLE_SHARE = 0.5
"""Least share of ordinary Japanese characters among the non-ASCII ones for a Japanese encoding."""


def by_mark(head: bytes) -> Guess | None:
    """Encoding by its byte order mark or escape sequence. None: UTF-8, or no such mark."""
    for name, marks in _BYTE_ORDER_MARKS.items():
        if head.startswith(marks):
            return Guess(name, name)
    if any(escape in head for escape in (b"\x1b$B", b"\x1b$@", b"\x1b(J")):
        return Guess("ISO-2022-JP (JIS)", "ISO-2022-JP")
    # In UTF-16 one byte of every ASCII character is zero, always the same one of the two; UTF-8 text has no zeros.
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) >= max(_FEWEST_ZEROS, _ZERO_SHARE * len(head) / 2):
        return Guess("UTF-16 without a byte order mark", "UTF-16LE" if odd else "UTF-16BE")
    return None


def guess(sample: bytes) -> Guess:
    """Likely encoding of bytes that are not UTF-8. Only shown, never used to decode."""
    scored = {codec: _japanese_share(sample, codec) for codec in _JAPANESE}
    best = max(scored, key=scored.__getitem__)
    if scored[best] >= _READABLE_SHARE:
        return _JAPANESE[best]
    return Guess("of an unknown encoding (perhaps Windows-1252)", None)


def _japanese_share(sample: bytes, codec: str) -> float:
    """Share of kana, kanji and full-width punctuation among the non-ASCII characters, as this codec decodes them."""
    decoder = codecs.getincrementaldecoder(codec)("strict")  # incremental: the sample may end inside a character
    try:
        text = decoder.decode(sample)
    except UnicodeDecodeError:
        return 0.0
    foreign = [character for character in text if ord(character) > 0x7F]
    # Half-width katakana do not count: EUC-JP read as Shift-JIS is full of them.
    ordinary = sum(
        "\u3000" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff" or "\uff01" <= character <= "\uff60"
        for character in foreign
    )
    # Kana are rare where the wrong codec decodes Japanese text, and common where the right one does.
    kana = sum("\u3040" <= character <= "\u30ff" for character in foreign)
    return (ordinary + kana) / (2 * len(foreign)) + (0.25 if kana else 0.0) if foreign else 0.0
