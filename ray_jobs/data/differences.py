"""What a change of a text removed and added, with invisible characters written out. Pure.

Compares words, and single characters of scripts without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from ray_jobs.pages import CellPart, Mark

_MOST_CHARACTERS = 600
"""Characters of a text that are compared and shown."""
_MOST_PAIRS = 5000
"""Equal tokens of two texts, counted as pairs, up to which they are aligned: the time of `difflib` grows with the pairs
and with the differences, and texts that repeat a character have one for each two places."""
_TOKEN = re.compile(r"[A-Za-z0-9À-ɏ]+|.", re.DOTALL)
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of what follows them, also outside their cell."""


def difference(before: str, after: str) -> tuple[tuple[CellPart, ...], tuple[CellPart, ...]]:
    """Both texts in parts: `del` is only in the first, `ins` only in the second."""
    old, new = _TOKEN.findall(cut(before)), _TOKEN.findall(cut(after))
    removed: list[CellPart] = []
    added: list[CellPart] = []
    for kind, start, end, new_start, new_end in _changes(old, new):
        changed = kind != "equal"
        _add(removed, "".join(old[start:end]), "del" if changed else "")
        _add(added, "".join(new[new_start:new_end]), "ins" if changed else "")
    return tuple(removed), tuple(added)


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Operations as `SequenceMatcher.get_opcodes` returns them. Between the common beginning and the common end, texts
    with too many pairs count as replaced."""
    most = min(len(old), len(new))
    head = next((at for at in range(most) if old[at] != new[at]), most)
    tail = next((at for at in range(most - head) if old[-1 - at] != new[-1 - at]), most - head)
    old_end, new_end = len(old) - tail, len(new) - tail
    counts = Counter(new[head:new_end])
    inner = [("replace", 0, old_end - head, 0, new_end - head)]
    if sum(counts[token] for token in old[head:old_end]) <= _MOST_PAIRS:
        inner = list(SequenceMatcher(None, old[head:old_end], new[head:new_end], autojunk=False).get_opcodes())
    shifted = [(kind, a + head, b + head, c + head, d + head) for kind, a, b, c, d in inner]
    return [("equal", 0, head, 0, head), *shifted, ("equal", old_end, len(old), new_end, len(new))]


def cut(text: str) -> str:
    """The beginning of a long text, and an ellipsis."""
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"


def readable(text: str, *, in_full: bool = False) -> str:
    """The text with characters that change its direction as `⟨U+202E⟩`. `in_full`: every invisible character so."""
    return "".join(f"⟨U+{ord(each):04X}⟩" if _is_written_out(each, in_full) else each for each in text)


def _is_written_out(character: str, in_full: bool) -> bool:
    if character in _DIRECTIONS:
        return True
    kind = unicodedata.category(character)
    return in_full and character not in "\n\t " and (kind in {"Cc", "Cf"} or kind == "Zs")


def _add(parts: list[CellPart], text: str, mark: Mark) -> None:
    if text:
        parts.append(CellPart(readable(text, in_full=bool(mark)), mark))
