"""Benchmarks on this machine: `make bench`, or

    python -m benchmarks [overhead] [trainer] [costs] [search] [lora_search] [sharing] [endpoint] [fairness]
                         [batches] [request_checks] [preparation] [cleaning]
                         [--quick]

Each benchmark is a module with `run`, which measures, and `describe`, which renders the results. The results go to
results/{name}.json, and the tables of all results to README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from benchmarks import (
    batches,
    cleaning,
    costs,
    endpoint,
    fairness,
    lora_search,
    overhead,
    preparation,
    report,
    request_checks,
    search,
    sharing,
    trainer,
)
from benchmarks.workbench import open_workbench
from examples.assets import DEFAULT_DIRECTORY
from ray_jobs.errors import KitaeError
from ray_jobs.jobs.progress import StageProgress

BENCHMARKS: dict[str, ModuleType] = {
    "overhead": overhead,
    "trainer": trainer,
    "costs": costs,
    "search": search,
    "lora_search": lora_search,
    "sharing": sharing,
    "endpoint": endpoint,
    "fairness": fairness,
    "batches": batches,
    "request_checks": request_checks,
    "preparation": preparation,
    "cleaning": cleaning,
}
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="Fewer and shorter measurements, as a check.")
@click.option("--measure/--report-only", default=True, help="Only write the tables of existing results.")
@click.option("--assets", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, help="The examples' assets.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Directory of the results.")
@click.option("--readme", type=click.Path(path_type=Path), default=README, help="File whose section is replaced.")
def main(names: tuple[str, ...], quick: bool, measure: bool, assets: Path, results: Path, readme: Path) -> None:
    if measure:
        try:
            _measure(names or tuple(BENCHMARKS), assets, results, quick=quick)
        except KitaeError as error:
            sys.exit(f"error: {error}")
    measured = {name: results / f"{name}.json" for name in BENCHMARKS}
    sections = {
        name: (BENCHMARKS[name].describe, json.loads(path.read_text()))
        for name, path in measured.items()
        if path.is_file()
    }
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    readme.write_text(report.with_tables(text, sections), encoding="utf-8")


def _measure(names: tuple[str, ...], assets: Path, results: Path, *, quick: bool) -> None:
    results.mkdir(parents=True, exist_ok=True)
    with open_workbench(assets) as bench:
        for name in names:
            with StageProgress(name) as progress:
                setting = report.setting(datetime.now(UTC), quick=quick)
                bench.keep = partial(_write, results / f"{name}.json", setting)
                figures = BENCHMARKS[name].run(bench, progress.update, quick=quick)
            bench.keep(figures)
            print(BENCHMARKS[name].describe(figures), end="\n\n")


def _write(path: Path, setting: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({"setting": setting, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
