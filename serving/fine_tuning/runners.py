"""The runners of jobs, as their launcher tells of them: believed for a moment, told to whoever waits, stopped for good.

Owns every call of the launcher that the service makes, and what follows where it does not answer. Does not know what is
to be done about a job; that is `lifecycle`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ray_jobs import jobs
from ray_jobs.errors import MachineError, RequestTooLarge, UnknownQueue
from ray_jobs.jobs import JobRecord
from ray_jobs.launch.launcher import UNKNOWN, UNREACHABLE, Launcher, Needs, Runner
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.records import ApiJob
from serving.http.errors import ApiError, bad_request

logger = logging.getLogger(__name__)

_BELIEVED_S = 1.5
_WAITING_TOLD_EVERY_S = 60.0


@dataclass
class Runners:
    """See the module. Safe to use from several threads."""

    store: Store
    launcher: Launcher
    now: Callable[[], float]
    _known: dict[str, Runner] | None = field(default_factory=dict)
    _asked_at: float = 0.0
    _answered_at: float = 0.0
    _told: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By job: what it waits for, as told last, and when."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def must_fit(self, spec: JobSpec) -> None:
        """ApiError 400 for a job that no state of the cluster could ever start, or whose team has no place there."""
        try:
            self.launcher.check(Needs.of(spec))
        except RequestTooLarge as error:
            details = [{"param": "compute", "message": detail} for detail in error.details]
            message = f"{error.message}: {'; '.join(error.details)}"
            raise ApiError(400, message, param="compute", code="job_too_large", details=details) from error
        except UnknownQueue as error:
            raise bad_request(error.message, param="team", code="no_queue") from error
        except MachineError as error:  # whether it fits is seen once it is launched
            logger.warning("the launcher cannot tell what fits: %s", error)

    def newest(self, api: ApiJob, *, fresh: bool = False) -> Runner:
        """Of a job's newest launch. `fresh`: as the launcher sees it now."""
        if api.closed is not None or api.launch is None:
            return UNKNOWN
        found = self._all(since=api.launch.at, fresh=fresh)
        return UNREACHABLE if found is None else found.get(api.runner_id(api.launch), UNKNOWN)

    def start(self, api: ApiJob) -> None:
        """The newest launch's; nothing where it is started already. MachineError."""
        newest = api.launch
        assert newest is not None
        arguments = ["resume", api.job_id, "--launched"]
        if newest.resumes is not None:
            arguments += ["--paused-at", newest.resumes]
            # The one that was paused may wait in a queue still; begun later, it would take the job from this one.
            for older in api.launches[-2:-1]:
                self.launcher.stop(api.runner_id(older))
        needs = Needs.of(JobSpec.model_validate(api.spec))
        try:
            self.launcher.launch(api.runner_id(newest), arguments, {"KITAE_STORE": self.store.uri()}, needs)
        finally:  # it may have been done, also where the answer was lost
            self._asked_at = 0.0
            # Somebody may have ended the job between the last look and the launch, and found no runner to stop.
            if jobs.load(self.store, api.job_id).over():
                self.launcher.stop(api.runner_id(newest))

    def stop_for_good(self, api: ApiJob, job: JobRecord) -> None:
        """The newest launch's, of a job that is over. MachineError; after a long time without an answer it is left."""
        assert api.launch is not None
        try:
            self.launcher.stop(api.runner_id(api.launch))
        except MachineError:
            ended = job.finished_at or job.created_at
            if self.now() - ended.timestamp() < lifecycle.SILENCE_PATIENCE_S:
                raise
            logger.warning("job %s is closed, and its runner could not be stopped", api.id)

    def tell_waiting(self, api: ApiJob, message: str | None) -> None:
        """An event of the job, once for a message, and not more often than people want to read."""
        last, at = self._told.get(api.id, ("", float("-inf")))
        if message is None or message == last or self.now() - at < _WAITING_TOLD_EVERY_S:
            return
        jobs.note_changed(self.store, api.job_id, message, every_s=_WAITING_TOLD_EVERY_S, now_s=self.now())
        self._told[api.id] = (message, self.now())

    def forget(self, api: ApiJob) -> None:
        """The job is closed."""
        self._told.pop(api.id, None)

    def _all(self, since: float, *, fresh: bool) -> dict[str, Runner] | None:
        """Every runner, as the launcher told after `since` and at most a moment ago. None: it does not answer."""
        with self._lock:
            now = self.now()
            # Of what began or ended while the launcher answered, the answer may know nothing.
            if fresh or self._asked_at < since or now - self._answered_at > _BELIEVED_S:
                try:
                    self._known = self.launcher.runners(f"{records.KIND}-", fresh=fresh)
                except MachineError as error:
                    logger.warning("runners cannot be looked at: %s", error)
                    self._known = None
                self._asked_at, self._answered_at = now, self.now()
            return self._known
