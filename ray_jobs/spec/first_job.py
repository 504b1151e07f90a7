"""A first job file for a file of rows: short, with comments, and valid as it is. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import yaml

from ray_jobs.spec.sections import TrainingSection, is_name

_SMALL = 1000
"""Fewer rows give a larger share to the evaluation."""


def name_for(stem: str) -> str:
    """A model's name from a file's name: `Reviews 2026` → `reviews-2026`."""
    plain = unicodedata.normalize("NFKC", stem).lower()
    name = re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:48].strip("-._")
    return name if is_name(name) else "my-model"


def first_job(
    *, name: str, task: str, base: str, train: str, columns: Mapping[str, str], rows: int | None, characters: int,
    truncates: bool, sheet: str | None = None, encoding: str | None = None,
) -> str:  # fmt: skip
    """The job file as text. `rows`: how many there are, None: many. `characters`: those of the longest row.

    `truncates`: a longer row is cut instead of refused.
    """
    few = rows is not None and rows < _SMALL
    max_tokens = _tokens_for(characters, truncates)
    pass_tokens = TrainingSection().micro_batch_tokens
    lines = [
        "# Written by `kitae init`. `kitae plan` shows what it will do; every field: `kitae schema`.",
        f"name: {_yaml(name)}",
        f"task: {task}",
        "# A hub id, a path or an s3:// address.",
        f"base_model: {_yaml(base)}",
        "",
        "data:",
        f"  train: {_yaml(train)}",
        *([f"  sheet: {_yaml(sheet)}"] if sheet is not None else []),
        *([f"  encoding: {_yaml(encoding)}"] if encoding is not None else []),
        *([f"  columns: {_yaml(dict(columns))}"] if columns else []),
        "  # Rows to train on, to steer the training, and to compare the trained model with its base at the end.",
        f"  split: '{'7:1:2' if few else '18:1:1'}'",
        "  # Repairs texts and leaves duplicates out; `kitae data report` lists both. `report` would only count.",
        "  clean: standard",
        f"  # Tokens of the longest row. The longest of the first rows has {characters:,} characters.",
        f"  max_tokens: {max_tokens}",
        *(["  too_long: truncate"] if truncates else []),
        "",
        "training:",
        "  method: lora",
        f"  epochs: {3 if few else 1}",
        *(
            ["  # Tokens of one forward pass: at least the longest row.", f"  micro_batch_tokens: {max_tokens}"]
            if max_tokens > pass_tokens
            else []
        ),
        "",
        "compute:",
        "  # With GPUs: gpus_per_worker: 1, and as many workers as GPUs.",
        "  workers: 1",
    ]
    return "\n".join(lines) + "\n"


def _tokens_for(characters: int, truncates: bool) -> int:
    """A power of two that holds the row: at worst about a token a character, as in Japanese, and what a chat template
    adds."""
    least, most = (128, 512) if truncates else (256, 4096)
    return min(most, max(least, 1 << (characters + 64).bit_length()))


def _yaml(value: object) -> str:
    """On one line of YAML."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()
