"""The report: tables with date and machine, between two markers of a Markdown file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: written by `python -m benchmarks` -->", "<!-- end of figures -->"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "optuna")

Section = tuple[Callable[[dict[str, Any]], str], dict[str, Any]]
"""The function that renders a benchmark's results, and the content of its result file."""


def setting(now: datetime, *, quick: bool) -> dict[str, Any]:
    """Date, machine and versions of a measurement."""
    return {
        "date": now.strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "instructions": _instructions(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
        "quick": quick,
    }


def with_tables(text: str, sections: Mapping[str, Section]) -> str:
    """Replace everything between the markers of the Markdown text; append the markers if there are none."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [
        f"### {name}\n\n{describe(doc['figures'])}\n\n{_where(doc['setting'])}"
        for name, (describe, doc) in sections.items()
    ]
    return before.rstrip() + "\n\n" * bool(before.strip()) + "\n\n".join([BEGIN, *parts, END]) + (after or "\n")


def _where(setting: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    quick = " A quick run: fewer and shorter measurements." if setting["quick"] else ""
    return (
        f"_{setting['date']}, {setting['cpu']} ({setting['cores']} cores, {setting['instructions']}), fp32, Python "
        f"{setting['python']}, {versions}. Load average before: {setting['load_before']}.{quick}_"
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _instructions() -> str:
    """The widest instruction set that PyTorch uses here."""
    import torch

    return torch.backends.cpu.get_cpu_capability()
