"""Invisible characters: which of them carry no meaning, and texts without them. Pure."""

from __future__ import annotations

import re
import unicodedata

_ALWAYS = (
    "\u00ad"  # soft hyphen
    "\u034f"  # combining grapheme joiner
    "\u180e"  # Mongolian vowel separator
    "\u200b"  # zero-width space
    "\u2028\u2029"  # line and paragraph separators: replaced by a line break, see `visible`
    "\u2060-\u2064\u206a-\u206f"  # word joiner, invisible operators, deprecated controls
    "\ufeff"  # byte order mark
    "\ufff9-\ufffb"  # interlinear annotation
    "\u0001-\u0008\u000e-\u001f\u007f"  # control characters but tab and line breaks
)
_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: part of the spelling in Arabic and Indic scripts, and of emoji."""
_TAGS = "\U000e0001\U000e0020-\U000e007f"
"""Tags: the flags of England, Scotland and Wales end in some."""
_BLACK_FLAG = "\U0001f3f4"
_CANDIDATE = re.compile(f"[{_ALWAYS}{_JOINERS}{_TAGS}]")
_REMOVED = re.compile(f"[{_ALWAYS}]")
_FLAG_TAGS = re.compile(f"(?<!{_BLACK_FLAG})(?<![{_TAGS}])[{_TAGS}]+")
_NEEDS_JOINER = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0e80-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefe\ufe0f\u2190-\u2bff\u00a9\u00ae\U0001f000-\U0001faff\U00011000-\U00011fff]"
)
"""A character of a script with joiners, of an emoji, or a variation selector."""


def visible(text: str) -> str:
    """The text without invisible characters. Line and paragraph separators become line breaks."""
    if (text.isascii() and text.isprintable()) or _CANDIDATE.search(text) is None:
        return text
    text = text.replace("\u2028", "\n").replace("\u2029", "\n")
    text = _FLAG_TAGS.sub("", _REMOVED.sub("", text))
    if "\u200c" not in text and "\u200d" not in text:
        return text
    return "".join(
        character
        for at, character in enumerate(text)
        if character not in _JOINERS or (at > 0 and _NEEDS_JOINER.match(text, at - 1) is not None)
    )


def nfkc(text: str) -> str:
    """The text in NFKC."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)
