"""What the bytes of a text file are: UTF-8, or the name of what they seem to be instead.

Owns the guess that an error message gives. Decides nothing about rows.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

SAMPLE_BYTES = 1 << 20
"""How much of a file the guess looks at."""

_JAPANESE = {"cp932": "Shift-JIS (CP932)", "euc_jp": "EUC-JP"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: ("UTF-32", "UTF-32"),
    codecs.BOM_UTF32_BE: ("UTF-32", "UTF-32"),
    codecs.BOM_UTF16_LE: ("UTF-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("UTF-16", "UTF-16"),
}
"""The longer marks first: UTF-32's begins with UTF-16's."""

_JIS_ESCAPES = (b"\x1b$B", b"\x1b$@", b"\x1b(J")
_FEWEST_ZEROS, _ZERO_SHARE = 8, 0.05
"""UTF-16 is named where so many of every second byte are zero; fewer are NULs in UTF-8 text."""
_READABLE_SHARE = 0.5
"""At least so many of the non-ASCII characters must be ordinary Japanese ones for a Japanese encoding to be named."""


@dataclass(frozen=True)
class Guess:
    name: str
    """For people: `Shift-JIS (CP932)`."""
    iconv: str | None
    """For `iconv -f`. None: no conversion can be recommended."""

    @property
    def fix(self) -> str:
        if self.iconv is None:
            return "save the file as UTF-8"
        return f"convert it: iconv -f {self.iconv} -t UTF-8 IN > OUT"


def by_mark(head: bytes) -> Guess | None:
    """What a byte order mark or an escape sequence says the file is; None for UTF-8 and whatever cannot be told so."""
    for mark, (name, iconv) in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return Guess(name, iconv)
    if any(escape in head for escape in _JIS_ESCAPES):
        return Guess("ISO-2022-JP (JIS)", "ISO-2022-JP")
    # In UTF-16 one byte of every ASCII character is zero, always the same one of the two; UTF-8 text has no zeros.
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) >= max(_FEWEST_ZEROS, _ZERO_SHARE * len(head) / 2):
        return Guess("UTF-16 without a byte order mark", "UTF-16LE" if odd else "UTF-16BE")
    return None


def guess(sample: bytes) -> Guess:
    """What bytes that are not UTF-8 seem to be. A guess: it is only ever shown."""
    scored = {codec: _japanese_share(sample, codec) for codec in _JAPANESE}
    best = max(scored, key=scored.__getitem__)
    if scored[best] >= _READABLE_SHARE:
        return Guess(_JAPANESE[best], "CP932" if best == "cp932" else "EUC-JP")
    return Guess("of no encoding that can be told (perhaps Windows-1252)", None)


def _japanese_share(sample: bytes, codec: str) -> float:
    """Share of the non-ASCII characters that are kana, kanji or full-width punctuation, as this codec reads them."""
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
    # Kana are rare in what another codec makes of Japanese text, and common in what the right one does.
    kana = sum("\u3040" <= character <= "\u30ff" for character in foreign)
    return (ordinary + kana) / (2 * len(foreign)) + (0.25 if kana else 0.0) if foreign else 0.0
