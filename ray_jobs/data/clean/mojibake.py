"""Mojibake: UTF-8 text that was read in another encoding, and its repair. Pure.

ftfy undoes Western encodings, once or several times over; only its repairs of encodings are used. UTF-8 that was read
as CP932 (Shift-JIS), which ftfy does not know, is undone here, where no byte of it was lost.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder

_CP932_MARKS = "縺繧繝窶"
"""First characters of kana and of quotation marks in UTF-8 that was read as CP932. They are rare in correct texts
(縺れる, 繧繝, 窶れる), so they are a hint and no proof."""
_RUN = re.compile(r"[^\x00-\x7f]+")
_LATIN_IN_WORD = re.compile(
    r"(?<=[A-Za-z])(?:[ﾂ-ﾟ][｡-ｿ])+(?=[A-Za-z])"
    r"|(?<![｡-ﾟ])(?:(?<=[A-Za-z])(?:ﾃ[｡-ｿ])+|(?:ﾃ[｡-ｿ])+(?=[A-Za-z]))(?![｡-ﾟ])"
)
"""Two-byte letters, such as ü, read as two half-width characters inside a word; of À to ÿ also at its ends."""
_JAPANESE = re.compile("[ -~\u2010-\u203f\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]+")
_SECOND_CODES = {character: bytes((0x87, code)) for code, character in enumerate("≒≡∫∮∑√⊥∠∟⊿∵∩∪", 0x90)}
"""Mathematical signs that CP932 has twice, by the code that Python does not write."""
_EAST_ASIAN = re.compile(f"{_JAPANESE.pattern[:-1]}{{2,}}|[ -~\u2010-\u203f\u3000-\u303f\uac00-\ud7a3]{{2,}}")
"""Texts that a run of characters may become. Kana beside Hangul are none: 縺れた is valid UTF-8 too, of あ and 낽."""
_LOST = re.compile(rf"(?:[{_CP932_MARKS}][^\x00-\x7f]{{0,2}}){{3}}|[{_CP932_MARKS}]\ufffd|\ufffd[{_CP932_MARKS}]")
_LOST_WESTERN = re.compile("(?:[ÃÂâãäåæçèéð][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\ufffd]{1,3}){2}")
"""Leads and continuations of UTF-8 in a Western encoding that a repair has left, since bytes between them are lost."""


_REPLACED = "\ufffd"
"""Stands for bytes that a wrong encoding could not read."""
_UNREAD = re.compile("[\u0080-\u00ff€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]{6,}")
_LEAST_DISTINCT = 4
"""A stretch of `_UNREAD` with so many distinct characters is another encoding, such as Big5, read in a Western one."""


def repaired(text: str) -> str:
    """The text as it was before it was read in a wrong encoding; a text that is right is returned unchanged, and so is
    one whose repair would lack characters, since their bytes are lost."""
    if text.isascii():
        return text
    fixed = _decoded(text)
    return text if _is_unread(fixed) or _REPLACED in fixed else fixed


def is_damaged(text: str) -> bool:
    """Whether a text has mojibake that `repaired` cannot undo, since bytes of it are lost."""
    if text.isascii():
        return False
    if (_LOST.search(text) or _LOST_WESTERN.search(text)) is not None or _is_unread(text):
        return True
    return _REPLACED in text and _decoded(text) != text


def _decoded(text: str) -> str:
    """The text with its wrong encodings undone as far as they can be."""
    from ftfy import TextFixerConfig, fix_and_explain

    config = TextFixerConfig(
        unescape_html=False, remove_terminal_escapes=False, fix_latin_ligatures=False, fix_character_width=False,
        uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=False, remove_control_chars=False,
        normalization=None, fix_c1_controls=False, explain=False,
    )  # fmt: skip
    japanese = _LATIN_IN_WORD.sub(_from_cp932, _RUN.sub(_run_from_cp932, text))
    fixed: str = fix_and_explain(japanese, config).text if _is_western(japanese) else japanese
    return fixed


def _is_western(text: str) -> bool:
    """Whether there is anything that ftfy could repair: Japanese text passes quickly, and is never touched."""
    return any("\x80" <= character <= "\u02ff" or character in "√∂≈Ã" for character in text)


def _is_unread(text: str) -> bool:
    """Whether a part of the text is in an encoding that is not undone here."""
    return any(len(set(stretch[0])) >= _LEAST_DISTINCT for stretch in _UNREAD.finditer(text))


def _run_from_cp932(run: re.Match[str]) -> str:
    read = _from_cp932(run)
    is_hinted = any(mark in run[0] for mark in _CP932_MARKS)
    expected = _JAPANESE if is_hinted else _EAST_ASIAN
    return read if expected.fullmatch(read) else run[0]


def _from_cp932(run: re.Match[str]) -> str:
    """The text of the same bytes in UTF-8, or the text itself where they are none."""
    decoder = getincrementaldecoder("utf-8")()
    pieces = list[str]()
    try:
        for character in run[0]:
            state = decoder.getstate()
            try:
                pieces.append(decoder.decode(character.encode("cp932")))
            except UnicodeDecodeError:
                decoder.setstate(state)
                pieces.append(decoder.decode(_SECOND_CODES.get(character, b"\xff")))
        pieces.append(decoder.decode(b"", final=True))
    except UnicodeError:
        return run[0]
    return "".join(pieces)
