"""A chaos scenario: clients, runners and two API replicas that crash at random requests.

Clients upload, create, read, pause, resume, cancel and delete, with three tries where no response comes, as the
official client does. Runners begin, report, end, fail and vanish. A replica crashes at a random request to the store or
the launcher, before the request is made or before its response arrives. `client_history` records the responses.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ray_jobs.errors import JobError
from ray_jobs.jobs import Job, Launched
from ray_jobs.launch.launcher import Runner
from ray_jobs.storage import Workspace
from serving.files.stored_files import FINE_TUNE
from serving.fine_tuning import records
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.routes.models import delete_model
from tests.serving.api_harness import BASE, add_base, begin_job, rows, run_job
from tests.serving.api_replica import TEAM, ApiReplica, SingleRunnerLauncher, developer
from tests.serving.client_history import ENDED, ClientHistory
from tests.serving.crash_injector import Crashed, CrashPoint

T = TypeVar("T")


MAX_REQUESTS = 30
"""Requests to store and launcher before a replica crashes, at most."""


TRIES = 3


CSV = b"step,train_loss\n1,2.0\n"


class ChaosScenario:
    """A random sequence of client requests, runner events and reconciliations; deterministic for a seed."""

    def __init__(self, store: Workspace, seed: int, crashes: int) -> None:
        add_base(store)
        self.store = store
        self.random = random.Random(seed)
        self.crashes_left = crashes
        self.history = ClientHistory()
        self.launcher = SingleRunnerLauncher()
        self.runners: dict[str, Job] = {}
        self.zombies: list[Job] = []
        """Runners that run although their launcher reports them as gone."""
        self.clock_s = time.time()
        self.creates = 0
        self.requests = 0
        self.replicas = [self.new_replica(), self.new_replica()]

    def now(self) -> float:
        self.clock_s += 0.001
        return self.clock_s

    def new_replica(self) -> ApiReplica:
        crash_at = self.random.randint(1, MAX_REQUESTS) if self.crashes_left > 0 else None
        crash = CrashPoint(crash_at, answers=self.random.random() < 0.5)
        return ApiReplica(self.store, self.launcher, self.now, crash)

    def ask(self, do: Callable[[ApiReplica, bool], T]) -> T | None:
        """Make a client's request, with retries. None: no response to any try."""
        for number in range(TRIES):
            at = self.random.randrange(len(self.replicas))
            process = self.replicas[at]
            try:
                return do(process, number > 0)
            except Crashed:
                self.requests += process.crash.requests
                self.crashes_left -= 1
                self.replicas[at] = self.new_replica()
        return None

    # ---- clients ---------------------------------------------------------------------------------------------------

    def upload(self) -> None:
        content = rows(12, start=self.random.randrange(10_000))
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)

            def send(process: ApiReplica, retried: bool) -> str:
                path = Path(file.name)
                return process.files.create(TEAM, "key", path, filename="rows.jsonl", purpose=FINE_TUNE).id

            identifier = self.ask(send)
        if identifier is not None:
            assert identifier not in self.history.files
            self.history.files[identifier] = content

    def upload_in_parts(self) -> None:
        content = rows(12, start=self.random.randrange(10_000))
        body = openai_types.CreateUpload(filename="rows.jsonl", purpose=FINE_TUNE, bytes=len(content))
        made = self.ask(lambda process, _: process.uploads.create(TEAM, "key", body, None))
        if made is None:
            return
        parts = []
        for piece in (content[: len(content) // 2], content[len(content) // 2 :]):
            with tempfile.NamedTemporaryFile() as file:
                Path(file.name).write_bytes(piece)
                path = Path(file.name)
                part = self.ask(lambda process, _: process.uploads.add_part(TEAM, made.id, path))  # noqa: B023 called at once
            if part is None:
                return
            parts.append(part.id)
        if self.random.random() < 0.2:
            self.ask(lambda process, _: process.uploads.cancel(TEAM, made.id))
            return
        wanted = openai_types.CompleteUpload(part_ids=parts)
        done = self.ask(lambda process, _: process.uploads.complete(TEAM, made.id, wanted))
        if done is not None:
            assert done.status == "completed"
            assert done.file is not None
            self.history.files[done.file.id] = content

    def usable_files(self) -> list[str]:
        return sorted(set(self.history.files) - self.history.deleted - self.history.maybe_deleted)

    def create(self) -> None:
        files = self.usable_files()
        if not files:
            return
        number = str(self.creates)
        self.creates += 1
        body = openai_types.CreateFineTuningJob(
            model=BASE, training_file=self.random.choice(files), metadata={"number": number}
        )
        key = f"key {number}" if self.random.random() < 0.5 else None
        most = self.random.choice([None, 10_000])
        job = self.ask(lambda process, retried: process.tuning.create(
            body, developer(most), key=key, retried=retried
        ))  # fmt: skip
        if job is None:
            self.history.unanswered.add(number)
            return
        assert job.metadata == {"number": number}
        assert job.id not in self.history.jobs
        self.history.created[number] = job.id
        self.history.record(job)

    def any_job(self) -> str | None:
        return self.random.choice(sorted(self.history.jobs)) if self.history.jobs else None

    def open_job(self) -> str | None:
        """A random job that had not ended in its latest response."""
        found = sorted(name for name, job in self.history.jobs.items() if job.status not in ENDED)
        return self.random.choice(found) if found else None

    def get_job(self) -> None:
        if (identifier := self.any_job()) is not None:
            job = self.ask(lambda process, _: process.tuning.get(TEAM, identifier))
            if job is not None:
                self.history.record(job)

    def change(self, what: Literal["cancel", "pause", "resume"]) -> None:
        if (identifier := self.open_job()) is None:
            return
        tries: list[bool] = []

        def request(process: ApiReplica, retried: bool) -> openai_types.FineTuningJob:
            tries.append(retried)
            answer: openai_types.FineTuningJob = getattr(process.tuning, what)(TEAM, identifier, retried=retried)
            return answer

        try:
            job = self.ask(request)
        except ApiError as error:
            if error.code != "invalid_state":
                raise
            return
        if job is None:
            self.history.maybe_cancelled |= {identifier} if what == "cancel" else set()
            return
        self.history.record(job)
        if what == "cancel":
            assert job.status == "cancelled"
            self.history.end(identifier, "cancelled")
        else:
            # A resume whose answer was lost is repeated, and the job may have ended since.
            expected = ("paused",) if what == "pause" else ("queued", "running", *(ENDED if tries[-1] else ()))
            assert job.status in expected, (what, job)

    def pages(self, fetch: Callable[[ApiReplica, str | None], tuple[list[Any], bool]]) -> list[Any] | None:
        """Read a whole list as the official client's pager does. None: a page got no response."""
        found: list[Any] = []
        more = True
        while more:
            after = found[-1].id if found else None
            answer = self.ask(lambda process, _: fetch(process, after))  # noqa: B023 called at once
            if answer is None:
                return None
            page, more = answer
            assert page or not more, "the pager would never end"
            found += page
        ids = [item.id for item in found]
        assert ids == sorted(set(ids), reverse=True), "not the newest first"
        return found

    def list_jobs(self) -> None:
        found = self.pages(lambda process, after: process.tuning.page(TEAM, limit=5, after=after, metadata={}))
        if found is not None:
            assert set(self.history.created.values()) <= {job.id for job in found}
            for job in found:
                self.history.record(job)

    def list_events(self, identifier: str | None = None) -> None:
        if (identifier := identifier or self.any_job()) is None:
            return
        found = self.pages(lambda process, after: process.tuning.events(TEAM, identifier, limit=4, after=after))
        if found is not None:
            events = [(event.id, event.message) for event in reversed(found)]
            earlier = self.history.events.get(identifier, [])
            assert events[: len(earlier)] == earlier, "an event listed earlier has changed"
            assert not events or events[0][1] == f"created fine-tuning job {identifier}"
            self.history.events[identifier] = events

    def list_files(self) -> None:
        found = self.pages(
            lambda process, after: process.files.page(TEAM, purpose=None, limit=7, after=after, order="desc")
        )
        if found is not None:
            assert set(self.usable_files()) <= {record.id for record in found}
            assert not self.history.deleted & {record.id for record in found}

    def read_file(self) -> None:
        if files := self.usable_files():
            identifier = self.random.choice(files)
            content = self.ask(lambda process, _: b"".join(process.files.content(process.files.get(TEAM, identifier))))
            assert content in (None, self.history.files[identifier])

    def delete_file(self) -> None:
        files = self.usable_files()
        if len(files) < 3:
            return
        identifier = self.random.choice(files)

        def delete(process: ApiReplica, retried: bool) -> bool:
            process.delete_file(identifier, retried)
            return True

        try:
            answered = self.ask(delete)
        except ApiError as error:
            if error.code != "file_in_use":
                raise
            return
        (self.history.deleted if answered else self.history.maybe_deleted).add(identifier)

    def delete_model(self) -> None:
        if models := sorted(self.history.models - self.history.models_deleted):
            name = self.random.choice(models)

            def delete(process: ApiReplica, retried: bool) -> bool:
                delete_model(process.store, name)
                return True

            if self.ask(delete):
                self.history.models_deleted.add(name)

    # ---- background tasks ----------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        self.clock_s += self.random.choice([1, 10, 60, 400])
        self.ask(lambda process, _: process.tuning.reconcile())

    def sweep(self) -> None:
        self.ask(lambda process, _: process.files.sweep(time.time()))
        self.ask(lambda process, _: process.uploads.sweep(time.time()))

    # ---- runners ---------------------------------------------------------------------------------------------------

    def advance_runner(self) -> None:
        """Advance one random runner, or make it fail."""
        alive = sorted(name for name, runner in self.launcher.known.items() if runner.state in ("pending", "running"))
        if not alive:
            return
        runner_id = self.random.choice(alive)
        if self.launcher.known[runner_id].state == "pending":
            self.begin(runner_id)
            return
        what = self.random.choices(["report", "finish", "fail", "die", "vanish", "check"], [40, 25, 8, 8, 8, 11])[0]
        job = self.runners[runner_id]
        if what == "report":
            job.event("info", "a step", {"step": 1}, kind="metrics")
        elif what in ("finish", "fail"):
            self.finish(runner_id.rpartition("-")[0], job, "succeeded" if what == "finish" else "failed")
            self.launcher.known[runner_id] = Runner("ended")
        elif what in ("die", "vanish"):
            if what == "die":
                self.launcher.known[runner_id] = Runner("ended", "killed")
            else:
                del self.launcher.known[runner_id]
            self.zombies += [job] if self.random.random() < 0.5 else []
        else:
            try:
                job.check(fresh=True)
            except JobError as error:
                job.event("warning", str(error))
                self.launcher.known[runner_id] = Runner("ended")

    def begin(self, runner_id: str) -> None:
        arguments = self.launcher.arguments[runner_id]
        launched = Launched(arguments[arguments.index("--paused-at") + 1] if "--paused-at" in arguments else None)
        identifier, job_id = runner_id.rpartition("-")[0], arguments[1]
        chance = self.random.random()
        if chance < 0.1:  # lost before its first line
            del self.launcher.known[runner_id]
        elif chance < 0.2:
            self.launcher.known[runner_id] = Runner("ended", "no room")
        elif chance < 0.3:  # a whole training with a model
            self.launcher.known[runner_id] = Runner("running")
            with suppress(JobError):
                run_job(self.store, job_id, launched, epochs=1)
                self.history.end(identifier, "succeeded")
                self.history.models.add(identifier)
            self.launcher.known[runner_id] = Runner("ended")
        else:
            self.launcher.known[runner_id] = Runner("running")
            try:
                self.runners[runner_id] = begin_job(self.store, job_id, launched)
            except JobError:
                self.launcher.known[runner_id] = Runner("ended")

    def finish(self, identifier: str, job: Job, how: Literal["succeeded", "failed"]) -> None:
        key = f"jobs/{job.id}/metrics.csv"
        self.store.put(key, CSV)
        try:
            if how == "succeeded":
                job.finish(how, result={"metrics_csv": key, "trained_tokens": 7})
            else:
                job.finish(how, error="NaN loss at step 3")
        except JobError:
            return
        self.history.end(identifier, how)

    def run_zombie(self) -> None:
        """Advance a runner that was reported as lost but still runs."""
        if self.zombies:
            job = self.zombies.pop(self.random.randrange(len(self.zombies)))
            job.event("info", "still running")
            if self.random.random() < 0.5:
                self.finish(job.record.spec["name"], job, "succeeded")
            elif self.random.random() < 0.8:
                self.zombies.append(job)

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take random steps until all crashes have happened."""
        steps: dict[Callable[[], None], int] = {
            self.upload: 5,
            self.upload_in_parts: 4,
            self.create: 9,
            self.get_job: 5,
            partial(self.change, "cancel"): 3,
            partial(self.change, "pause"): 6,
            partial(self.change, "resume"): 6,
            self.list_jobs: 1,
            self.list_events: 3,
            self.list_files: 1,
            self.read_file: 2,
            self.delete_file: 2,
            self.delete_model: 2,
            self.reconcile: 8,
            self.sweep: 1,
            self.advance_runner: 30,
            self.run_zombie: 4,
        }
        while self.crashes_left > 0:
            self.random.choices(list(steps), list(steps.values()))[0]()

    def finish_all(self) -> None:
        """Run all jobs to their end without further crashes."""
        self.crashes_left = 0
        self.replicas = [self.new_replica(), self.new_replica()]
        deadline = time.monotonic() + 60
        while records.all_open(self.store):
            assert time.monotonic() < deadline, f"still open: {records.all_open(self.store)}"
            self.clock_s += 400
            self.ask(lambda process, _: process.tuning.reconcile())
            for runner_id, runner in list(self.launcher.known.items()):
                if runner.state == "pending":
                    self.begin(runner_id)
                elif runner.state == "running":
                    self.finish(runner_id.rpartition("-")[0], self.runners[runner_id], "succeeded")
                    self.launcher.known[runner_id] = Runner("ended")
            for _, identifier in records.all_open(self.store):
                with suppress(ApiError):
                    self.replicas[0].tuning.resume(TEAM, identifier)
