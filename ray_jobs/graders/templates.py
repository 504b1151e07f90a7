"""Templates: texts with variables such as `{{ item.question }}` and `{{ sample.output_json.name }}`.

A variable is a path of keys and list positions in the namespaces `item` and `sample`, which are JSON. Nothing is
evaluated, and a value is inserted as it is: variables within a value stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ray_jobs.errors import GradingError, SampleNotJson, UnknownVariable, suggestion

NAMESPACES = ("item", "sample")
MAX_TEXT = 2**20
"""Characters of a filled template."""
_VARIABLE = re.compile(r"\{\{([^{}]*)\}\}")
_PATH = re.compile(r"(\w+)((?:\.[^\s.\[\]]+|\[[0-9]{1,6}\])*)")
_STEP = re.compile(r"\.([^\s.\[\]]+)|\[([0-9]+)\]")
_MAX_STEPS = 32
_MAX_QUOTE = 80

Path = tuple[str | int, ...]


def parse_path(text: str) -> Path:
    """Return the keys and positions of a variable's path. Raises UnknownVariable for anything else."""
    found = _PATH.fullmatch(text.strip())
    if found is None or found[1] not in NAMESPACES:
        message = (
            f"{text.strip()[:_MAX_QUOTE]!r} is not a variable: write item.NAME, sample.output_text or a part of it"
        )
        raise UnknownVariable(message)
    steps = tuple(key or int(position) for key, position in _STEP.findall(found[2]))
    if not steps or len(steps) > _MAX_STEPS:
        message = (
            f"{text.strip()[:_MAX_QUOTE]!r} has {len(steps)} parts below {found[1]}; it must have 1 to {_MAX_STEPS}"
        )
        raise UnknownVariable(message)
    return (found[1], *steps)


def variables(template: str) -> list[Path]:
    """Return the variables of a template, in order. Raises UnknownVariable for one that cannot exist."""
    return [parse_path(found) for found in _VARIABLE.findall(template)]


def lookup(path: Path, namespaces: Mapping[str, Any]) -> Any:
    """Return a variable's value. Raises UnknownVariable, naming it and what exists."""
    value: Any = namespaces
    for place, step in enumerate(path):
        is_key = isinstance(step, str) and isinstance(value, Mapping) and step in value
        is_position = isinstance(step, int) and isinstance(value, list) and step < len(value)
        if not is_key and not is_position:
            raise _unknown(path, place, value)
        value = value[step]
    return value


def fill(template: str, namespaces: Mapping[str, Any]) -> str:
    """Return the text with its variables' values; values other than texts are inserted as JSON.

    Raises UnknownVariable, or GradingError if the text becomes longer than `MAX_TEXT`.
    """
    parts, length, end = list[str](), 0, 0

    def add(text: str) -> None:
        nonlocal length
        length += len(text)
        if length > MAX_TEXT:
            raise GradingError(f"a template with its values is longer than {MAX_TEXT} characters: use shorter values")
        parts.append(text)

    for found in _VARIABLE.finditer(template):
        add(template[end : found.start()])
        add(text_of(lookup(parse_path(found[1]), namespaces)))
        end = found.end()
    add(template[end:])
    return "".join(parts)


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sample_of(text: str) -> dict[str, Any]:
    """Return the namespace `sample` of an answer: `output_text`, and `output_json` if it is JSON."""
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # not JSON, not finite, not Unicode, nested too deep
        return {"output_text": text}
    return {"output_text": text, "output_json": parsed}


def path_text(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _unknown(path: Path, place: int, value: Any) -> GradingError:
    name = path_text(path)[:_MAX_QUOTE]
    if path[:2] == ("sample", "output_json") and place == 1:
        return SampleNotJson(f"{name} does not exist: the model's answer is not JSON")
    known = [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else []
    hint = suggestion(str(path[place])[:_MAX_QUOTE], known[:100]) if known else "it has no such part"
    return UnknownVariable(f"{name} does not exist: {path_text(path[:place]) if place else 'the row'} lacks it; {hint}")
