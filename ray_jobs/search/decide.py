"""Which trials run, are promoted and win: a pure function of the problem and of the results.

Each call replays the search from its beginning as a discrete-event simulation whose clock counts trained rows. A free
place gets its next segment from the results that precede it on that clock, never from the order in which segments end
on the machine. So a killed search decides the same on any machine, and a segment with a result never runs again.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.search import sampling
from ray_jobs.search.records import Params, Problem, Result, SamplingEnd, TrialSegment
from ray_jobs.search.sampling import TriedValues
from ray_jobs.search.space import own_values
from ray_jobs.spec import JobSpec, Range, SearchSection
from ray_jobs.training.lr_schedule import decay_start

_PERTURBED = ("learning_rate", "weight_decay", "max_grad_norm")
"""Values that a member of a population can change; the others come with the weights it copies."""
_FACTORS = (0.8, 1.25)


@dataclass(frozen=True)
class Schedule:
    """The state of a search."""

    running: tuple[TrialSegment, ...]
    """Segments to run now; the simulation waits for the first."""
    sampling: bool
    """Whether the budget may still end the sampling; the finalists always run."""
    winner: TrialSegment | None = None
    """The segment whose checkpoint wins. None: the search has not ended."""
    finalists: tuple[int, ...] = ()
    """Numbers of the trials, the best first."""
    why: str = ""
    """Why sampling ended."""


def rungs_of(problem: Problem, params: Params) -> tuple[int, ...]:
    """The rungs of a trial with these values, in steps; the last is its end."""
    search, training = _search(problem), problem.spec.training
    epochs, most = params.get("epochs", training.epochs), params.get("max_steps", training.max_steps)
    total = math.ceil(problem.rows / batch_size_of(problem, params)) * epochs
    total = total if most is None else min(total, most)
    if search.algorithm == "pbt":
        shares = [(i + 1) / search.rungs for i in range(search.rungs)]
    elif search.algorithm == "asha":
        shares = [search.reduction ** -(search.rungs - 1 - i) for i in range(search.rungs)]
    else:
        shares = [1.0]
    steps = [max(2, round(total * share)) for share in shares]
    return tuple(min(step, total) for step in steps)


def batch_size_of(problem: Problem, params: Params) -> int:
    """Rows in an optimizer step of a trial."""
    return int(params.get("batch_size", problem.spec.training.batch_size))


def trial_spec(problem: Problem, run: TrialSegment) -> JobSpec:
    """The job file of a segment."""
    spec = problem.spec.with_values(run.params)
    if not run.again:
        return spec
    return spec.model_copy(update={"training": spec.training.model_copy(update={"seed": spec.training.seed + 1})})


def replay(
    problem: Problem,
    results: Mapping[str, Result],
    stop: SamplingEnd | None = None,
    memory: dict[tuple[int, int], Any] | None = None,
) -> Schedule:
    """Replay the search as far as the results lead.

    `memory` keeps Optuna's answers for later calls with more results of the same search.
    """
    if stop is not None:
        known = {name: results[name] for name in stop.results if name in results and not results[name].run.again}
        state = _State(problem, list(known.values()), why=stop.reason)
        return _final(state, results)
    state = _State(problem, known=results, memory={} if memory is None else memory)
    clock, free, count = 0.0, _search(problem).parallel, 0
    queue: list[tuple[float, int, TrialSegment]] = []
    while True:
        while free and (run := state.next_run()) is not None:
            heapq.heappush(queue, (clock + length(problem, run, results), count, run))
            state.running.append(run)
            free, count = free - 1, count + 1
        if not queue:
            return _final(state, results)
        if queue[0][2].name not in results:
            waiting = tuple(run for _, _, run in sorted(queue, key=lambda item: item[:2]) if run.name not in results)
            return Schedule(waiting, sampling=True)
        clock, _, run = heapq.heappop(queue)
        state.running.remove(run)
        state.done.append(results[run.name])
        free += 1


@dataclass
class _State:
    """The simulation up to the current time of its clock."""

    problem: Problem
    done: list[Result] = field(default_factory=list)
    running: list[TrialSegment] = field(default_factory=list)
    why: str = ""
    known: Mapping[str, Result] = field(default_factory=dict)
    """All stored results, also later ones: the values of their trials are not sampled again."""
    memory: dict[tuple[int, int], Any] = field(default_factory=dict)
    """(trials begun, segments done) → Optuna's answer."""

    def next_run(self) -> TrialSegment | None:
        """The next segment for a free place. None: none can start now."""
        search = _search(self.problem)
        if search.algorithm == "pbt":
            return self._next_of_population()
        if search.algorithm == "asha" and (promoted := self._promotion()) is not None:
            return promoted
        return self._new_trial()

    def rung(self, rung: int) -> list[Result]:
        """Results at a rung, the best first."""
        return _ranked(self.problem, [result for result in self.done if result.run.rung == rung])

    def _started(self) -> set[int]:
        return {run.trial for run in [*self.running, *(result.run for result in self.done)]}

    def _promotion(self) -> TrialSegment | None:
        search = _search(self.problem)
        on = {(run.trial, run.rung) for run in [*self.running, *(result.run for result in self.done)]}
        for rung in reversed(range(search.rungs - 1)):
            best = self.rung(rung)
            for result in best[: len(best) // search.reduction]:
                if result.status == "ok" and (result.run.trial, rung + 1) not in on:
                    return _onwards(self.problem, result, rung + 1)
        return None

    def _new_trial(self) -> TrialSegment | None:
        search, space = _search(self.problem), self.problem.space
        if self.why:
            return None
        number = len(self._started())
        points = sampling.grid(space) if search.algorithm == "grid" else None
        if number >= (search.trials if points is None else len(points)):
            self.why = "every trial has run"
            return None
        trials = seen(self.problem, self.done, self.running)
        if search.budget.gain_below is not None and points is None:
            gain = self._remembered(-number - 1, lambda: sampling.expected_gain(space, trials))
            if gain < search.budget.gain_below:
                self.why = f"another trial is expected to gain {gain:.2g}, less than {search.budget.gain_below:g}"
                return None
        drawn = search.algorithm == "random"
        first = [*self.problem.warm, *([] if drawn else [own_values(self.problem.spec, space)])]
        if (known := self.known.get(f"{number:04d}-0")) is not None:
            params = known.run.params
        elif points is not None:
            params = points[number]
        elif number < len(first):
            params = first[number]
        else:
            params = self._remembered(number, lambda: sampling.suggest(space, trials, seed=search.seed, random=drawn))
        return TrialSegment(trial=number, rung=0, params=params, until=rungs_of(self.problem, params)[0])

    def _remembered(self, number: int, ask: Callable[[], Any]) -> Any:
        key = (number, len(self.done))
        if key not in self.memory:
            self.memory[key] = ask()
        return self.memory[key]

    def _next_of_population(self) -> TrialSegment | None:
        """All members train an interval before any trains the next (Jaderberg et al. 2017, arXiv:1711.09846)."""
        search = _search(self.problem)
        on = {(run.trial, run.rung) for run in [*self.running, *(result.run for result in self.done)]}
        for rung in range(search.rungs):
            members = [trial for trial in range(search.trials) if (trial, rung) not in on]
            if not members:
                continue
            if rung == 0:
                seen_so_far = seen(self.problem, self.done, self.running)
                params = sampling.suggest(self.problem.space, seen_so_far, seed=search.seed, random=True)
                return TrialSegment(trial=members[0], rung=0, params=params, until=rungs_of(self.problem, params)[0])
            ranked = self.rung(rung - 1)
            if len(ranked) < search.trials:
                return None  # other members still train this interval
            return self._next_interval(members[0], ranked, rung)
        self.why = "the population has finished"
        return None

    def _next_interval(self, member: int, ranked: Sequence[Result], rung: int) -> TrialSegment | None:
        """Resume the member; one of the worst quarter copies one of the best and perturbs its values."""
        search = _search(self.problem)
        quarter = max(1, len(ranked) // 4)
        own = next(result for result in ranked if result.run.trial == member)
        worst = own.status != "ok" or own in ranked[-quarter:]
        if not worst or len(ranked) < 2 or ranked[0].status != "ok":
            return _onwards(self.problem, own, rung)
        dice = random.Random(f"{search.seed}/{member}/{rung}")
        best = [result for result in ranked[:quarter] if result.status == "ok"]
        chosen = dice.choice(best)
        params = dict(chosen.run.params)
        for name in sorted(set(params) & set(_PERTURBED)):
            params[name] = _perturbed(self.problem.space[name], params[name], dice)
        return _onwards(self.problem, chosen, rung).model_copy(update={"trial": member, "params": params})


def _perturbed(values: Range | tuple[Any, ...], value: Any, dice: random.Random) -> Any:
    """A value perturbed within its range; in a list, a neighbour."""
    if isinstance(values, Range):
        return min(values.max, max(values.min, value * dice.choice(_FACTORS)))
    at = values.index(value) + dice.choice((-1, 1))
    return values[min(len(values) - 1, max(0, at))]


def seen(problem: Problem, done: Sequence[Result], running: Sequence[TrialSegment] = ()) -> list[TriedValues]:
    """The trials for a sampler, in order."""
    search = _search(problem)
    trials: dict[int, TriedValues] = {}
    for run in running:
        trials[run.trial] = TriedValues(run.params, {}, complete=False)
    for result in done:
        last = len(rungs_of(problem, result.run.params)) - 1
        before = trials.get(result.run.trial, TriedValues(result.run.params, {}, complete=False))
        values = {**before.values, result.run.rung: result.value(search.metric)}
        complete = before.complete or result.run.rung == last
        trials[result.run.trial] = TriedValues(
            result.run.params, values, complete
        )  # a population changes values between rungs
    return [trials[number] for number in sorted(trials)]


def _final(state: _State, results: Mapping[str, Result]) -> Schedule:
    """Train the best trials to their end, and again with another seed; then choose the winner."""
    problem, search = state.problem, _search(state.problem)
    latest: dict[int, Result] = {}
    for result in state.done:
        if result.run.trial not in latest or result.run.rung >= latest[result.run.trial].run.rung:
            latest[result.run.trial] = result
    deepest = sorted(
        (result for result in latest.values() if result.status == "ok"),
        key=lambda result: (-result.run.rung, result.value(search.metric), result.run.trial),
    )[: search.finalists]
    if not deepest:
        return Schedule((), sampling=False, why=state.why)
    if search.retrain and search.finalists == 1:
        return Schedule((), False, deepest[0].run, (deepest[0].run.trial,), state.why)
    waiting: list[TrialSegment] = []
    marks: list[tuple[float, int, TrialSegment]] = []
    for result in deepest:
        end = len(rungs_of(problem, result.run.params)) - 1
        whole = [result.run if result.run.rung == end else _onwards(problem, result, end)]
        if search.finalists > 1 and search.algorithm != "pbt":  # a population's values change between rungs
            until = rungs_of(problem, result.run.params)[-1]
            whole.append(
                TrialSegment(trial=result.run.trial, rung=end, params=result.run.params, until=until, again=True)
            )
        waiting += [run for run in whole if run.name not in results]
        # A second run that was lost or timed out says nothing about the values; one that diverged does.
        ends = [results[run.name] for run in whole if run.name in results]
        ends = [each for each in ends if each.status in ("ok", "not_finite") or not each.run.again]
        if ends:
            values = [each.value(search.metric) for each in ends]
            best = min(ends, key=lambda each: each.value(search.metric)).run
            marks.append((sum(values) / len(values), result.run.trial, best))
    if waiting:
        return Schedule(tuple(waiting), False, finalists=tuple(each.run.trial for each in deepest), why=state.why)
    marks.sort(key=lambda mark: (mark[0], results[mark[2].name].value(search.metric), mark[1]))
    winner = marks[0][2] if math.isfinite(results[marks[0][2].name].value(search.metric)) else deepest[0].run
    return Schedule((), False, winner, tuple(mark[1] for mark in marks), state.why)


def _onwards(problem: Problem, result: Result, rung: int) -> TrialSegment:
    run = result.run
    until = rungs_of(problem, run.params)[rung]
    source = run.name if result.trunk is not None else None
    return TrialSegment(trial=run.trial, rung=rung, params=run.params, until=until, source=source)


def length(problem: Problem, run: TrialSegment, results: Mapping[str, Result]) -> int:
    """Rows that a segment trains."""
    before = decay_start(results[run.source].run.until) if run.source is not None else 0
    return (run.until - before) * batch_size_of(problem, run.params)


def whole_length(problem: Problem, run: TrialSegment) -> int:
    """Rows that a whole trial with a segment's values trains."""
    return rungs_of(problem, run.params)[-1] * batch_size_of(problem, run.params)


def rows_trained(problem: Problem, result: Result) -> int:
    """Rows that were trained for a result."""
    return max(1, result.steps * batch_size_of(problem, result.run.params))


def trials_of(problem: Problem) -> int:
    """Most trials of a search."""
    search = _search(problem)
    return len(sampling.grid(problem.space)) if search.algorithm == "grid" else search.trials


def _ranked(problem: Problem, results: Sequence[Result]) -> list[Result]:
    metric = _search(problem).metric
    return sorted(results, key=lambda result: (result.value(metric), result.run.trial))


def _search(problem: Problem) -> SearchSection:
    assert problem.spec.search is not None
    return problem.spec.search


def summary(result: Result, metric: str) -> dict[str, Any]:
    """A result for events and tables."""
    value = result.loss if metric == "loss" else result.accuracy
    return {"status": result.status, metric: value, "step": result.run.until, **result.run.params}
