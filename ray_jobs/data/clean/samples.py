"""Rows as a report shows them: their ids, and texts without personal data. Pure."""

from __future__ import annotations

from ray_jobs.data.clean.personal_data import find
from ray_jobs.data.clean.walker import Row, walk
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.split import row_digest

MOST_SAMPLES = 10
MOST_LISTED = 1000
SHOWN_CHARACTERS = 300
_SEARCHED_CHARACTERS = 4000


def row_id(row: Row) -> str:
    """16 hex digits of the SHA-256 of the canonical line of a row as it was read."""
    return row_digest(canonical_line(row)).hex()[:16]


def masked(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The text with the kind in brackets for each value of personal data, such as `[EMAIL]`, cut to `most`."""
    head = text[:_SEARCHED_CHARACTERS]
    pieces, done = list[str](), 0
    for kind, start, end in find(head):
        pieces += [head[done:start], f"[{kind.upper()}]"]
        done = end
    shown = "".join([*pieces, head[done:]])
    return shown if len(shown) <= most and len(head) == len(text) else f"{shown[: most - 1]}…"


def text_of(row: Row, label_column: str | None = "label") -> str:
    """The texts that a person or a model wrote in a row, a line each: without roles, labels, names and tools."""
    texts = list[str]()

    def visit(text: str, path: str, label: str) -> tuple[str, bool]:
        if is_written(path, label_column):
            texts.append(text)
        return text, True

    walk(row, visit, names_and_numbers=False)
    return "\n".join(texts)


def is_written(path: str, label_column: str | None = "label") -> bool:
    """Whether the text at this path of a row was written by a person or a model, rather than naming something."""
    if path == label_column or path == "tools" or path.startswith("tools["):
        return False
    head, _, field = path.partition("].")
    if not head.startswith("messages["):
        return True
    if field.startswith("content["):
        return not field.endswith("].type")
    return field not in _NAMES and not (field.startswith("tool_calls[") and field.partition("].")[2] in _NAMES_OF_CALLS)


_NAMES = frozenset({"role", "name", "tool_call_id"})
_NAMES_OF_CALLS = frozenset({"id", "type", "function.name"})
