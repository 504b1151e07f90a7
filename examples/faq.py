"""Question/answer rows from the FAQ pages of open-source projects' documentation (reStructuredText).

Owns the conversion of a page to plain text with Markdown code marks. Knows nothing of packages or the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FEWEST_CHARACTERS, MOST_CHARACTERS = 40, 1500
"""Range of an answer's length. Shorter answers only refer to other pages; longer ones are chapters."""

_ANSWER = re.compile(r"^\*\*Answer:?\*\*:?\s*")
_EXPLICIT_ROLE = re.compile(r":[\w:+-]+:`~?\.?([^`<]+?)\s*<[^`>]*>`")
_ROLE = re.compile(r":(?P<kind>[\w:+-]+):`(?P<mark>[~!.@]*)(?P<name>[^`]+)`")
_LINK = re.compile(r"(?<!`)`([^`<]+?)(?:\s*<[^`>]*>)?`__?")
_WORDS = {"doc", "ref", "term", "ticket", "label"}
"""Roles whose text is prose; the text of other roles is code."""
_KEPT_DIRECTIVES = {"note", "tip", "warning", "important", "admonition"}
_LANGUAGES = {"pycon": "python", "shell": "console", "bash": "console", "none": "", "text": ""}


@dataclass(frozen=True)
class Page:
    """One page of an FAQ. `underline` is the character that underlines its questions' titles."""

    text: str
    underline: str


def rows(pages: list[Page]) -> Iterator[dict[str, Any]]:
    """Chat rows in the order of the pages."""
    for page in pages:
        for question, body in questions(page):
            answer = as_text(body)
            if FEWEST_CHARACTERS <= len(answer) <= MOST_CHARACTERS:
                yield {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }


def questions(page: Page) -> Iterator[tuple[str, list[str]]]:
    """(title, lines below it) of every question section; a deeper section belongs to the answer."""
    lines = page.text.splitlines()
    title, body = "", list[str]()
    for i, line in enumerate(lines):
        below = lines[i + 1] if i + 1 < len(lines) else ""
        if _is_underline(below) and line.strip() and not line.startswith((" ", ".. ")) and not _is_underline(line):
            if below[0] == page.underline or below[0] in "=":
                if title:
                    yield title, body
                title, body = (_inline(line.strip()) if below[0] == page.underline else ""), []
            else:
                body.append(f"**{line.strip()}**")
        elif not _is_underline(line):
            body.append(line)
    if title:
        yield title, body


def as_text(lines: list[str]) -> str:
    """Convert reStructuredText to text: one line a paragraph, code in fences, no roles, no targets."""
    parts: list[str] = []
    language = ""
    for block in _blocks(lines):
        indented = block[0].startswith((" ", "\t"))
        if block[0].lstrip().startswith(".. "):  # also inside a list item
            block = _dedent(block).splitlines()
        if block[0].startswith(".. skip:"):  # a marker for Scrapy's tests, on the line above a directive
            block = block[1:] or [".. skip::"]
        if block[0].startswith(".. "):
            directive = re.match(r"\.\. ([\w-]+)::\s*(.*)", block[0])
            kind = directive[1] if directive else ""
            language, shown = "", [line.strip() for line in block[1:] if not re.match(r"\s+:\w+:", line)]
            if kind in ("code-block", "code"):
                language = directive[2].strip() if directive else ""
                language = f"```{_LANGUAGES.get(language, language)}"
            elif kind in _KEPT_DIRECTIVES:
                parts += [_inline(" ".join(shown))] if shown else []
                language = "words"
            else:
                language = "hidden"
        elif indented and language != "hidden":
            if language.startswith("```"):
                code = _dedent(block)
                if parts and parts[-1].endswith("\n```") and parts[-1].startswith(language):
                    parts[-1] = f"{parts[-1][:-4]}\n\n{code}\n```"
                else:
                    parts.append(f"{language}\n{code}\n```")
            else:
                parts.append(_paragraph([line.strip() for line in block]))
        elif not indented:
            text = _paragraph(block)
            language = "```" if text.endswith("::") else ""
            text = re.sub(r"\s*::$", ":", text) if text.rstrip(":") else ""
            if text:
                parts.append(text)
    return _ANSWER.sub("", "\n\n".join(parts)).strip()


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Groups of lines separated by blank lines."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def _paragraph(block: list[str]) -> str:
    """One line for running text and one for each list item."""
    lines: list[str] = []
    for line in block:
        item = re.match(r"\s*(?:[*-]|#\.|\d+\.)\s+(.*)", line)
        if item:
            lines.append(f"- {item[1]}")
        elif lines:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return _inline(re.sub(r"(?<=\S) {2,}", " ", "\n".join(lines)))


def _inline(text: str) -> str:
    text = _EXPLICIT_ROLE.sub(r"\1", text)
    text = _ROLE.sub(_role_text, text)
    text = _LINK.sub(r"\1", text)
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("\\ ", "").replace("\\", "")


def _role_text(role: re.Match[str]) -> str:
    name = role["name"].rpartition(".")[2] if "~" in role["mark"] else role["name"]
    return name if role["kind"].rpartition(":")[2] in _WORDS else f"``{name}``"


def _dedent(block: list[str]) -> str:
    indent = min(len(line) - len(line.lstrip()) for line in block)
    return "\n".join(line[indent:] for line in block)


def _is_underline(line: str) -> bool:
    return bool(re.fullmatch(r"([=~^#*\"-])\1{2,}", line.strip()))
