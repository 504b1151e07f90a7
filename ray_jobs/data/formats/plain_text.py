"""Texts: a file is one record with the column `text`; of HTML its visible text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.encodings import Encoding
from ray_jobs.data.formats.lines import SURROGATE
from ray_jobs.data.formats.records import LONGEST_LINE_BYTES, Items, Notice, Record, Unusable

_RAW = frozenset({"script", "style", "textarea", "title", "iframe", "noscript"})
_HIDDEN = _RAW | {"template", "head", "svg", "object", "select"}
_MOST_HIDDEN = 100
_NAME = re.compile("</?[A-Za-z]")
_TAG = re.compile("<(/?)([A-Za-z][^\\s/>]*+)(?:=\\s*+\"[^\"]*+\"|=\\s*+'[^']*+'|[^>=]|=(?!\\s*+[\"']))*+>")
_TAG_WITHOUT_QUOTES = re.compile("<(/?)([A-Za-z][^\\s/>]*+)[^>]*+>")
_BLOCK = re.compile(
    "address|article|aside|blockquote|br|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|li|main|nav|"
    "ol|p|pre|section|table|t[dhr]|ul"
)
"""Elements that begin a line."""


def read_text(source: ByteSource, encoding: Encoding, ending: str) -> Items:
    """The file's text as its only record."""
    text = _whole(source, encoding)
    if ending in (".html", ".htm"):
        yield Notice("its visible text is read; scripts and styles are left out")
        text = visible_text(text)
    if text.strip():
        yield Record(1, {"text": text}, unit="")


def _whole(source: ByteSource, encoding: Encoding) -> str:
    """Raises Unusable for a text that is too long or not in its encoding."""
    with source.open() as binary:
        try:
            text = io.TextIOWrapper(binary, encoding.codec, errors=encoding.errors).read(LONGEST_LINE_BYTES + 1)
        except UnicodeError as error:
            raise Unusable(f"it is not {encoding.name}; it may be cut off: {error}") from error
    if len(text) > LONGEST_LINE_BYTES:
        raise Unusable(f"longer than {LONGEST_LINE_BYTES // 1_000_000} MB, and it would be one row: split it")
    broken = re.search(f"{SURROGATE.pattern}|\x00", text)
    if broken is not None:
        line = text.count("\n", 0, broken.start()) + 1
        kind = "a NUL byte" if broken[0] == "\x00" else f"a byte that is not {encoding.name}"
        raise Unusable(f"{kind} in line {line}; remove it")
    return text.removeprefix("\ufeff")


def visible_text(page: str) -> str:
    """The text that a browser would show, a line for each block. Takes time linear in the page's length."""
    lines = (re.sub(r"[ \t\r\f\v\xa0]+", " ", line).strip() for line in "".join(_shown(page)).split("\n"))
    return "\n".join(line for line in lines if line)


def _shown(page: str) -> Iterator[str]:
    """The texts between the tags that are not hidden, and a line end for each tag of a block."""
    # The standard library's parser takes quadratic time for some broken pages before Python 3.11.14.
    hidden: list[str] = []  # open elements whose text is not shown, outermost first
    lower = page.lower() if len(page.lower()) == len(page) else page
    at, tag_form = 0, _TAG
    while at < len(page):
        begin = page.find("<", at)
        text = page[at : begin if begin >= 0 else len(page)]
        if text and not hidden:
            yield html.unescape(text).replace("\n", " ")
        if begin < 0:
            return
        found = tag_form.match(page, begin)
        if found is None and tag_form is _TAG and _NAME.match(page, begin):
            tag_form = _TAG_WITHOUT_QUOTES  # a quote is never closed; tried once, so that the time stays linear
            found = tag_form.match(page, begin)
        if found is None:
            comment = page.startswith("<!--", begin)
            if comment or page.startswith(("<!", "<?", "</"), begin):
                end = page.find("-->" if comment else ">", begin)
                at = end + (3 if comment else 1) if end >= 0 else len(page)
            elif _NAME.match(page, begin):  # a tag that never ends
                return
            else:
                at = begin + 1
                if not hidden:
                    yield "<"
            continue
        at, name = found.end(), found[2].lower()
        if found[1]:
            if name in hidden:
                del hidden[hidden.index(name) :]
        elif name == "body":  # a page may leave </head> out
            hidden.clear()
        elif name in _RAW:  # holds no tags
            end = lower.find(f"</{name}", at)
            at = end if end >= 0 else len(page)
            if len(hidden) < _MOST_HIDDEN:
                hidden.append(name)
        elif name in _HIDDEN and len(hidden) < _MOST_HIDDEN:
            hidden.append(name)
        if _BLOCK.fullmatch(name):
            yield "\n"
