"""Text lines of a file in a known encoding, each with its number; a line that is not in this encoding is refused
alone. Streams."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.encodings import Encoding, guess_name
from ray_jobs.data.formats.records import LONGEST_LINE_BYTES, Unreadable

Line = tuple[int, str]
"""(number, text without a byte order mark, with its line end)."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Not in a text: what stands for bytes that cannot be decoded."""
_ESCAPED = range(0xDC80, 0xDD00)
"""Code points by which `surrogateescape` stands for a byte that cannot be decoded."""


def read_lines(source: ByteSource, encoding: Encoding) -> Iterator[Line | Unreadable]:
    """Lines ended by `\\n`, `\\r\\n` or `\\r`, also mixed."""
    number, after_cr = 0, False
    with source.open() as binary:
        lines = io.TextIOWrapper(binary, encoding.codec, errors=encoding.errors, newline="")
        while True:
            try:
                text = lines.readline(LONGEST_LINE_BYTES + 1)
            except UnicodeError:  # UTF-16 with half a character at its end, or half a surrogate pair
                yield Unreadable(number + 1, f"from here on it is not {encoding.name}; the file may be cut off")
                return
            if not text:
                return
            if not number:
                text = text.removeprefix("\ufeff")
            if after_cr and text == "\n":  # the second half of a long line's \r\n
                after_cr = False
                continue
            number += 1
            after_cr = False
            if _bytes_of(text) > LONGEST_LINE_BYTES:
                while text and not text.endswith(("\r", "\n")):
                    text = lines.readline(LONGEST_LINE_BYTES)
                after_cr = text.endswith("\r")
                megabytes = LONGEST_LINE_BYTES // 1_000_000
                yield Unreadable(number, f"longer than {megabytes} MB; is a line end missing?")
                continue
            reason = _fault(text, encoding)
            if reason:
                yield Unreadable(number, reason)
            else:
                yield number, text


def _bytes_of(text: str) -> int:
    """Bytes in UTF-8; not computed where the line cannot be too long."""
    most = 4 * len(text)
    return most if most <= LONGEST_LINE_BYTES else len(text.encode(errors="replace"))


def _fault(text: str, encoding: Encoding) -> str:
    """Why the line cannot be used, or an empty text."""
    if not text.isascii() and (found := SURROGATE.search(text)) is not None:
        code = ord(found[0])
        if encoding.errors == "surrogatepass" or code not in _ESCAPED:
            return f"half a surrogate pair at character {found.start() + 1}, which is no {encoding.name}"
        at = len(encoding.encode(text[: found.start()])) + 1
        seems = guess_name(encoding.encode(text))
        reason = f"byte 0x{code - 0xDC00:02x} at {at} is not {encoding.name}"
        return f"{reason}; the line seems {seems}" if seems else reason
    if "\x00" in text:
        return f"a NUL byte at character {text.index(chr(0)) + 1}; remove it"
    return ""
