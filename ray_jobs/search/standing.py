"""Where a search stands: who leads, who is a finalist, who won, and which checkpoints are still needed.

All of it follows from the records. Pure, but for `read`, which reads them, and `warm_points`, which reads other jobs'.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

from ray_jobs import jobs
from ray_jobs.errors import CorruptObject, ObjectNotFound, TrainingError
from ray_jobs.search.records import EVERY_TRIAL, Problem, SamplingEnd, SearchRecords, searches
from ray_jobs.search.rungs import rungs_of
from ray_jobs.sharing.segments import Params, Result, TrialSegment
from ray_jobs.spec.search import POPULATIONS
from ray_jobs.spec.space import fits
from ray_jobs.storage import Workspace

_WARM = 3
"""Most winners taken from earlier searches."""
_SEARCHES_READ = 20
"""Most earlier jobs read for them, the newest first."""


@dataclass(frozen=True)
class Standing:
    """Where a search stands."""

    running: tuple[TrialSegment, ...] = ()
    """Segments that run now."""
    sampling: bool = True
    """Whether trials may still begin or be promoted; afterwards only the finalists run."""
    winner: TrialSegment | None = None
    """The segment whose checkpoint wins. None: the search has not ended."""
    finalists: tuple[int, ...] = ()
    """Numbers of the trials, the best first."""
    why: str = ""
    """Why sampling ended."""
    due: tuple[TrialSegment, ...] = ()
    """The finalists' segments without a result."""


def read(records: SearchRecords) -> tuple[Problem, dict[str, Result], Standing]:
    """A search as its records show it, while it runs and afterwards."""
    problem, results, stop, running = records.problem(), records.results(), records.stopped(), records.running()
    if running is None:  # a search of an earlier version, which recorded only an end by a budget
        stop = stop or SamplingEnd(reason=EVERY_TRIAL, results=tuple(results))
    return problem, results, standing(problem, results, stop, (r for r in running or () if r.name not in results))


def standing(
    problem: Problem, results: Mapping[str, Result], stop: SamplingEnd | None, running: Iterable[TrialSegment] = ()
) -> Standing:
    """Where a search with these results stands. `stop`: None while it samples."""
    now = Standing(tuple(running))
    if stop is None:
        return now
    search = problem.search
    deepest = _deepest_first(problem, _latest(results[name] for name in stop.results if name in results))
    deepest = deepest[: search.finalists]
    now = replace(now, sampling=False, why=stop.reason, finalists=tuple(result.run.trial for result in deepest))
    if not deepest:
        return now
    if search.retrain and search.finalists == 1:
        return replace(now, winner=deepest[0].run)
    whole = [_whole(problem, result) for result in deepest]
    due = tuple(run for runs in whole for run in runs if run.name not in results)
    if due:
        return replace(now, due=due)
    marks: list[tuple[float, float, int, TrialSegment]] = []
    for runs in whole:
        ends = [results[run.name] for run in runs]
        # A second run that was lost or timed out says nothing about the values; one that diverged does.
        ends = [each for each in ends if each.status in ("ok", "not_finite") or not each.run.again]
        best = min(ends, key=lambda each: each.value(search.judge))
        mean = sum(each.value(search.judge) for each in ends) / len(ends)
        marks.append((mean, best.value(search.judge), best.run.trial, best.run))
    marks.sort(key=lambda mark: mark[:3])
    winner = marks[0][3] if math.isfinite(marks[0][1]) else deepest[0].run
    return replace(now, winner=winner, finalists=tuple(mark[2] for mark in marks))


def _whole(problem: Problem, result: Result) -> list[TrialSegment]:
    """The segments that a finalist must have: to its end, and again from the base with another seed."""
    run, rungs = result.run, rungs_of(problem, result.run.params)
    end = TrialSegment(trial=run.trial, rung=len(rungs) - 1, params=run.params, until=rungs[-1])
    # Without a checkpoint it starts from the base.
    onwards = end.model_copy(update={"source": run.name if result.trunk is not None else None})
    whole = [run if run.rung == end.rung else onwards]
    if problem.search.finalists > 1 and problem.search.schedules not in POPULATIONS:  # its values change between rungs
        whole.append(end.model_copy(update={"again": True}))
    return whole


def _latest(results: Iterable[Result]) -> list[Result]:
    """Each trial's result at its last rung that did not fail, without second runs; none for a trial that failed."""
    latest: dict[int, Result] = {}
    for result in results:
        trial = result.run.trial
        if not result.run.again and (trial not in latest or result.run.rung >= latest[trial].run.rung):
            latest[trial] = result
    return [result for result in latest.values() if result.status == "ok"]


def _deepest_first(problem: Problem, results: Iterable[Result]) -> list[Result]:
    """By rung, the last one first, and then the best first."""
    judge = problem.search.judge
    return sorted(results, key=lambda result: (-result.run.rung, result.value(judge), result.run.trial))


def all_failed(results: Mapping[str, Result]) -> TrainingError:
    """Why no trial won."""
    whys = Counter(f"{each.status}: {next(iter((each.error or '').splitlines()), '')}" for each in results.values())
    details = [f"{times} segment(s): {why}" for why, times in whys.most_common()]
    count = len({result.run.trial for result in results.values()})
    return TrainingError(f"all {count} trials of the search failed", details=details)


def prunable(problem: Problem, results: Mapping[str, Result], now: Standing, live: Collection[int] = ()) -> list[str]:
    """Segments whose checkpoints are not needed. `live`: trials that train or wait to."""
    search = problem.search
    if search.schedules in POPULATIONS and (now.sampling or now.due):
        return []  # any member may copy any other
    current = [*now.running, *now.due]
    needed = {run.name for run in current} | {run.source for run in current if run.source}
    if now.winner is not None:
        needed.add(now.winner.name)
    latest = {result.run.trial: result for result in _latest(r for r in results.values() if r.status == "ok")}
    needed |= {latest[trial].run.name for trial in live if trial in latest}
    best = _deepest_first(problem, latest.values())
    needed |= {result.run.name for result in best[: search.finalists]}
    kept = best[: search.checkpoints_to_keep]
    if now.sampling:
        for rung in {result.run.rung for result in best}:
            places = search.trials // search.reduction ** (rung + 1) + search.reduction
            kept += [result for result in best if result.run.rung == rung][:places]
    if now.due:
        needed |= {name for name, result in results.items() if result.run.again}
    stored = sum(results[name].stored_bytes for name in needed if name in results)
    for result in _deepest_first(problem, kept):
        if result.run.name not in needed:  # the best first, while storage lasts
            stored += result.stored_bytes
            if search.storage_gib is not None and stored > search.storage_gib * 2**30:
                break
            needed.add(result.run.name)
    return sorted(set(results) - needed)


def warm_points(store: Workspace, problem: Problem, job_id: str) -> tuple[Params, ...]:
    """Winners of the team's newest searches on the same base and task whose values are in this one's space."""
    search = problem.search
    if not search.warm_start or search.samples == "grid" or search.schedules in POPULATIONS:
        return ()
    kind = attrgetter("base_model", "task", "training.method")
    found: list[Params] = []
    own = [record for record in jobs.list_jobs(store) if record.id != job_id and record.spec.get("search")]
    for record in own[:_SEARCHES_READ]:
        with contextlib.suppress(ObjectNotFound, CorruptObject):
            for other, _, ended in map(read, searches(store, record.id)):
                values = ended.winner.params if ended.winner and kind(other.spec) == kind(problem.spec) else None
                if values is not None and fits(problem.space, values) and values not in found:
                    found.append(values)
    return tuple(found[:_WARM])
