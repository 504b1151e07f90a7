"""The fine-tuning service: creates, reads, changes and reconciles the jobs of all teams.

Carries out the actions that `lifecycle` decides. Any number of processes may run it on one store, and any may be killed
at any time: each step is a conditional write or idempotent, and `reconcile` finds open jobs by their markers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_jobs import jobs, registry
from ray_jobs.digests import json_digest
from ray_jobs.errors import CorruptObject, JobError, MachineError
from ray_jobs.launch.launcher import Launcher
from ray_jobs.registry import catalogue
from ray_jobs.storage import Store
from ray_jobs.tenancy.prices import Prices
from serving.access.auth import Caller
from serving.files.stored_files import Files
from serving.fine_tuning import budget, lifecycle, records, uses
from serving.fine_tuning.job_end import ending_of, publish_job_end
from serving.fine_tuning.lifecycle import Action, CloseJob, ReportedStatus, StartRunner, StopRunner
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.reported import CheckedRecord, checked, metrics_file
from serving.fine_tuning.reported import load as load_reported
from serving.fine_tuning.request import resolve
from serving.fine_tuning.responses import checkpoints_of, dry_run, event_to_openai, result_file_id
from serving.fine_tuning.runners import Runners
from serving.fine_tuning.tick import ObservedJob, Tick
from serving.http.errors import ApiError, bad_request
from serving.http.ids import Page, after_in, new_id, page
from serving.http.openai_types import CreateFineTuningJob, FineTuningJob, FineTuningJobCheckpoint, FineTuningJobEvent

logger = logging.getLogger(__name__)

_STEPS_AT_ONCE = 4


@dataclass
class FineTuningService:
    """The fine-tuning jobs of one store and launcher. Thread-safe."""

    store: Store
    files: Files
    launcher: Launcher
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Default sections of every job file."""
    offers_wandb: bool = False
    """Whether jobs have a key for Weights & Biases."""
    prices: Prices | None = None
    """What budgets count with. None: there are none."""
    now: Callable[[], float] | None = None
    """Unix seconds; None: by the store's clock."""
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when `reconcile` is due at once."""
    parallel_jobs: int = 8
    """Jobs reconciled concurrently; each waits for the store several times."""
    runners: Runners = field(init=False)
    tick: Tick = field(init=False)

    def __post_init__(self) -> None:
        self.runners = Runners(self.store, self.launcher, self._now_s)
        self.tick = Tick(
            self.store, self.runners, self._now_s, self._reconcile, self._create_job, at_once=self.parallel_jobs
        )

    # ---- requests ------------------------------------------------------------------------------------------------

    def create(self, body: CreateFineTuningJob, caller: Caller, *, key: str | None, retried: bool) -> FineTuningJob:
        """Create a job, or return the one that this request has created. Raises ApiError for an invalid request.

        `key`: the Idempotency-Key.
        """
        team = body.team or caller.team
        if team != caller.team and not caller.admin:
            message = f"this key is of team {caller.team!r}, not of {team!r}"
            raise ApiError(403, message, param="team", code="wrong_team")
        request = _request_digest(body, team)
        if not body.dry_run:
            made = records.claimed_before(self.store, team, key, request, retried=retried, now_s=self._now_s())
            if made is not None and (existing := records.find(self.store, team, made)) is not None:
                return self._reconcile(existing).to_openai()
        api = self._resolve(body, team, caller.key_id, new_id(records.KIND, now_s=self._now_s()))
        self.runners.check_fits(api)
        rows = self.files.get(team, body.training_file).report
        assert rows is not None  # `resolve` has refused other files
        if body.dry_run:
            return dry_run(api, rows, budget.check(self.store, api, rows, self.prices, self._now_s()))
        claimed = records.claim(self.store, team, key, request, api.id, retried=retried, now_s=self._now_s())
        if claimed != api.id:
            existing = records.find(self.store, team, claimed)
            if existing is not None:
                return self._reconcile(existing).to_openai()
            api = self._resolve(body, team, caller.key_id, claimed)
        with budget.reserved(self.store, api, rows, self.prices, self._now_s()) as standing:
            self._reserve_slots(api, caller.limits.concurrent_jobs)
            uses.hold(self.store, api, self.files)
            records.mark_open(self.store, team, api.key_id, api.id)
            api = records.put_new(self.store, api)
        self._create_job(api)
        budget.warn(self.store, api, standing)
        self.wake.set()
        return self._observe(api).to_openai()

    def _reserve_slots(self, api: ApiJob, most_of_key: int | None) -> None:
        """Reserve the job's slots of its key and of its team. Raises ApiError 429, and then takes neither."""
        records.reserve_slot(self.store, api.team, api.key_id, api.id, most_of_key, self._now_s())
        try:
            of_team = self.files.quotas.of(api.team).open_jobs
            records.reserve_team_slot(self.store, api.team, api.id, of_team, self._now_s())
        except ApiError:
            if most_of_key is not None:
                records.release_slot(self.store, api.key_id, api.id)
            raise

    def get(self, team: str, identifier: str) -> FineTuningJob:
        return self._reconcile(records.load(self.store, team, identifier)).to_openai()

    def page(self, team: str, *, limit: int, after: str | None, metadata: Mapping[str, str]) -> Page[FineTuningJob]:
        def read(identifier: str) -> FineTuningJob | None:
            api = records.find(self.store, team, identifier)
            if api is None or any((api.metadata or {}).get(key) != value for key, value in metadata.items()):
                return None
            observed = self._observe(api)
            if observed.reported.over and api.closed is None:
                observed = self._reconcile(api)  # an end is reported only once it is recorded
            return observed.to_openai()

        ids = records.listed(self.store, team, self._now_s(), after=after, metadata=metadata)
        return page(ids, read, limit=limit)

    # `retried`: the client repeats an unanswered request; the answer is what the first try did.

    def cancel(self, team: str, identifier: str, *, retried: bool = False) -> FineTuningJob:
        return self._stop(team, identifier, "cancelled", retried=retried)

    def pause(self, team: str, identifier: str, *, retried: bool = False) -> FineTuningJob:
        return self._stop(team, identifier, "paused", retried=retried)

    def _stop(
        self, team: str, identifier: str, wanted: Literal["cancelled", "paused"], *, retried: bool
    ) -> FineTuningJob:
        observed = self._reconcile(records.load(self.store, team, identifier))
        api, reported = observed.api, observed.reported
        if retried and reported.status == wanted:
            return observed.to_openai()
        if reported.over or reported.status == wanted:
            raise _invalid_state(observed, wanted)
        if observed.unreadable:
            return self._stop_unreadable(observed, wanted).to_openai()
        if observed.job is None:
            self._create_job(api)
        try:
            if wanted == "cancelled":
                jobs.request_cancel(api.workspace(self.store), api.job_id)
            else:
                jobs.request_pause(
                    api.workspace(self.store), api.job_id, ended=None if api.launch is None else api.launch.resumes
                )
        except JobError as error:
            raise bad_request(error.message, code="invalid_state") from error
        jobs.note(api.workspace(self.store), api.job_id, "info", f"{wanted} on request")
        self._wake(api)
        return self._reconcile(api).to_openai()

    def _stop_unreadable(self, observed: ObservedJob, wanted: Literal["cancelled", "paused"]) -> ObservedJob:
        """End a job whose record cannot be read, without its record."""
        api = observed.api
        if wanted != "cancelled":
            raise bad_request(f"the record of {api.id} cannot be read: it can only be cancelled", code="invalid_state")
        if api.launch is not None:
            self.launcher.stop(api.runner_id(api.launch))
        return self._reconcile(self._end(api, None, ReportedStatus("cancelled")))

    def resume(self, team: str, identifier: str, *, retried: bool = False) -> FineTuningJob:
        observed = self._reconcile(records.load(self.store, team, identifier))
        resumable = lifecycle.can_resume(observed.reported)
        if retried and not resumable and any(launch.resumes for launch in observed.api.launches):
            return observed.to_openai()
        if not resumable:
            raise _invalid_state(observed, "resumed")
        if observed.reported.over:
            records.mark_open(self.store, team, observed.api.key_id, observed.api.id)
        job = load_reported(self.store, observed.api, self._now_s())
        api = records.update(self.store, observed.api, lambda old: lifecycle.resumed(old, job, self._now_s()))
        jobs.note(api.workspace(self.store), api.job_id, "info", "resumed on request")
        self._wake(api)
        return self._reconcile(api).to_openai()

    def events(self, team: str, identifier: str, *, limit: int, after: str | None) -> Page[FineTuningJobEvent]:
        api = records.load(self.store, team, identifier)
        prefix = f"ftevent-{api.digits}-"

        def read(event_id: str) -> FineTuningJobEvent | None:
            found = jobs.event(api.workspace(self.store), api.job_id, event_id.removeprefix(prefix))
            return None if found is None else event_to_openai(found, event_id, identifier)

        if after is not None and not after.startswith(prefix):
            raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
        before = None if after is None else after.removeprefix(prefix)
        names = jobs.newest_names(api.workspace(self.store), api.job_id, before=before)
        return page((prefix + name for name in names), read, limit=limit)

    def checkpoints(
        self, team: str, identifier: str, *, limit: int, after: str | None
    ) -> Page[FineTuningJobCheckpoint]:
        observed = self._reconcile(records.load(self.store, team, identifier))
        found = {item.id: item for item in checkpoints_of(observed.api, observed.job)}
        return page(after_in(sorted(found), after), lambda key: found[key], limit=limit)

    def open_jobs_using(self, team: str, file_id: str) -> list[str]:
        """List the team's open jobs that read this file."""
        return uses.open_jobs(self.store, team, file_id, self.is_open, self._now_s())

    def is_open(self, api: ApiJob) -> bool:
        """Whether a job has not ended."""
        return not self._observe(api).reported.over

    # ---- reconciling -------------------------------------------------------------------------------------------------

    def reconcile(self) -> dict[str, int]:
        """Carry out the due actions of open jobs; see `Tick`. Returns the number of open jobs by status."""
        return self.tick.run()

    def _reconcile(self, api: ApiJob) -> ObservedJob:
        """Carry out one job's due actions and return its state."""
        observed = self._observe(self._metered(api))
        for _ in range(_STEPS_AT_ONCE):
            action = self._decide(observed)
            if observed.job is not None:
                waits_for = lifecycle.waits_for(observed.api, observed.job, observed.runner)
                self.runners.report_waiting(observed.api, waits_for)
            if lifecycle.assumes_runner_lost(action, observed.api, observed.job):
                # Confirmed without the cache, which may be outdated.
                observed = self._observe(observed.api, fresh=True)
                action = self._decide(observed)
            if action is None:
                return observed
            try:
                api = self._act(observed, action)
            except MachineError as error:
                logger.warning("job %s: %s", api.id, error)
                if isinstance(action, StartRunner):
                    self.runners.report_waiting(observed.api, f"waiting: its runner cannot be started: {error.message}")
                return observed
            if isinstance(action, StopRunner):
                return observed
            observed = self._observe(api)
        return observed

    def _decide(self, observed: ObservedJob) -> Action:
        return lifecycle.decide(observed.api, observed.job, observed.runner, self._now_s())

    def _act(self, observed: ObservedJob, action: StartRunner | StopRunner | CloseJob) -> ApiJob:
        api, job = observed.api, observed.job
        if isinstance(action, StopRunner):
            self.launcher.stop(api.runner_id(action.launch))
            return api
        if isinstance(action, CloseJob):
            return self._close(api, job, action.reported)
        launch = action.launch
        if action.is_new:

            def add(old: ApiJob) -> ApiJob:
                # Another process may have added this launch; then its launch counts.
                known = old.launched >= launch.number or old.closed is not None
                return old if known else old.with_launch(launch)

            api = records.update(self.store, api, add)
            if launch in api.launches and action.reason:
                message = f"{action.reason}; a new one resumes from the last checkpoint"
                jobs.note(api.workspace(self.store), api.job_id, "warning", message)
            elif launch in api.launches and launch.number == 1:
                jobs.note(api.workspace(self.store), api.job_id, "info", "files validated, job queued")
        if api.launch is not None and api.closed is None:
            self.runners.start(api)
        return api

    def _metered(self, api: ApiJob) -> ApiJob:
        """Record a change of the runner's state, from which the job's usage follows."""
        runner, now_s = self.runners.newest(api), self._now_s()
        if lifecycle.metered(api, runner, now_s) is api:
            return api
        return records.update(self.store, api, lambda old: lifecycle.metered(old, runner, now_s))

    def _close(self, api: ApiJob, job: CheckedRecord | None, reported: ReportedStatus) -> ApiJob:
        """Publish a job's end and record it. Every step is idempotent, and recording is last."""
        if reported.error is not None and reported.error.code == lifecycle.RUNNER_FAILED and api.launch is not None:
            self.launcher.stop(api.runner_id(api.launch))  # it would be queued forever
        if api.ending is None and job is not None and not job.over():  # its runner was lost without recording an end
            message = reported.error.message if reported.error else "lost"
            job = checked(jobs.give_up(api.workspace(self.store), api.job_id, message), api, self._now_s())
            if job.status != reported.status:  # the runner ended the job meanwhile
                return api
        if job is not None and api.launch is not None and not lifecycle.has_begun(api, job):
            self.runners.stop_after_end(api, job)  # it has not read that the job has ended
        api = self._end(api, job, reported)
        if api.closed is not None:
            return api
        assert api.ending is not None
        if api.ending.has_result_file and (content := metrics_file(self.store, api)) is not None:
            file_id = result_file_id(api, api.ending.finished_at)
            self.files.put_result(api.team, file_id, "step_metrics.csv", content)
        publish_job_end(self.store, api, api.ending)
        api = records.update(self.store, api, lambda old: old.model_copy(update={"closed": old.closed or old.ending}))
        records.unmark_open(self.store, api.key_id, api.id)
        self.runners.forget(api)
        return api

    def _end(self, api: ApiJob, job: CheckedRecord | None, reported: ReportedStatus) -> ApiJob:
        """Record the end as this replica sees it, unless another has recorded it."""
        if api.ending is not None or api.closed is not None:
            return api
        ending = ending_of(self.store, api, job, reported, self._now_s())
        return records.update(
            self.store, api, lambda old: old if old.ending or old.closed else old.model_copy(update={"ending": ending})
        )

    def _wake(self, api: ApiJob) -> None:
        self.tick.open_jobs.touch(api.id)
        self.wake.set()

    def _now_s(self) -> float:
        return (self.now or self.store.now_s)()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _observe(self, api: ApiJob, *, fresh: bool = False) -> ObservedJob:
        """Read the launcher first, then the record; see `lifecycle`."""
        runner = self.runners.newest(api, fresh=fresh)
        try:
            job: CheckedRecord | None = load_reported(self.store, api, self._now_s())
        except JobError:
            job = None
        except CorruptObject:
            status = lifecycle.status_of_unreadable(api, runner)
            return ObservedJob(api, None, runner, status, unreadable=True)
        return ObservedJob(api, job, runner, lifecycle.status_of(api, job, runner))

    def _resolve(self, body: CreateFineTuningJob, team: str, key_id: str, identifier: str) -> ApiJob:
        named = [self.files.find(team, file_id) for file_id in (body.training_file, body.validation_file) if file_id]
        return resolve(
            body,
            identifier=identifier,
            team=team,
            key_id=key_id,
            files={record.id: record for record in named if record is not None},
            uri=self.store.uri,
            bases={entry.name: entry for entry in catalogue.entries(self.store)},
            defaults=self.defaults,
            offers_wandb=self.offers_wandb,
        )

    def _create_job(self, api: ApiJob) -> None:
        registry.claim_name(api.workspace(self.store), api.id)
        jobs.note_created(api.workspace(self.store), api.job_id, f"created fine-tuning job {api.id}")
        jobs.create(api.workspace(self.store), api.job_spec(), api.job_id)


def _invalid_state(observed: ObservedJob, wanted: str) -> ApiError:
    message = f"{observed.api.id} is {observed.reported.status} and cannot be {wanted}"
    if wanted == "resumed" and observed.reported.status == "failed":
        message += ": it failed by its own error, not by an accident; correct that in a new job"
    return bad_request(message, code="invalid_state")


def _request_digest(body: CreateFineTuningJob, team: str) -> str:
    try:
        document = body.model_dump(mode="json", exclude_unset=True)
    except ValueError as error:  # pydantic's own limit
        raise bad_request(f"the body cannot be read: {error}") from error
    return json_digest({"body": document, "team": team}, 32)
