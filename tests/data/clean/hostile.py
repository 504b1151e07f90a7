"""Hostile texts: what makes a careless pattern try every start against every end. Prints what each of them takes.

.venv/bin/python -m tests.data.clean.hostile [characters, 1000000]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from ray_jobs.data.clean.personal_data import find

_PIECES = (
    "a", "0", "1", "-", "ー",
    "@", "a@", "@a.", "a.", ".",
    ":", "::", "a:", "1.", "1.1.1.1.",
    "0-", "0 ", "(0", "+1 ", "+8190",
    "090-1234-5678 ", "0312345678\n", "4111 1111 1111 1111 ", "123-4567 ", "123456789012 ",
    "1234567890123 ", "T1", "TK1234567 ", "sk-", "sk-a1",
    "eyJ", "eyJaaaaaaaaaaaa.", "AKIA", "://", "://a:",
    "://a:b@", "password", "password=", "password: a1b2c3d4 ", "api_key",
    "token:", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nQUJD\n", "-----BEGIN ", "東京都",
    "東京都港区", "東京都港区一", "市", "港区芝", "丁目",
    "一丁目", "港区一丁目", "〒", "口座", "口座1234567",
    "電話", "電話0", "番", "カード", "card ",
    "fe80::1 ", "10.20.30.40 ", "GB82 WEST ", "{", "[",
    "{\"a\":", "\\", "\"", "İ", "０３−",
)  # fmt: skip


def texts(length: int) -> Iterator[str]:
    """Each piece repeated up to the length, with an end that no repetition leads to; then all of them in one text."""
    for piece in _PIECES:
        yield piece * (length // len(piece)) + "!"
    yield "!".join(piece * (length // len(piece) // len(_PIECES)) for piece in _PIECES)


def main(length: int) -> None:
    for text in texts(length):
        start = time.process_time()
        found = len(find(text))
        print(f"{time.process_time() - start:7.2f} s  {found:8,} findings  {text[:40]!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
