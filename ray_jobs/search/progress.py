"""What a search shows while it runs: events, the progress display, its page, and which checkpoints it still keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from ray_jobs import jobs
from ray_jobs.errors import KitaeError
from ray_jobs.jobs import Job
from ray_jobs.search import page
from ray_jobs.search.records import Problem, SearchRecords, Unsaved
from ray_jobs.search.rungs import rungs_of, steps_of, trials_of
from ray_jobs.search.schedulers import Places
from ray_jobs.search.standing import Standing, prunable
from ray_jobs.search.stoppers import Meter
from ray_jobs.search.trainables import LIVES
from ray_jobs.sharing.segments import Result, TrialSegment

_PAGE_EVERY_S = 10.0


class SearchProgress(Unsaved, tune.Callback):
    """Follows a search through both of its runs of Tune."""

    def __init__(
        self,
        job: Job,
        records: SearchRecords,
        problem: Problem,
        busy_workers: Callable[[int], int],
        show: Callable[..., None],
        note: Callable[[str], None],
    ) -> None:
        self._job, self._records, self._problem = job, records, problem
        self._show, self._note, self._noted = show, note, set[str]()
        self.results = records.results()
        self.running: dict[str, TrialSegment] = {}
        self._steps: dict[str, int] = {}
        self.meter = Meter(records, self.running, busy_workers)
        self.places = Places(0)
        self.now = Standing()
        self.error: KitaeError | None = None
        """What failed here, which Tune would wrap."""
        self._given_up: set[str] = set()
        self._pruned: set[str] = set()
        self._page_s = 0.0

    # ---- what the trials report -------------------------------------------------------------------------------------

    def report(self, done: float, total: float, unit: str, metrics: dict[str, Any]) -> None:
        """A trial's report while it trains, see `trainables`."""
        run = TrialSegment.model_validate_json(metrics["segment"])
        if run.name not in self.results and run.name not in self._given_up:
            self.running[run.name], self._steps[run.name] = run, int(done)
        note = str(metrics["note"])
        if note and note not in self._noted:
            self._noted.add(note)
            self._note(note)

    # ---- what Tune calls --------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:
        self.places.trials = trials

    def on_trial_result(
        self, iteration: int, trials: Sequence[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        name = result["segment"]
        self.running.pop(name, None)
        if name in self.results:
            return
        with self._kept():
            found = self._records.result(name)
            if found is None:
                self._given_up.add(name)
                return
            self._add(found)
            paused = () if self._problem.search.schedules == "asha" else (Trial.PAUSED,)
            going = (Trial.RUNNING, Trial.PENDING, *paused)
            self._prune({each.config["trial"] for each in trials if each.status in going})

    def on_trial_error(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        """Record as lost what a trial trained whose process ended too often."""
        number, params = trial.config["trial"], trial.config["params"]
        first = TrialSegment(trial=number, rung=0, params=params, until=rungs_of(self._problem, params)[0])
        run = next((run for run in list(self.running.values()) if run.trial == number), first)
        if "segment" in trial.config:
            run = TrialSegment.model_validate(trial.config["segment"])
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "no reason is known"
        last_line = text.strip().split("\n")[-1]
        error = f"its process ended more than {LIVES} times: {last_line}"
        with self._kept():
            self._add(self._records.add(Result(run=run, status="lost", error=error)))

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except KitaeError as error:
            self.error = error
            raise

    def _add(self, result: Result) -> None:
        self.results[result.run.name] = result
        self.running.pop(result.run.name, None)
        self._announce(result)

    # ---- what users see ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show how far the search is, and every few seconds write its page."""
        self._show_steps()
        if time.monotonic() - self._page_s > _PAGE_EVERY_S:
            self._page_s = time.monotonic()
            self._write_page(self.now)

    def finals(self, now: Standing, places: Places) -> None:
        """Sampling is over, and the finalists run."""
        self._given_up = (self._given_up | set(self.running)) - {run.name for run in now.due}
        self.running.clear()
        self.now, self.places = now, places

    def ended(self, now: Standing) -> None:
        """The search is over: write the page's last state, and delete what only a running search needs."""
        self.running.clear()
        self.now = now
        self._show_steps()
        self._write_page(now)
        self._prune(set())

    def _announce(self, result: Result) -> None:
        metric, run = self._problem.search.judge, result.run
        what = f"trial {run.trial}, {'again' if run.again else f'rung {run.rung}'}"
        value = result.measured(metric)
        said = f"{metric} {value:.4f}" if result.status == "ok" and value is not None else result.status
        level: jobs.Level = "info" if result.status == "ok" else "warning"
        facts = {"status": result.status, metric: value, "step": run.until, **run.params}
        self._job.event(level, f"search: {what}: {said}", facts)

    def _show_steps(self) -> None:
        """Show the steps trained, out of those of the trials that began and the first rung of the others."""
        metric, results, running = self._problem.search.judge, dict(self.results), dict(self.running)
        values = [result.value(metric) for result in results.values() if result.status == "ok"]
        ends, trials = {result.run.trial for result in results.values()}, trials_of(self._problem)
        done, left = sum(result.steps for result in results.values()), 0
        for name, run in running.items():
            whole = steps_of(run, results)
            trained = max(0, self._steps.get(name, 0) - run.until + whole)
            done, left = done + trained, left + whole - trained
        begun = ends | {run.trial for run in running.values()}
        left += (trials - len(begun)) * rungs_of(self._problem, {})[0] if self.now.sampling else 0
        best = {f"best_{metric}": abs(min(values))} if values else {}
        self._show(done, done + left, "steps", trials=f"{len(ends)} of {trials}", **best)

    def _write_page(self, now: Standing) -> None:
        try:
            shown = replace(now, running=tuple(self.running.values()))
            text = page.page(self._problem, dict(self.results), shown, self.meter.spent, title=self._job.id)
            self._records.store.put(f"{self._records.prefix}/page.html", text.encode())
        except Exception as error:  # noqa: BLE001  # an error of the page must not end a search
            self._job.event("warning", f"search: its page was not written: {error}")

    def _prune(self, live: set[int]) -> None:
        """Delete checkpoints that no segment can resume from and that are not among the best."""
        now = replace(self.now, running=tuple(self.running.values()))
        for name in prunable(self._problem, self.results, now, live):
            if name not in self._pruned:
                self._pruned.add(name)
                with contextlib.suppress(KitaeError):
                    self._records.store.delete_tree(self._records.checkpoints(self.results[name].run))
