"""Folding of texts: full-width forms and Japanese hyphens become ASCII, one character for one.

Offsets in the folded text are offsets in the original.
"""

from __future__ import annotations

import unicodedata

_HYPHENS = "ー－ｰ−–—―‐‑‒⁃﹣﹘➖"
"""Characters typed for a hyphen between digits. `ー` is also a long vowel: patterns of words are folded too."""
_SPACES = "\u00a0\u2002\u2003\u2009\u202f\u3000"
_COMPATIBLE = ((0xFF01, 0xFF5F), (0x1D7CE, 0x1D800))
"""Ranges whose NFKC form is one ASCII character each: full-width forms and mathematical digits."""

_TABLE = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for first, end in _COMPATIBLE for code in range(first, end)},
    **{ord(character): "-" for character in _HYPHENS},
    **{ord(character): " " for character in _SPACES},
}
_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def fold(text: str) -> str:
    """The text in ASCII forms where it has them; of the same length."""
    return text if text.isascii() else text.translate(_TABLE)


def lower(text: str) -> str:
    """The text in lower case; of the same length, which `str.lower` does not promise (`İ`)."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text.translate(_ASCII_LOWER)
