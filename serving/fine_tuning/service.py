"""The jobs of every team: created once, watched, and brought on their way.

Any number of processes may do this on the same store at once, and any of them may die at any moment: each step is a
conditional write or can be done twice, and what was begun is found by its marker and gone on with (`tick`).

A little over 400 lines, so that a job's whole way is read in one place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ray_jobs import jobs
from ray_jobs.digests import json_digest
from ray_jobs.errors import JobError, KitaeError, MachineError, ObjectNotFound
from ray_jobs.jobs import JobRecord
from ray_jobs.launch.launcher import Launcher, Runner
from ray_jobs.registry import catalogue
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from serving.files.stored_files import Files
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.answers import as_wire, checkpoints_of, dry_run, event_of, result_file_id
from serving.fine_tuning.lifecycle import Close, Start, Stop, Verdict
from serving.fine_tuning.records import ApiJob, Closed
from serving.fine_tuning.request import Resolved, resolve
from serving.fine_tuning.runners import Runners
from serving.http import openai_types as wire
from serving.http.errors import ApiError, bad_request
from serving.http.ids import made_at_s, new_id
from serving.http.paging import page

logger = logging.getLogger(__name__)

_STEPS_AT_ONCE = 4


class Owner(Protocol):
    """Who asks; `serving.access.auth.Caller`."""

    @property
    def key_id(self) -> str: ...
    @property
    def team(self) -> str: ...
    @property
    def admin(self) -> bool: ...


@dataclass(frozen=True)
class Seen:
    """A job, as its records and its launcher showed it a moment ago."""

    api: ApiJob
    job: JobRecord | None
    verdict: Verdict


@dataclass
class FineTuning:
    """See the module."""

    store: Store
    files: Files
    launcher: Launcher
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sections of a job file that every job begins with."""
    when_over: Callable[[ApiJob, JobRecord, Verdict], None] = lambda *_: None
    """Called once or more when a job has ended; what it does must be done once."""
    now: Callable[[], float] = time.time
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when there is something to do before the next tick."""
    looked_at_once: int = 8
    """Jobs that a tick looks at at the same time; each waits for the store several times."""
    runners: Runners = field(init=False)

    def __post_init__(self) -> None:
        self.runners = Runners(self.store, self.launcher, self.now)

    # ---- what the routes ask -------------------------------------------------------------------------------------

    def create(
        self, body: wire.CreateJob, owner: Owner, *, key: str | None, retried: bool, most_open: int | None
    ) -> wire.Job:
        """Make a job, or answer with the one that this request has made. ApiError for what is wrong with it."""
        team = self._team_of(body, owner)
        request = _fingerprint(body, team)
        if not body.dry_run:
            made = records.made_before(self.store, team, key, request, retried=retried, now_s=self.now())
            if made is not None and (there := records.find(self.store, team, made)) is not None:
                return self._as_wire(self._advance(there))
        identifier = new_id(records.KIND, now_s=self.now())
        resolved = self._resolve(body, team, identifier)
        self.runners.must_fit(resolved.spec)
        if body.dry_run:
            return dry_run(self._api_job(body, owner, team, identifier, resolved), resolved, self._rows_of(body, team))
        if key is not None:
            claimed = records.claim_by_key(self.store, team, key, request, identifier)
        else:
            claimed = records.claim_by_content(self.store, team, request, identifier, retried=retried, now_s=self.now())
        if claimed != identifier:
            there = records.find(self.store, team, claimed)
            if there is not None:
                return self._as_wire(self._advance(there))
            identifier, resolved = claimed, self._resolve(body, team, claimed)
        if most_open is not None:
            records.take_place(self.store, team, owner.key_id, identifier, most_open, self.now())
        records.mark_open(self.store, team, owner.key_id, identifier)
        api = records.put_new(self.store, self._api_job(body, owner, team, identifier, resolved))
        self._create_job(api)
        self.wake.set()
        return self._as_wire(self._look(api))

    def get(self, team: str, identifier: str) -> wire.Job:
        return self._as_wire(self._advance(records.load(self.store, team, identifier)))

    def page(
        self, team: str, *, limit: int, after: str | None, metadata: Mapping[str, str]
    ) -> tuple[list[wire.Job], bool]:
        def read(identifier: str) -> wire.Job | None:
            api = records.find(self.store, team, identifier)
            if api is None or any((api.metadata or {}).get(key) != value for key, value in metadata.items()):
                return None
            seen = self._look(api)
            if seen.verdict.over and api.closed is None:
                seen = self._advance(api)  # nobody is told of an end before it is written down
            return self._as_wire(seen)

        return page(records.ids(self.store, team), read, limit=limit, after=after)

    # `retried`: the client asks again, for an answer that it did not get; then what was done is the answer.

    def cancel(self, team: str, identifier: str, *, retried: bool = False) -> wire.Job:
        seen = self._advance(records.load(self.store, team, identifier))
        if retried and seen.verdict.status == "cancelled":
            return self._as_wire(seen)
        api = self._changeable(seen, "cancelled", "running", "queued", "validating_files", "paused")
        return self._told(api, jobs.request_cancel, "cancelled on request")

    def pause(self, team: str, identifier: str, *, retried: bool = False) -> wire.Job:
        seen = self._advance(records.load(self.store, team, identifier))
        if retried and seen.verdict.status == "paused":
            return self._as_wire(seen)
        api = self._changeable(seen, "paused", "running", "queued", "validating_files")
        ended = None if api.launch is None else api.launch.resumes
        return self._told(api, partial(jobs.request_pause, ended=ended), "paused on request")

    def resume(self, team: str, identifier: str, *, retried: bool = False) -> wire.Job:
        seen = self._advance(records.load(self.store, team, identifier))
        if retried and seen.verdict.status != "paused" and any(launch.resumes for launch in seen.api.launches):
            return self._as_wire(seen)
        api = self._changeable(seen, "resumed", "paused")
        job = jobs.load(self.store, api.job_id)
        api = records.update(self.store, api, lambda old: lifecycle.resumed(old, job, self.now()))
        jobs.note(self.store, api.job_id, "info", "resumed on request")
        self.wake.set()
        return self._as_wire(self._advance(api))

    def events(self, team: str, identifier: str, *, limit: int, after: str | None) -> tuple[list[wire.Event], bool]:
        api = records.load(self.store, team, identifier)
        prefix = f"ftevent-{api.digits}-"

        def read(event_id: str) -> wire.Event | None:
            return event_of(jobs.event(self.store, api.job_id, event_id.removeprefix(prefix)), event_id)

        names = jobs.event_names(self.store, api.job_id)
        return page([prefix + name for name in names], read, limit=limit, after=after)

    def checkpoints(
        self, team: str, identifier: str, *, limit: int, after: str | None
    ) -> tuple[list[wire.Checkpoint], bool]:
        seen = self._advance(records.load(self.store, team, identifier))
        found = {item.id: item for item in checkpoints_of(seen.api, seen.job)}
        return page(sorted(found), lambda key: found[key], limit=limit, after=after)

    def open_with_file(self, team: str, file_id: str) -> list[str]:
        """The team's jobs that are not over and name this file."""
        found = []
        for key_id, identifier in records.all_open(self.store):
            if records.team_of_open(self.store, key_id, identifier) == team:
                api = records.find(self.store, team, identifier)
                if api is None or file_id not in (api.training_file, api.validation_file):
                    continue
                if not self._look(api).verdict.over:
                    found.append(identifier)
        return found

    # ---- bringing them on their way ---------------------------------------------------------------------------------

    def tick(self) -> dict[str, int]:
        """Look at every job that is not over and do what is due. How many there are of each status."""

        def look(found: tuple[str, str]) -> str | None:
            try:
                return self._tick_one(*found)
            except KitaeError as error:
                logger.warning("job %s is looked at again later: %s", found[1], error)
            except Exception:  # one that is broken must not hold up the others
                logger.exception("job %s cannot be looked at", found[1])
            return None

        with ThreadPoolExecutor(self.looked_at_once, thread_name_prefix="jobs") as pool:
            statuses = list(pool.map(look, records.all_open(self.store)))
        return dict(Counter(status for status in statuses if status is not None))

    def _tick_one(self, key_id: str, identifier: str) -> str | None:
        team = records.team_of_open(self.store, key_id, identifier)
        if team is None:
            return None
        api = records.find(self.store, team, identifier)
        if api is None:
            if made_at_s(identifier) < self.now() - records.CUT_OFF_AFTER_S:
                records.unmark_open(self.store, key_id, identifier)
                if records.find(self.store, team, identifier) is not None:  # it was sent again just now
                    records.mark_open(self.store, team, key_id, identifier)
            return None
        if api.closed is not None:
            records.unmark_open(self.store, key_id, identifier)
            return None
        seen = self._advance(api)
        if seen.job is None:  # whoever created it was cut off
            self._create_job(api)
            seen = self._advance(api)
        return seen.verdict.status

    def _advance(self, api: ApiJob) -> Seen:
        """Do what is due for one job, and look at it."""
        seen, runner = self._look_closely(api)
        for _ in range(_STEPS_AT_ONCE):
            action = lifecycle.decide(seen.api, seen.job, runner, self.now())
            if seen.job is not None:
                self.runners.tell_waiting(seen.api, lifecycle.waits_for(seen.api, seen.job, runner))
            if lifecycle.takes_for_lost(action, seen.api, seen.job):
                # Two looks before a runner is taken for lost: the first may be a moment old.
                seen, runner = self._look_closely(seen.api, anew=True)
                action = lifecycle.decide(seen.api, seen.job, runner, self.now())
            if action is None:
                return seen
            try:
                api = self._act(seen, action)
            except MachineError as error:
                logger.warning("job %s: %s", api.id, error)
                if isinstance(action, Start):
                    self.runners.tell_waiting(seen.api, f"waiting: its runner cannot be started: {error.message}")
                return seen
            if isinstance(action, Stop):
                return seen
            seen, runner = self._look_closely(api)
        return seen

    def _act(self, seen: Seen, action: Start | Stop | Close) -> ApiJob:
        api, job = seen.api, seen.job
        if isinstance(action, Stop):
            self.launcher.stop(api.runner_id(action.launch))
            return api
        if isinstance(action, Close):
            assert job is not None
            return self._close(api, job, action.verdict)
        launch = action.launch
        if action.is_new:

            def add(old: ApiJob) -> ApiJob:
                # Another process may have been as quick; then its launch is the one.
                known = len(old.launches) >= launch.number or old.closed is not None
                return old if known else old.model_copy(update={"launches": (*old.launches, launch)})

            api = records.update(self.store, api, add)
            if launch in api.launches and action.why:
                message = f"{action.why}; a new one goes on from the last checkpoint"
                jobs.note(self.store, api.job_id, "warning", message)
            elif launch in api.launches and launch.number == 1:
                jobs.note(self.store, api.job_id, "info", "files validated, job queued")
        if api.launch is not None and api.closed is None:
            self.runners.start(api)
        return api

    def _close(self, api: ApiJob, job: JobRecord, verdict: Verdict) -> ApiJob:
        """Everything that follows from a job's end, in an order in which each may be done again."""
        if verdict.error is not None and verdict.error.code == lifecycle.RUNNER_FAILED and api.launch is not None:
            self.launcher.stop(api.runner_id(api.launch))  # it would wait for ever
        if not job.over():  # its runner was lost: the record does not say so
            job = jobs.give_up(self.store, api.job_id, verdict.error.message if verdict.error else "lost")
            if job.status != verdict.status:  # it ended just now, by itself
                return api
        if api.launch is not None and not lifecycle.has_begun(api, job):
            self.runners.stop_for_good(api, job)  # nobody else ends it
        finished_at = int((job.finished_at or job.cancelled_at or job.created_at).timestamp())
        if (csv_key := (job.result or {}).get("metrics_csv")) is not None and verdict.status == "succeeded":
            with suppress(ObjectNotFound):
                content = self.store.get(csv_key)
                self.files.put_result(api.team, result_file_id(api, finished_at), "step_metrics.csv", content)
        self.when_over(api, job, verdict)
        closed = Closed(status=verdict.status, finished_at=finished_at, error=verdict.error)
        api = records.update(
            self.store, api, lambda old: old if old.closed is not None else old.model_copy(update={"closed": closed})
        )
        records.unmark_open(self.store, api.key_id, api.id)
        self.runners.forget(api)
        return api

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _look(self, api: ApiJob) -> Seen:
        return self._look_closely(api)[0]

    def _look_closely(self, api: ApiJob, *, anew: bool = False) -> tuple[Seen, Runner]:
        """The launcher first, then the record; see `lifecycle`."""
        runner = self.runners.newest(api, fresh=anew)
        try:
            job = jobs.load(self.store, api.job_id)
        except JobError:
            job = None
        return Seen(api, job, lifecycle.status_of(api, job, runner)), runner

    def _team_of(self, body: wire.CreateJob, owner: Owner) -> str:
        if body.team is None or body.team == owner.team or owner.admin:
            return body.team or owner.team
        raise ApiError(
            403, f"this key is of team {owner.team!r}, not of {body.team!r}", param="team", code="wrong_team"
        )

    def _resolve(self, body: wire.CreateJob, team: str, identifier: str) -> Resolved:
        bases = {entry.name: entry for entry in catalogue.entries(self.store)}
        training = self.files.find(team, body.training_file)
        validation = None if body.validation_file is None else self.files.find(team, body.validation_file)
        found = [record for record in (training, validation) if record is not None]
        return resolve(
            body,
            identifier=identifier,
            team=team,
            entry=bases.get(body.model),
            training=training,
            validation=validation,
            address_of={record.id: self.store.uri(record.key) for record in found},
            bases=bases,
            defaults=self.defaults,
        )

    def _rows_of(self, body: wire.CreateJob, team: str) -> dict[str, Any]:
        record = self.files.get(team, body.training_file)
        return {} if record.report is None else record.report.model_dump(mode="json")

    def _api_job(self, body: wire.CreateJob, owner: Owner, team: str, identifier: str, resolved: Resolved) -> ApiJob:
        return ApiJob(
            id=identifier,
            team=team,
            key_id=owner.key_id,
            created_at=int(made_at_s(identifier)),
            model=body.model,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=resolved.spec.training.seed,
            metadata=body.metadata,
            integrations=None,
            method=resolved.method,
            hyperparameters=resolved.hyperparameters,
            spec=resolved.spec.model_dump(mode="json"),
            job_id=resolved.spec.job_id,
        )

    def _create_job(self, api: ApiJob) -> None:
        jobs.note_created(self.store, api.job_id, f"created fine-tuning job {api.id}")
        jobs.create(self.store, JobSpec.model_validate(api.spec))

    def _changeable(self, seen: Seen, what: str, *statuses: str) -> ApiJob:
        if seen.verdict.status not in statuses:
            message = f"{seen.api.id} is {seen.verdict.status} and cannot be {what}"
            raise bad_request(message, code="invalid_state")
        if seen.job is None:
            self._create_job(seen.api)
        return seen.api

    def _told(self, api: ApiJob, request: Callable[[Store, str], JobRecord], message: str) -> wire.Job:
        try:
            request(self.store, api.job_id)
        except JobError as error:
            raise bad_request(error.message, code="invalid_state") from error
        jobs.note(self.store, api.job_id, "info", message)
        self.wake.set()
        return self._as_wire(self._advance(api))

    def _as_wire(self, seen: Seen) -> wire.Job:
        return as_wire(seen.api, seen.job, seen.verdict)


def _fingerprint(body: wire.CreateJob, team: str) -> str:
    try:
        document = body.model_dump(mode="json", exclude_unset=True)
    except ValueError as error:  # pydantic's own limit
        raise bad_request(f"the body cannot be read: {error}") from error
    return json_digest({"body": document, "team": team}, 32)
