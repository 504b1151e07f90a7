"""A search from its first trial to its winner, on any executor.

Owns the loop: it replays the search as far as the results lead (`decide`), starts the segments that are due, and stores
each result. A killed search resumes unchanged, since every decision follows from the results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_jobs import jobs
from ray_jobs.errors import KitaeError, ObjectNotFound, TrainingError
from ray_jobs.jobs import Job
from ray_jobs.search import decide, page, sampling
from ray_jobs.search.budget import Meter, reason_to_stop
from ray_jobs.search.decide import Schedule
from ray_jobs.search.records import Params, Problem, Result, SearchRecords, TrialSegment
from ray_jobs.search.trial_group import TrialTask
from ray_jobs.spec import SearchSection
from ray_jobs.storage import Store
from ray_jobs.training.inputs import TrainInputs, TrainUntil
from ray_jobs.training.lr_schedule import decay_start

_POLL_S = 0.2
_PAGE_EVERY_S = 10.0
_WARM = 3
"""Most winners taken from earlier searches."""
_SEARCHES_READ = 20
"""Most earlier jobs read for them, the newest first."""


class SegmentExecutor(Protocol):
    """Runs trial segments; see `executors.Executor`."""

    steps: dict[str, int]

    def running(self) -> dict[str, float]: ...

    def busy_workers(self) -> int: ...

    def has_room(self, task: TrialTask) -> bool: ...

    def start(self, task: TrialTask) -> None: ...

    def drop(self, name: str) -> None: ...

    def poll(self) -> list[Result]: ...


@dataclass
class Search:
    job: Job
    records: SearchRecords
    problem: Problem
    inputs: Callable[[TrialSegment], TrainInputs]
    """Inputs of a segment, without `until` and `checkpoints`."""
    runs: SegmentExecutor
    show: Callable[..., None]
    memory: dict[tuple[int, int], Any] = field(default_factory=dict)
    _page_at: float = 0.0
    _pruned: set[str] = field(default_factory=set)
    _waiting: dict[str, TrialSegment] = field(default_factory=dict)
    _results: dict[str, Result] = field(default_factory=dict)
    _sampling: bool = True

    def run(self) -> Schedule:
        """Run the search to its end. Raises TrainingError when every trial fails or the budget is too small for one."""
        meter = Meter(self.records, self.runs.busy_workers)
        results = self.records.results()
        stop = self.records.stopped()
        while True:
            schedule = decide.replay(self.problem, results, stop, self.memory)
            self._show(results, schedule, meter)
            if not schedule.running:
                break
            if schedule.sampling and (reason := reason_to_stop(self.problem, results, meter.spent)):
                stop = self.records.stop(reason, results)
                self.job.event("info", f"search: {reason}")
                continue
            self._start(schedule, results)
            ended = self._wait(meter)
            for result in ended:
                results[result.run.name] = self.records.add(result)
                self._announce(results[result.run.name])
            self._prune(results, schedule)
        meter.save()
        self._write_page(results, schedule, meter)
        if schedule.winner is None:
            raise all_failed(results)
        self._prune(results, schedule)
        return schedule

    def _start(self, schedule: Schedule, results: Mapping[str, Result]) -> None:
        """Start the segments that are due, in order; drop the others, which the end of a budget leaves behind."""
        wanted = {run.name for run in schedule.running}
        for name in set(self.runs.running()) - wanted:
            self.runs.drop(name)
        for run in schedule.running:
            if run.name not in self.runs.running():
                task = self.task(run, results)
                if not self.runs.has_room(task):
                    break  # the first due starts first
                self.runs.start(task)

    def task(self, run: TrialSegment, results: Mapping[str, Result]) -> TrialTask:
        source = results[run.source].trunk if run.source is not None else None
        until = TrainUntil(stop_at_step=run.until, resume_from=source)
        given = self.inputs(run).model_copy(update={"until": until, "checkpoints": self.records.checkpoints(run)})
        return TrialTask(run=run, inputs=given)

    def _wait(self, meter: Meter) -> list[Result]:
        """Wait until a segment ends. One over its time is given up."""
        limit = self._section.trial_minutes
        while True:
            self.job.check()
            if ended := self.runs.poll():
                if any(result.status != "ok" for result in ended):
                    # Workers poll for a pause too: a trial that it stopped has not failed.
                    self.job.check(fresh=True)
                return ended
            meter.tick()
            self._show_steps()
            now = time.monotonic()
            late = [
                name for name, since in self.runs.running().items() if limit is not None and now - since > limit * 60
            ]
            if late:
                for name in late:
                    self.runs.drop(name)
                assert limit is not None
                error = f"it took more than search.trial_minutes {limit:g}"
                return [Result(run=self._waiting[name], status="timed_out", error=error) for name in late]
            if not self.runs.running():
                return []
            time.sleep(_POLL_S)

    @property
    def _section(self) -> SearchSection:
        assert self.problem.spec.search is not None
        return self.problem.spec.search

    def _announce(self, result: Result) -> None:
        metric = self._section.metric
        run = result.run
        what = f"trial {run.trial}, {'again' if run.again else f'rung {run.rung}'}"
        value = result.loss if metric == "loss" else result.accuracy
        said = f"{metric} {value:.4f}" if result.status == "ok" and value is not None else result.status
        level: jobs.Level = "info" if result.status == "ok" else "warning"
        self.job.event(level, f"search: {what}: {said}", decide.summary(result, metric))

    def _show(self, results: Mapping[str, Result], schedule: Schedule, meter: Meter) -> None:
        self._waiting, self._sampling = {run.name: run for run in schedule.running}, schedule.sampling
        self._results = dict(results)
        self._show_steps()
        if time.monotonic() - self._page_at > _PAGE_EVERY_S:
            self._write_page(results, schedule, meter)

    def _show_steps(self) -> None:
        """Show the steps trained, out of those of the trials that began and the first rung of the others."""
        metric, results = self._section.metric, self._results
        values = [result.value(metric) for result in results.values() if result.status == "ok"]
        ends = {result.run.trial for result in results.values()}
        done = sum(result.steps for result in results.values())
        left = 0
        for name, run in self._waiting.items():
            begin = 0 if run.source is None else decay_start(results[run.source].run.until)
            step = max(begin, self.runs.steps.get(name, 0))
            done, left = done + step - begin, left + run.until - step
        trials = decide.trials_of(self.problem)
        begun = ends | {run.trial for run in self._waiting.values()}
        left += (trials - len(begun)) * decide.rungs_of(self.problem, {})[0] if self._sampling else 0
        best = {f"best_{metric}": abs(min(values))} if values else {}
        self.show(done, done + left, "steps", trials=f"{len(ends)} of {trials}", **best)

    def _write_page(self, results: Mapping[str, Result], schedule: Schedule, meter: Meter) -> None:
        self._page_at = time.monotonic()
        try:
            text = page.page(self.problem, results, schedule, meter.spent, title=self.job.id)
            self.records.store.put(f"{self.records.prefix}/page.html", text.encode())
        except Exception as error:  # noqa: BLE001  # an error of the page must not end a search
            self.job.event("warning", f"search: its page was not written: {error}")

    def _prune(self, results: Mapping[str, Result], schedule: Schedule) -> None:
        """Delete checkpoints that no segment can resume from and that are not among the best."""
        for name in prunable(self.problem, results, schedule):
            if name not in self._pruned:
                self._pruned.add(name)
                with contextlib.suppress(KitaeError):
                    self.records.store.delete_tree(self.records.checkpoints(results[name].run))


def all_failed(results: Mapping[str, Result]) -> TrainingError:
    """Why no trial won. Pure."""
    seen: dict[str, list[str]] = {}
    for result in results.values():
        seen.setdefault(f"{result.status}: {(result.error or '').splitlines()[0] if result.error else ''}", []).append(
            f"trial {result.run.trial}"
        )
    details = [f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}: {why}" for why, names in seen.items()]
    count = len({result.run.trial for result in results.values()})
    return TrainingError(f"all {count} trials of the search failed", details=details)


def prunable(problem: Problem, results: Mapping[str, Result], schedule: Schedule) -> list[str]:
    """Segments whose checkpoints are not needed. Pure."""
    search = problem.spec.search
    assert search is not None
    if search.algorithm == "pbt" and schedule.running:
        return []  # any member may copy any other
    needed = {run.name for run in schedule.running} | {run.source for run in schedule.running if run.source}
    if schedule.winner is not None:
        needed.add(schedule.winner.name)
    latest: dict[int, Result] = {}
    for result in results.values():
        if result.status == "ok" and not result.run.again:
            before = latest.get(result.run.trial)
            if before is None or result.run.rung > before.run.rung:
                latest[result.run.trial] = result
    by_rung: dict[int, list[Result]] = {}
    for result in latest.values():
        by_rung.setdefault(result.run.rung, []).append(result)
    best = sorted(latest.values(), key=lambda r: (-r.run.rung, r.value(search.metric), r.run.trial))
    needed |= {result.run.name for result in best[: search.finalists]}
    kept = best[: search.checkpoints_to_keep]
    if schedule.sampling:
        for rung, results_there in by_rung.items():
            places = search.trials // search.reduction ** (rung + 1) + search.reduction
            ranked = sorted(results_there, key=lambda r: (r.value(search.metric), r.run.trial))
            kept += ranked[:places]
    again = {name for name, result in results.items() if result.run.again} if schedule.running else set()
    needed |= again
    kept = sorted(kept, key=lambda r: (-r.run.rung, r.value(search.metric), r.run.trial))
    stored = sum(results[name].stored_bytes for name in needed if name in results)
    for result in kept:  # the best first, while storage lasts
        if result.run.name not in needed:
            stored += result.stored_bytes
            if search.storage_gib is not None and stored > search.storage_gib * 2**30:
                break
            needed.add(result.run.name)
    return sorted(set(results) - needed)


def warm_points(store: Store, problem: Problem, job_id: str) -> tuple[Params, ...]:
    """Winners of the newest searches on the same base and task whose values are in this one's space."""
    search = problem.spec.search
    assert search is not None
    if not search.warm_start or search.algorithm in ("grid", "pbt"):
        return ()
    found: list[Params] = []
    for record in jobs.list_jobs(store)[:_SEARCHES_READ]:
        if record.id == job_id or not record.spec.get("search"):
            continue
        for name in store.list_dirs(f"jobs/{record.id}/search/"):
            records = SearchRecords(store, f"jobs/{record.id}/search/{name}")
            with contextlib.suppress(ObjectNotFound):
                other = records.problem()
                winner = decide.replay(other, records.results(), records.stopped()).winner
                alike = (other.spec.base_model, other.spec.task, other.spec.training.method) == (
                    problem.spec.base_model, problem.spec.task, problem.spec.training.method,
                )  # fmt: skip
                if winner and alike and sampling.fits(problem.space, winner.params) and winner.params not in found:
                    found.append(winner.params)
    return tuple(found[:_WARM])
