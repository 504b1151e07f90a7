"""How many rows a second are prepared, in how much memory, and how does the time grow with the rows?

Rows are made from real ones: two to four sentences of reviews and e-mails each, a tenth of them copies of an earlier
row and a tenth with one edit. Both sides read them from one file and write three files: `clean: standard`, a report of
personal data, a stratified split. A pair is one preparation of each, in alternating order, each in processes of its
own, which are counted from their start.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil

from benchmarks.figures import Pairs, gibibytes, number, table, verdict
from benchmarks.workbench import Show, Workbench
from ray_jobs.errors import MachineError
from tests.repository import ROOT
from tests.serving.clients import environment

PEER = ("datasets==5.0.0", "datasketch==1.6.5")
PAIRS, QUICK_PAIRS = 5, 1
PAIR_ROWS, QUICK_ROWS = 100_000, 20_000
GROWTH, QUICK_GROWTH = (100_000, 300_000, 1_000_000, 2_000_000), (20_000, 40_000)
GOAL, MEMORY_GOAL = 2.0, 4 * 2**30
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    python = environment("datasets-recipe", PEER)
    pairs, growth = (QUICK_PAIRS, QUICK_GROWTH) if quick else (PAIRS, GROWTH)
    found: dict[str, Any] = {"peer": list(PEER), "rows": QUICK_ROWS if quick else PAIR_ROWS, "pairs": [], "growth": []}
    rows = _write(bench, found["rows"])
    with bench.without_ray():
        for pair in range(pairs):
            show(pair, pairs + len(growth), "runs", doing="both sides")
            sides = {"ours": _ours(rows), "peer": _peer(python, rows, bench.directory / f"peer-{pair}")}
            order = list(sides)[:: 1 if pair % 2 == 0 else -1]
            found["pairs"].append({side: _measured(sides[side], bench) for side in order})
            bench.keep(found)
        rows.unlink()
        for at, count in enumerate(growth):
            show(pairs + at, pairs + len(growth), "runs", doing=f"{count:,} rows")
            rows = _write(bench, count)
            found["growth"].append({"rows": count, "bytes": rows.stat().st_size, **_measured(_ours(rows), bench)})
            rows.unlink()
            bench.keep(found)
    return found


def describe(figures: dict[str, Any]) -> str:
    """Render the section of the report. Pure."""
    ours, peer = ([each[side] for each in figures["pairs"]] for side in ("ours", "peer"))
    rows, pairs = figures["rows"], figures["pairs"]
    speeds = Pairs(tuple(rows / each["wall_s"] for each in ours), tuple(rows / each["wall_s"] for each in peer))
    low, high = speeds.middle_half
    side_rows = [
        [name, f"{number(median(rates))}", gibibytes(max(each["peak_bytes"] for each in runs))]
        for name, rates, runs in (("Kitae on Ray Data", speeds.ours, ours), (_peer_name(figures), speeds.theirs, peer))
    ]
    grown = [
        [f"{each['rows']:,}", f"{each['bytes'] / 2**20:.0f} MiB", f"{each['wall_s']:.0f} s",
         number(each["rows"] / each["wall_s"]), gibibytes(each["peak_bytes"])]
        for each in figures["growth"]
    ]  # fmt: skip
    growth = figures["growth"]
    powers = [_exponent(growth[at], growth[-1]) for at in range(len(growth) - 1)][:2]
    most = max(each["peak_bytes"] for each in figures["growth"])
    return (
        f"{table(['side', 'rows a second', 'peak memory'], side_rows)}\n\n"
        f"{len(pairs)} pair(s) of {rows:,} rows. Ratio: **{speeds.ratio:.2f}** (half of the pairs from {low:.2f} to "
        f"{high:.2f}; {verdict(speeds.ratio, GOAL)}).\n\n"
        f"{table(['rows', 'file', 'time', 'rows a second', 'peak memory'], grown)}\n\n"
        f"From {growth[0]['rows']:,} rows on, the time grows with the power {powers[0]:.2f} of the rows; from "
        f"{growth[min(1, len(powers) - 1)]['rows']:,} on, where the start counts for little, {powers[-1]:.2f}. "
        f"Most memory: **{gibibytes(most)}** (goal ≤ "
        f"{gibibytes(MEMORY_GOAL)}: {'reached' if most <= MEMORY_GOAL else 'not reached'}), the sum of the "
        "proportional set sizes of all processes, Ray's included, each second.\n\n"
        f"{_plot(figures['growth'])}"
    )


def _peer_name(figures: dict[str, Any]) -> str:
    return ", ".join(each.replace("==", " ") for each in figures["peer"])


def _exponent(first: dict[str, Any], last: dict[str, Any]) -> float:
    """Slope between two measurements, both on logarithmic scales."""
    from math import log

    return log(last["wall_s"] / first["wall_s"]) / log(last["rows"] / first["rows"])


def _plot(growth: Sequence[dict[str, Any]]) -> str:
    """The time by the rows, in Mermaid."""
    rows = ", ".join(f'"{each["rows"] / 1e6:g}M"' for each in growth)
    seconds = ", ".join(f"{each['wall_s']:.0f}" for each in growth)
    most = max(each["wall_s"] for each in growth)
    return (
        '```mermaid\nxychart-beta\n    title "Seconds by rows"\n'
        f'    x-axis [{rows}]\n    y-axis "s" 0 --> {most * 1.1:.0f}\n    bar [{seconds}]\n```'
    )


def _ours(rows: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.prepare_rows", str(rows)]


def _peer(python: Path, rows: Path, directory: Path) -> list[str]:
    directory.mkdir()
    return [str(python), "-m", "benchmarks.datasets_recipe", str(rows), str(directory)]


def _measured(command: list[str], bench: Workbench) -> dict[str, Any]:
    """Wall-clock seconds, and the largest sum of the proportional set sizes of all processes."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1"}
    log, peak = bench.directory / "preparation.log", 0
    started = time.perf_counter()
    with log.open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables, cwd=ROOT)
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(1.0)
        wall_s = time.perf_counter() - started
        output.seek(0)
        lines = output.read().splitlines() or [""]
    if process.returncode:
        raise MachineError(f"{' '.join(command)} failed: {' | '.join(lines[-5:])}")
    return {"wall_s": wall_s, "peak_bytes": peak, "said": lines[-1][:300]}


def _memory(pid: int) -> int:
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total


def _write(bench: Workbench, count: int) -> Path:
    """Rows from the sentences of the examples' reviews and e-mails."""
    sentences: list[tuple[str, str]] = []
    for name in ("reviews_train.jsonl", "spam.jsonl"):
        for line in (bench.assets / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            parts = [part.strip() for part in _SENTENCE.split(row["text"])]
            sentences += [(part, row["label"]) for part in parts if 20 <= len(part) <= 300]
    random, path, made = Random(0), bench.directory / f"rows-{count}.jsonl", list[tuple[str, str]]()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            chance = random.random()
            text, label = random.choice(made) if made and chance < 0.2 else ("", "")
            if text and chance >= 0.1:
                at = random.randrange(len(text))
                text = f"{text[:at]}{random.choice('aeiou')}{text[at + 1 :]}"
            if not text:
                chosen = random.sample(sentences, random.randint(2, 4))
                text, label = " ".join(part for part, _ in chosen), chosen[0][1]
            if len(made) < 100_000:
                made.append((text, label))
            file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    return path
