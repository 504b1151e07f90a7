"""One tick over the open jobs: carries out the due actions of those that `open_jobs` chooses.

Owns what happens to a marker whose job's record is missing, unreadable or closed. Does not decide a job's next action
(`lifecycle`) nor carry it out (`service`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

from ray_jobs.errors import KitaeError
from ray_jobs.launch.launcher import Runner
from ray_jobs.storage import Store
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.lifecycle import ReportedStatus
from serving.fine_tuning.open_jobs import OpenJobs
from serving.fine_tuning.records import ApiJob, OpenJob
from serving.fine_tuning.reported import CheckedRecord
from serving.fine_tuning.responses import to_openai
from serving.fine_tuning.runners import Runners
from serving.http.ids import created_at_s
from serving.http.openai_types import FineTuningJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObservedJob:
    """A job's records and status at one moment."""

    api: ApiJob
    job: CheckedRecord | None
    """None: not written yet, or unreadable."""
    runner: Runner
    reported: ReportedStatus
    unreadable: bool = False

    def to_openai(self) -> FineTuningJob:
        return to_openai(self.api, self.job, self.reported)


@dataclass
class Tick:
    """The ticks of one process."""

    store: Store
    runners: Runners
    now_s: Callable[[], float]
    advance: Callable[[ApiJob], ObservedJob]
    """Carries out a job's due actions."""
    create_job: Callable[[ApiJob], None]
    """Writes a job's own record, if it has none."""
    _: KW_ONLY
    at_once: int
    """Jobs reconciled concurrently; each waits for the store several times."""
    open_jobs: OpenJobs = field(default_factory=OpenJobs)

    def run(self) -> dict[str, int]:
        """Returns the number of open jobs by status.

        Costs one request to the launcher, one to the store per 1,000 open jobs, and a few for each chosen job.
        """
        chosen = self.open_jobs.choose(records.open_jobs(self.store), self.runners.by_job())
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="jobs") as pool:
            list(pool.map(self._reconcile_safely, chosen))
        return self.open_jobs.statuses()

    def _reconcile_safely(self, job: OpenJob) -> None:
        observed = None
        team = self.open_jobs.team(job.id)
        try:
            team = team or records.team_of_open(self.store, job.key_id, job.id)
            observed = None if team is None else self._reconcile(job, team)
        except KitaeError as error:
            logger.warning("job %s is reconciled again later: %s", job.id, error)
        except Exception:  # one broken job must not block the others
            logger.exception("job %s cannot be reconciled", job.id)
        pending = observed is None or lifecycle.is_pending(observed.api, observed.job, observed.runner)
        status = None if observed is None else observed.reported.status
        self.open_jobs.looked(job.id, team, status, pending=pending)

    def _reconcile(self, job: OpenJob, team: str) -> ObservedJob | None:
        """None: there is nothing to reconcile, or not yet."""
        api = records.find(self.store, team, job.id)
        if api is None and records.exists(self.store, team, job.id):
            return None  # unreadable now: a newer version of Kitae may have written it
        if api is None:
            if max(job.marked_s, created_at_s(job.id)) < self.now_s() - records.ORPHAN_AFTER_S:
                records.unmark_open(self.store, job.key_id, job.id)
                if records.find(self.store, team, job.id) is not None:  # its create was repeated just now
                    records.mark_open(self.store, team, job.key_id, job.id)
            return None
        if api.closed is not None:
            records.unmark_open(self.store, job.key_id, job.id)
            return None
        observed = self.advance(api)
        if observed.job is None and not observed.unreadable:  # its create was interrupted
            self.create_job(api)
            observed = self.advance(api)
        return observed
