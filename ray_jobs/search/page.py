"""A search as a table for the terminal and as one self-contained HTML page. Pure.

Both follow from the records (see `standing`), so a search can be shown while it runs and afterwards. The text of users
is escaped, and the page holds no rows.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs import pages
from ray_jobs.errors import one_line
from ray_jobs.pages import Chart, Figure, PageSection, Table, plots
from ray_jobs.pages.plots import Axis, Line
from ray_jobs.search.records import Problem
from ray_jobs.search.rungs import rungs_of, trials_of
from ray_jobs.search.space import first_rungs
from ray_jobs.search.standing import Standing
from ray_jobs.sharing.segments import Params, Result
from ray_jobs.spec import Range

Results = Mapping[str, Result]
_REFRESH_S = 15
_ENOUGH = 8
"""Fewest measured trials for which the importance of hyperparameters is computed."""


@dataclass(frozen=True)
class _Trial:
    """A line of the table."""

    number: int
    state: str
    params: Params
    rungs: int
    results: tuple[Result, ...]
    """In the order of the rungs."""
    again: Result | None
    order: str
    """Place of its last result among all, in the order in which they were written."""

    @property
    def measured(self) -> Result | None:
        """The last segment that did not fail."""
        return next((result for result in reversed(self.results) if result.status == "ok"), None)

    @property
    def kind(self) -> str:
        """The state's first word."""
        return self.state.split()[0].strip(":")


def table(problem: Problem, results: Results, now: Standing, *, limit: int | None = None) -> str:
    """The trials as text, the best first, and a line with their cost. `limit`: most trials shown."""
    trials = _trials(problem, results, now)
    rows = [_columns(problem), *(_cells(problem, trial) for trial in trials[:limit])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0  # the state is left-aligned
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(rows) <= len(trials):
        lines.append(f"and {len(trials) - len(rows) + 1} more")
    # Trials that share use one process: on a GPU that of one worker, on CPUs that of all workers.
    workers, tokens = problem.spec.compute.workers, sum(result.tokens for result in results.values())
    shared = 1 if problem.spec.compute.gpus_per_worker else workers
    seconds = sum(result.seconds * (shared if result.shared else workers) for result in results.values())
    why = "sampling continues" if now.sampling else f"sampling ended: {one_line(now.why) or 'nothing ran'}"
    cost = f"{tokens:,} tokens, {seconds:,.0f} worker-seconds"
    lines.append(f"{len(trials)} trials, {len(results)} segments, {cost}; {why}")
    return "\n".join(lines)


def page(problem: Problem, results: Results, now: Standing, spent: Mapping[str, float], *, title: str) -> str:
    """The search as one HTML document, which reloads itself while a segment runs.

    `results`: in the order in which they were written, for the cost. `spent`: hours, as `SearchRecords.spent`.
    """
    trials = _trials(problem, results, now)
    charts = _sections(problem, results, trials) if results else [PageSection("Results", "There are no results yet.")]
    cells = [_cells(problem, trial) for trial in trials]
    tried = Table(_columns(problem), cells, kinds=[trial.kind for trial in trials], left="last")
    return pages.page(
        title,
        [*charts, PageSection("Trials", table=tried)],
        facts=_facts(problem, results, now, spent),
        refresh_s=_REFRESH_S if now.running else None,
    )


def _trials(problem: Problem, results: Results, now: Standing) -> list[_Trial]:
    """The best first: the winner, the finalists by both seeds, the others by rung and then by the metric, those that
    failed, those without a result."""
    running = {run.trial: run.params for run in now.running}
    again = {result.run.trial: result for result in results.values() if result.run.again}
    segments: dict[int, list[Result]] = {number: [] for number in running}
    for result in sorted(results.values(), key=lambda result: result.run.rung):
        if not result.run.again:
            segments.setdefault(result.run.trial, []).append(result)
    orders = {name: str(place) for place, name in enumerate(results, 1)}
    ranked = [*now.finalists, *([now.winner.trial] if now.winner else [])]
    placed: list[tuple[tuple[float, ...], _Trial]] = []
    for number, own in sorted(segments.items()):
        last = own[-1] if own else None
        params = last.run.params if last else running[number]
        rungs = len(rungs_of(problem, params))
        place: tuple[float, ...] = (3, number)
        state = "running"
        if number in ranked:
            place, state = (0, ranked.index(number)), "finalist"
            state = "won" if now.winner and number == now.winner.trial else state
        elif last and last.status != "ok":
            place, state = (2, number), f"failed: {one_line(last.error)[:160]}" if last.error else "failed"
        elif last:
            place = (1, -last.run.rung, last.value(problem.search.judge), number)
            paused = f"{'waits' if now.sampling else 'stopped'} at rung {last.run.rung + 1}"
            state = "finalist" if number in again else "finished" if last.run.rung + 1 == rungs else paused
        state = "running" if number in running else state
        order = orders[last.run.name] if last else ""
        placed.append((place, _Trial(number, state, params, rungs, tuple(own), again.get(number), order)))
    return [trial for _, trial in sorted(placed, key=lambda each: each[0])]


def _columns(problem: Problem) -> list[str]:
    return ["trial", "order", "rung", "step", problem.search.judge, "both seeds", *problem.space, "state"]


def _cells(problem: Problem, trial: _Trial) -> list[str]:
    metric, again = problem.search.judge, trial.again
    step = value = both = ""
    if trial.results:
        latest, failed = trial.results[-1], trial.results[-1].status != "ok"
        step = str(len(latest.losses) if failed else latest.run.until)
        value = latest.status if failed else f"{_shown(latest, metric):.4f}"
        if again is not None and again.status != "ok":
            both = again.status
        elif again is not None and not failed and latest.run.rung == again.run.rung:
            both = f"{(_shown(latest, metric) + _shown(again, metric)) / 2:.4f}"
    rung = f"{0 if trial.measured is None else trial.measured.run.rung + 1}/{trial.rungs}"
    values = (_short(trial.params.get(name)) for name in problem.space)
    return [str(trial.number), trial.order, rung, step, value, both, *values, trial.state]


def _facts(problem: Problem, results: Results, now: Standing, spent: Mapping[str, float]) -> dict[str, str]:
    """The facts at the top of the page."""
    search, budget = problem.search, problem.search.budget

    def beside(value: str, limit: float | None) -> str:
        return value if limit is None else f"{value} of {limit:g}"

    state = "over: no trial won" if now.winner is None else f"over: trial {now.winner.trial} won"
    if now.running:
        state = "sampling" if now.sampling else "running the finalists"
    wall, worker = spent.get("wall", 0.0), spent.get("worker", 0.0)
    facts = {
        "model": problem.spec.name,
        "scheduler": search.schedules,
        "sampler": search.samples,
        "metric": " and ".join(search.metrics) + (", a row" if problem.labels_a_row else ""),
        "state": state,
        "sampling ended": now.why,
        "trials with a result": beside(str(len({result.run.trial for result in results.values()})), trials_of(problem)),
        "trials running": str(len({run.trial for run in now.running})),
        "tokens trained": f"{sum(result.tokens for result in results.values()):,}",
        "hours": beside(f"{wall:.2f}", budget.hours),
        "worker-hours": beside(f"{worker:.2f}", budget.gpu_hours),
        "money": beside(f"{worker * budget.price_per_hour:.2f}", budget.money) if budget.price_per_hour else "",
    }
    return {name: text for name, text in facts.items() if text}


def _sections(problem: Problem, results: Results, trials: Sequence[_Trial]) -> list[PageSection]:
    """The figures; a sentence where there is nothing to draw."""
    tried = "All trials with a measured rung. Drag along an axis to filter."
    drawn: list[tuple[str, str, str, Figure | str]] = [
        (
            "Learning curves",
            "curves",
            f"Training loss; a dot is the held-out loss{' of a row' if problem.labels_a_row else ''} at a rung.",
            _curves(trials),
        ),
        ("Values tried", "tried", tried, _tried(problem, trials)),
        ("Importance", "importance", "Share of the variance at the first rung.", _importance(problem, results)),
        ("Best so far", "cost", "By the tokens trained until then.", _cost(problem, results)),
    ]
    if len(problem.search.metrics) > 1:
        front = "Whole trials; the line joins those that no other trial beats in both metrics."
        drawn.append(("Pareto front", "front", front, _front(problem, trials)))
    return [
        PageSection(heading, figure)
        if isinstance(figure, str)
        else PageSection(heading, caption, [Chart(key, figure, min_width="40rem" if key == "tried" else "")])
        for heading, key, caption, figure in drawn
    ]


def _curves(trials: Sequence[_Trial]) -> Figure | str:
    drawn: list[Line] = []
    for trial in reversed(trials):  # the best is drawn last, above the others
        color = {"won": pages.RED, "finalist": pages.YELLOW, "failed": pages.GREY}.get(trial.kind, pages.BLUE)
        name = f"trial {trial.number}, {trial.kind}"
        steps, losses = plots.thinned(trial.results[-1].losses if trial.results else ())
        drawn.append(Line(name, steps, losses, color, width=4 if trial.kind == "won" else 1))
        held = [result for result in trial.results if result.status == "ok"]
        drawn.append(Line(name, [each.run.until for each in held], [each.loss for each in held], color, "markers"))
    taken = any(line.x for line in drawn)
    return plots.lines(drawn, "optimizer step", "loss") if taken else "No run has taken a step yet."


def _tried(problem: Problem, trials: Sequence[_Trial]) -> Figure | str:
    """Parallel coordinates. Optuna's own omits the trials that were stopped, and draws those that failed."""
    metric = problem.search.judge
    measured = [trial.measured for trial in trials if trial.measured is not None]
    axes: list[Axis] = []
    for name, values in problem.space.items():
        found = [result.run.params[name] for result in measured]
        if isinstance(values, Range):
            axes.append(Axis(name, found, bounds=(values.min, values.max), log=values.scale == "log"))
        else:
            keys = list(map(json.dumps, values))
            axes.append(Axis(name, [keys.index(json.dumps(v)) for v in found], list(map(_short, values))))
    axes.append(Axis("step", [result.run.until for result in measured]))
    axes.append(Axis(metric, [_shown(result, metric) for result in measured]))
    drawn = plots.parallel_coordinates(axes, lower_is_better=problem.lower_is_better)
    return drawn if measured else "No trial has been measured yet."


def _importance(problem: Problem, results: Results) -> Figure | str:
    """Importance by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) at the first rung, which all trials reach."""
    from optuna.importance import get_param_importances

    metric = problem.search.judge
    study = first_rungs(problem.space, results.values(), metric)
    seen = study.trials
    if len(seen) < _ENOUGH:
        return f"Importance needs {_ENOUGH} measured trials; there are {len(seen)}."
    varied = [name for name in problem.space if len({json.dumps(trial.params[name]) for trial in seen}) > 1]
    if len(varied) < 2:
        return f"Only {varied[0]} varies." if varied else "No value varies."
    if len({trial.value for trial in seen}) == 1:
        return "Every trial has the same value."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when few trials give equal shares
        shares = get_param_importances(study, params=varied)
    return plots.bars(shares, "importance")


def _cost(problem: Problem, results: Results) -> Figure | str:
    metric, tokens, best = problem.search.judge, 0, math.inf
    points: list[tuple[int, float, str]] = []
    for result in results.values():
        tokens += result.tokens
        if result.value(metric) < best and not result.run.again:
            best = result.value(metric)
            points.append((tokens, _shown(result, metric), f"trial {result.run.trial}"))
    if not points:
        return "No trial has been measured yet."
    x, y, texts = zip(*points, (tokens, points[-1][1], "in all"), strict=True)
    line = Line("best", x, y, pages.RED, "lines+markers", shape="hv", texts=texts)
    return plots.lines([line], "tokens trained", metric)


def _front(problem: Problem, trials: Sequence[_Trial]) -> Figure | str:
    """The two metrics of every whole trial, and those that no other trial beats in both."""
    first, second = problem.search.metrics
    whole = [each.measured for each in trials if each.measured and each.measured.run.rung + 1 == each.rungs]
    whole.sort(key=lambda each: (each.value(first), each.value(second)))
    front = [each for i, each in enumerate(whole) if all(each.value(second) < o.value(second) for o in whole[:i])]

    def line(name: str, color: str, mode: str, group: Sequence[Result]) -> Line:
        x, y = ([_shown(each, metric) for each in group] for metric in (first, second))
        return Line(name, x, y, color, mode, texts=[f"trial {each.run.trial}" for each in group])

    drawn = [line("whole trials", pages.BLUE, "markers", whole), line("front", pages.RED, "lines+markers", front)]
    return plots.lines(drawn, first, second) if whole else "No trial has been trained to its end yet."


def _shown(result: Result, metric: str) -> float:
    """The metric itself; `value` negates an accuracy."""
    return abs(result.value(metric))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 40 else "…" + text[-39:]  # the end of a path is the specific part
