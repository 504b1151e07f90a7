"""Caches runner states (TTL 1.5 s) and starts and stops runners.

Owns every call of the launcher and the handling of its failures. Does not decide what happens to a job (`lifecycle`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ray_jobs import jobs
from ray_jobs.errors import MachineError, PriorityTooHigh, RequestTooLarge, UnknownQueue
from ray_jobs.jobs.attempts import ends
from ray_jobs.launch.launcher import UNKNOWN, UNREACHABLE, Launcher, Needs, Runner
from ray_jobs.storage import Store
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.reported import CheckedRecord
from serving.http.errors import ApiError, bad_request

logger = logging.getLogger(__name__)

_CACHE_TTL_S = 1.5
_FRESH_TTL_S = 0.5
_REPORT_INTERVAL_S = 60.0


@dataclass
class Runners:
    """The runners of one launcher. Thread-safe."""

    store: Store
    launcher: Launcher
    now: Callable[[], float]
    _known: dict[str, Runner] | None = field(default_factory=dict)
    _asked_at: float = 0.0
    _answered_at: float = 0.0
    _is_fresh: bool = False
    _started: dict[str, float] = field(default_factory=dict)
    """Runner id → when this process started it, in Unix seconds."""
    _reported: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Job id → (reason for waiting reported last, when)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check_fits(self, api: ApiJob) -> None:
        """Raise ApiError 400 for a job that the cluster can never start, or whose team has no queue or may not use its
        priority."""
        try:
            self.launcher.check(Needs.of(api.job_spec(), api.job_id))
        except RequestTooLarge as error:
            details = [{"param": "compute", "message": detail} for detail in error.details]
            message = f"{error.message}: {'; '.join(error.details)}"
            raise ApiError(400, message, param="compute", code="job_too_large", details=details) from error
        except UnknownQueue as error:
            raise bad_request(error.message, param="team", code="no_queue") from error
        except PriorityTooHigh as error:
            raise bad_request(error.message, param="priority", code="priority_too_high") from error
        except MachineError as error:  # checked again when the job is launched
            logger.warning("the launcher cannot check what fits: %s", error)

    def newest(self, api: ApiJob, *, fresh: bool = False) -> Runner:
        """Return the runner of a job's newest launch. `fresh`: bypass the cache."""
        if api.closed is not None or api.launch is None:
            return UNKNOWN
        runner_id = api.runner_id(api.launch)
        if not fresh and self.now() - self._started.get(runner_id, float("-inf")) <= _CACHE_TTL_S:
            return Runner("pending")  # a list for each start would be as many lists as jobs after an outage
        found = self._all(since=api.launch.at, fresh=fresh)
        return UNREACHABLE if found is None else found.get(runner_id, UNKNOWN)

    def start(self, api: ApiJob) -> None:
        """Start the newest launch's runner; does nothing if it runs already. Raises MachineError."""
        newest = api.launch
        assert newest is not None
        arguments = ["resume", api.job_id, "--launched"]
        if newest.resumes is not None:
            arguments += ["--paused-at", newest.resumes]
            # The paused runner may still be queued; starting later, it would take the job from the new one.
            for older in api.launches[-2:-1]:
                self.launcher.stop(api.runner_id(older))
        needs = Needs.of(api.job_spec(), api.job_id)
        try:
            environment = {"KITAE_STORE": self.store.uri(), "KITAE_TEAM": api.team}
            self.launcher.launch(api.runner_id(newest), arguments, environment, needs)
            self._started[api.runner_id(newest)] = self.now()
        except MachineError:
            self._asked_at = 0.0  # the launch may have succeeded with its answer lost
            raise
        finally:
            # The job may have ended since it was last read, when there was no runner to stop.
            record = jobs.load(api.workspace(self.store), api.job_id)
            if record.over() and not ends(record, newest.resumes):
                self.launcher.stop(api.runner_id(newest))

    def stop_after_end(self, api: ApiJob, job: CheckedRecord) -> None:
        """Stop the newest launch's runner of an ended job. Raises MachineError, except after
        `lifecycle.UNREACHABLE_PATIENCE_S`, when the runner is abandoned."""
        assert api.launch is not None
        try:
            self.launcher.stop(api.runner_id(api.launch))
        except MachineError:
            ended = job.finished_at or job.created_at
            if self.now() - ended.timestamp() < lifecycle.UNREACHABLE_PATIENCE_S:
                raise
            logger.warning("job %s is closed, but its runner could not be stopped", api.id)

    def report_waiting(self, api: ApiJob, message: str | None) -> None:
        """Add an event with the reason for waiting: once for each message, at most once a minute."""
        last, at = self._reported.get(api.id, ("", float("-inf")))
        if message is None or message == last or self.now() - at < _REPORT_INTERVAL_S:
            return
        jobs.note_changed(api.workspace(self.store), api.job_id, message, every_s=_REPORT_INTERVAL_S, now_s=self.now())
        self._reported[api.id] = (message, self.now())

    def forget(self, api: ApiJob) -> None:
        """Drop the state of a closed job."""
        self._reported.pop(api.id, None)
        for launch in api.launches:
            self._started.pop(api.runner_id(launch), None)

    def by_job(self) -> dict[str, Runner] | None:
        """Return the newest runner of every job by the job's id. None: the launcher is unreachable."""
        found = self._all(0.0, fresh=False)
        if found is None:
            return None
        newest: dict[str, tuple[int, Runner]] = {}
        for runner_id, runner in found.items():
            identifier, _, number = runner_id.rpartition("-")
            if number.isdecimal() and int(number) >= newest.get(identifier, (0, runner))[0]:
                newest[identifier] = int(number), runner
        return {identifier: runner for identifier, (_, runner) in newest.items()}

    def _all(self, since: float, *, fresh: bool) -> dict[str, Runner] | None:
        """Return all runners, read after `since` and at most `_CACHE_TTL_S` ago. None: the launcher is unreachable."""
        with self._lock:
            now = self.now()
            # After an outage of the cluster a tick confirms many losses: they share an answer of this moment.
            confirmed = fresh and self._is_fresh and now - self._asked_at <= _FRESH_TTL_S
            # Measured from the start of the call: the answer may miss changes made while it was under way.
            if (fresh and not confirmed) or self._asked_at < since or now - self._answered_at > _CACHE_TTL_S:
                try:
                    self._known = self.launcher.runners(f"{records.KIND}-", fresh=fresh)
                except MachineError as error:
                    logger.warning("the launcher cannot list its runners: %s", error)
                    self._known = None
                self._asked_at, self._answered_at, self._is_fresh = now, self.now(), fresh
            return self._known
