"""The table of values in each chart's README, generated from the comments in its values.yaml.

Owns the format of the comments: `# -- description` above a key documents the key and everything below it. A value
without a comment is an error.

    python charts/values_table.py          # writes the tables
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BEGIN, END = "<!-- values: written by charts/values_table.py -->", "<!-- end of values -->"
_LONGEST_DEFAULT = 60


def charts() -> list[Path]:
    """Directory of each chart."""
    return sorted(path.parent for path in HERE.glob("*/Chart.yaml"))


def table(values_yaml: str) -> str:
    """Render the table. Raises ValueError with every value that has no comment."""
    values = yaml.safe_load(values_yaml)
    documented = _comments(values_yaml)
    missing = [path for path in _leaves(values) if not any(_covers(name, path) for name in documented)]
    if missing:
        raise ValueError(f"no comment `# -- …` above {', '.join(missing)}, nor above a parent key")
    rows = ["| value | default | description |", "|---|---|---|"]
    rows += [f"| `{name}` | {_default(_at(values, name))} | {text} |" for name, text in documented.items()]
    return "\n".join(rows)


def readme(text: str, values_yaml: str) -> str:
    """Replace the table in a README. Raises ValueError if the README has no markers for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table(values_yaml)}\n\n{END}{after}"


def _comments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment: str | None = None
    for line in text.splitlines():
        if said := re.fullmatch(r" *# -- (.+)", line):
            comment = said[1]
        elif key := re.match(r"( *)([\w.-]+):", line):
            indent = len(key[1])
            path = [*(part for part in path if part[0] < indent), (indent, key[2])]
            if comment is not None:
                found[".".join(name for _, name in path)] = comment
            comment = None
    return found


def _leaves(values: Any, prefix: str = "") -> list[str]:
    if isinstance(values, dict) and values:
        return [leaf for key, value in values.items() for leaf in _leaves(value, f"{prefix}.{key}".lstrip("."))]
    return [prefix]


def _covers(name: str, path: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values


def _default(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see values.yaml"


def main() -> int:
    for chart in charts():
        path = chart / "README.md"
        path.write_text(readme(path.read_text(encoding="utf-8"), (chart / "values.yaml").read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
