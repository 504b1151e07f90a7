"""A day of work during which the API process dies again and again; what clients were told must hold.

Clients upload, create, watch, pause, resume, cancel and delete, asking three times where no answer comes, as the
official client does. Runners begin, tell, end, fail and vanish. Two replicas answer, and each dies at a random request
to the store or the launcher, before it is made or before its answer arrives. The history is what clients were told.

Over 400 lines: clients, runners and the history they are held to are one world.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ray_jobs import jobs, registry
from ray_jobs.errors import JobError
from ray_jobs.jobs import Job, Launched
from ray_jobs.launch.launcher import Runner
from ray_jobs.storage import Store
from serving.files.stored_files import FINE_TUNE, Files
from serving.files.uploads import Uploads
from serving.fine_tuning import records
from serving.fine_tuning.job_end import publish_job_end
from serving.fine_tuning.lifecycle import MAX_LAUNCHES
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.routes.models import delete_model
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, NoTokens, add_base, begin_job, rows, run_job
from tests.serving.crash_injector import Killed, Life, MortalLauncher, mortal_store

T = TypeVar("T")

TEAM = "blue"
LONGEST_LIFE = 30
"""Requests, to the store and the launcher together."""
TRIES = 3
OVER = ("succeeded", "failed", "cancelled")
CSV = b"step,train_loss\n1,2.0\n"


@dataclass(frozen=True)
class Developer:
    """Whoever asks; `serving.access.auth.Caller`."""

    key_id: str = "key"
    team: str = TEAM
    admin: bool = False


class OneRunnerAJob(FakeLauncher):
    """Takes no runner for a job while another one works on it, unless that was told to stop."""

    def launch(self, runner_id: str, arguments: list[str], environment: Any, needs: Any) -> None:
        job, _, number = runner_id.rpartition("-")
        last = self.known.get(f"{job}-{int(number) - 1}")
        if runner_id not in self.known and "--paused-at" not in arguments:
            assert last is None or last.state == "ended", f"{runner_id} is launched beside the last one: {last}"
        super().launch(runner_id, arguments, environment, needs)


class Process:
    """One replica: what `serving.app` wires, without HTTP."""

    def __init__(self, store: Store, launcher: FakeLauncher, now: Callable[[], float], life: Life) -> None:
        self.life = life
        self.store = mortal_store(store, life)
        self.files = Files(self.store, NoTokens(self.store))
        self.uploads = Uploads(self.store, self.files)
        self.tuning = FineTuningService(
            self.store,
            self.files,
            MortalLauncher(launcher, life),
            on_job_end=partial(publish_job_end, self.store),
            now=now,
            parallel_jobs=1,  # for the same requests in the same order
        )

    def delete_file(self, identifier: str, retried: bool) -> None:
        """As the route does it."""
        if retried and self.files.find(TEAM, identifier) is None:
            return
        self.files.get(TEAM, identifier)
        if needed_by := self.tuning.open_jobs_using(TEAM, identifier):
            raise ApiError(409, f"{identifier} is read by {needed_by}", code="file_in_use")
        self.files.delete(TEAM, identifier)


@dataclass
class History:
    """What clients were told, and what runners did."""

    files: dict[str, bytes] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    maybe_deleted: set[str] = field(default_factory=set)
    """A delete got no answer."""
    created: dict[str, str] = field(default_factory=dict)
    """Job ids by the number of their create."""
    unanswered: set[str] = field(default_factory=set)
    """Numbers of creates that got no answer."""
    told: dict[str, openai_types.FineTuningJob] = field(default_factory=dict)
    """Each job, as it was told last."""
    events: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Id and message of each job's events, the oldest first, as they were listed last."""
    ended: dict[str, str] = field(default_factory=dict)
    """Of each job that a runner or a client has ended, how."""
    maybe_cancelled: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    models_deleted: set[str] = field(default_factory=set)

    def tell(self, job: openai_types.FineTuningJob) -> None:
        """A client was told of a job."""
        before = self.told.get(job.id)
        if before is not None and before.status in OVER:
            assert job == before, "a job that was over is told otherwise"
        if job.status in OVER:
            assert job.finished_at is not None
            assert job.id not in self.ended or job.status == self.ended[job.id]
        self.told[job.id] = job

    def end(self, identifier: str, how: str) -> None:
        """A runner or a client has ended a job, and was told so."""
        assert self.ended.setdefault(identifier, how) == how, f"{identifier} was {self.ended[identifier]} before"


class Day:
    """The script. Every choice is the seed's."""

    def __init__(self, store: Store, seed: int, kills: int) -> None:
        add_base(store)
        self.store = store
        self.random = random.Random(seed)
        self.kills_left = kills
        self.history = History()
        self.launcher = OneRunnerAJob()
        self.runners: dict[str, Job] = {}
        self.zombies: list[Job] = []
        """Runners that their launcher has lost sight of."""
        self.clock_s = time.time()
        self.creates = 0
        self.requests = 0
        self.processes = [self.born(), self.born()]

    def now(self) -> float:
        self.clock_s += 0.001
        return self.clock_s

    def born(self) -> Process:
        most = self.random.randint(1, LONGEST_LIFE) if self.kills_left > 0 else None
        life = Life(most, answers=self.random.random() < 0.5)
        return Process(self.store, self.launcher, self.now, life)

    def ask(self, do: Callable[[Process, bool], T]) -> T | None:
        """What a client gets. None: no answer, three times."""
        for number in range(TRIES):
            at = self.random.randrange(len(self.processes))
            process = self.processes[at]
            try:
                return do(process, number > 0)
            except Killed:
                self.requests += process.life.requests
                self.kills_left -= 1
                self.processes[at] = self.born()
        return None

    # ---- clients ---------------------------------------------------------------------------------------------------

    def upload(self) -> None:
        content = rows(12, start=self.random.randrange(10_000))
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)

            def send(process: Process, retried: bool) -> str:
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
            body, Developer(), key=key, retried=retried, max_open=most
        ))  # fmt: skip
        if job is None:
            self.history.unanswered.add(number)
            return
        assert job.metadata == {"number": number}
        assert job.id not in self.history.told
        self.history.created[number] = job.id
        self.history.tell(job)

    def any_job(self) -> str | None:
        return self.random.choice(sorted(self.history.told)) if self.history.told else None

    def open_job(self) -> str | None:
        """One that was not over when it was last told of."""
        found = sorted(name for name, job in self.history.told.items() if job.status not in OVER)
        return self.random.choice(found) if found else None

    def look(self) -> None:
        if (identifier := self.any_job()) is not None:
            job = self.ask(lambda process, _: process.tuning.get(TEAM, identifier))
            if job is not None:
                self.history.tell(job)

    def change(self, what: Literal["cancel", "pause", "resume"]) -> None:
        if (identifier := self.open_job()) is None:
            return
        try:
            job = self.ask(lambda process, retried: getattr(process.tuning, what)(TEAM, identifier, retried=retried))
        except ApiError as error:
            if error.code != "invalid_state":
                raise
            return
        if job is None:
            self.history.maybe_cancelled |= {identifier} if what == "cancel" else set()
            return
        self.history.tell(job)
        if what == "cancel":
            assert job.status == "cancelled"
            self.history.end(identifier, "cancelled")
        else:
            assert job.status in (("paused",) if what == "pause" else ("queued", "running")), (what, job)

    def pages(self, fetch: Callable[[Process, str | None], tuple[list[Any], bool]]) -> list[Any] | None:
        """All of a list, as the official client's pager reads it. None: a page did not come."""
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
                self.history.tell(job)

    def list_events(self, identifier: str | None = None) -> None:
        if (identifier := identifier or self.any_job()) is None:
            return
        found = self.pages(lambda process, after: process.tuning.events(TEAM, identifier, limit=4, after=after))
        if found is not None:
            told = [(event.id, event.message) for event in reversed(found)]
            seen = self.history.events.get(identifier, [])
            assert told[: len(seen)] == seen, "events changed before one that was seen"
            assert not told or told[0][1] == f"created fine-tuning job {identifier}"
            self.history.events[identifier] = told

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

        def delete(process: Process, retried: bool) -> bool:
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
        if there := sorted(self.history.models - self.history.models_deleted):
            name = self.random.choice(there)

            def delete(process: Process, retried: bool) -> bool:
                delete_model(process.store, name)
                return True

            if self.ask(delete):
                self.history.models_deleted.add(name)

    # ---- what the processes do by themselves -------------------------------------------------------------------------

    def tick(self) -> None:
        self.clock_s += self.random.choice([1, 10, 60, 400])
        self.ask(lambda process, _: process.tuning.reconcile())

    def sweep(self) -> None:
        self.ask(lambda process, _: process.files.sweep(time.time()))
        self.ask(lambda process, _: process.uploads.sweep(time.time()))

    # ---- runners ---------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """One runner does something, or something is done to it."""
        alive = sorted(name for name, runner in self.launcher.known.items() if runner.state in ("pending", "running"))
        if not alive:
            return
        runner_id = self.random.choice(alive)
        if self.launcher.known[runner_id].state == "pending":
            self.begin(runner_id)
            return
        what = self.random.choices(["tell", "finish", "fail", "die", "vanish", "check"], [40, 25, 8, 8, 8, 11])[0]
        job = self.runners[runner_id]
        if what == "tell":
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
        if chance < 0.1:  # its launcher forgets it, or it ends before its first line
            del self.launcher.known[runner_id]
        elif chance < 0.2:
            self.launcher.known[runner_id] = Runner("ended", "no room")
        elif chance < 0.3:  # a whole training, with a model
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

    def haunt(self) -> None:
        """A runner that was taken for lost was not."""
        if self.zombies:
            job = self.zombies.pop(self.random.randrange(len(self.zombies)))
            job.event("info", "still here")
            if self.random.random() < 0.5:
                self.finish(job.record.spec["name"], job, "succeeded")
            elif self.random.random() < 0.8:
                self.zombies.append(job)

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Until the processes have died as often as they shall."""
        script: dict[Callable[[], None], int] = {
            self.upload: 5,
            self.upload_in_parts: 4,
            self.create: 9,
            self.look: 5,
            partial(self.change, "cancel"): 3,
            partial(self.change, "pause"): 6,
            partial(self.change, "resume"): 6,
            self.list_jobs: 1,
            self.list_events: 3,
            self.list_files: 1,
            self.read_file: 2,
            self.delete_file: 2,
            self.delete_model: 2,
            self.tick: 8,
            self.sweep: 1,
            self.work: 30,
            self.haunt: 4,
        }
        while self.kills_left > 0:
            self.random.choices(list(script), list(script.values()))[0]()

    def end(self) -> None:
        """Nobody dies any more: everything comes to its end by itself."""
        self.kills_left = 0
        self.processes = [self.born(), self.born()]
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
                    self.processes[0].tuning.resume(TEAM, identifier)


def check_jobs(day: Day) -> None:
    """Each create made one job, which has ended as it should, once."""
    history, (process, _) = day.history, day.processes
    made = [records.load(day.store, TEAM, identifier) for identifier in records.ids(day.store, TEAM)]
    numbers = Counter((job.metadata or {})["number"] for job in made)
    assert set(numbers.values()) <= {1}, "a create made several jobs"
    assert {number: job.id for job in made if (number := (job.metadata or {})["number"]) in history.created} == (
        history.created
    )
    assert set(numbers) <= set(history.created) | history.unanswered
    assert sorted(day.store.list_dirs("jobs/")) == sorted(job.job_id for job in made)
    for job in made:
        told = process.tuning.get(TEAM, job.id)
        history.tell(told)
        assert told.status in OVER
        if job.id in history.ended:
            assert told.status == history.ended[job.id]
        elif told.status == "failed":
            assert len(job.launches) >= MAX_LAUNCHES
        else:
            assert told.status == "cancelled"
            assert job.id in history.maybe_cancelled
        for file in told.result_files:
            assert b"".join(process.files.content(process.files.get(TEAM, file))).startswith(b"step,")
        assert [launch.number for launch in job.launches] == list(range(1, len(job.launches) + 1))
        day.list_events(job.id)
        events = [event for _, event in jobs.events(day.store, job.job_id)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        messages = Counter(event.message for event in events)
        assert messages[f"created fine-tuning job {job.id}"] == 1
        assert messages["files validated, job queued"] <= 1
        record = jobs.load(day.store, job.job_id)
        begun = [message for message in messages.elements() if message.startswith("attempt ") and "started" in message]
        assert len(begun) == len(set(begun)) == record.attempt <= len(job.launches)
        counted = [info.key for info in day.store.list(f"usage/{TEAM}") if job.job_id in info.key]
        assert len(counted) == (1 if record.attempt else 0), counted


def check_files(day: Day) -> None:
    """Every file is there with its bytes, and nothing else is left behind."""
    history, (process, _) = day.history, day.processes
    for identifier in day.usable_files():
        content = b"".join(process.files.content(process.files.get(TEAM, identifier)))
        assert content == history.files[identifier]
    for identifier in history.deleted:
        assert process.files.find(TEAM, identifier) is None
    process.files.sweep(time.time() + 2 * 86_400)
    process.uploads.sweep(time.time() + 2 * 3600)
    there = {info.key.rpartition("/")[2].removesuffix(".json") for info in day.store.list(f"teams/{TEAM}/files")}
    assert set(day.usable_files()) <= there
    contents = {info.key.split("/")[2] for info in day.store.list(f"files/{TEAM}")}
    assert contents == there, (contents - there, there - contents)
    assert list(day.store.list("uploads")) == []
    for name in history.models_deleted:
        assert registry.versions(day.store, name) == []
        assert registry.aliases(day.store, name) == {}
