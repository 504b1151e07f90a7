"""What was begun and cut off is gone on with: single cases, each at every request where it can be cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobPaused, JobSuperseded
from ray_jobs.jobs import Launched
from ray_jobs.launch.launcher import Runner
from ray_jobs.storage import Store
from serving.files.stored_files import FINE_TUNE
from serving.fine_tuning import records
from serving.fine_tuning.lifecycle import MAX_LAUNCHES
from serving.http import openai_types
from serving.http.errors import ApiError
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, add_base, begin_job, rows
from tests.serving.chaos_scenario import TEAM, Developer, Process
from tests.serving.crash_injector import Killed, Life


class Service:
    """Processes on one store, and a clock that a test moves."""

    def __init__(self, store: Store, folder: Path) -> None:
        add_base(store)
        self.store = store
        self.folder = folder
        self.launcher = FakeLauncher()
        self.clock_s = time.time()
        self.process = self.born()
        self.file = self.upload(self.process)

    def now(self) -> float:
        self.clock_s += 0.001
        return self.clock_s

    def born(self, requests: int | None = None, *, answers: bool = True) -> Process:
        return Process(self.store, self.launcher, self.now, Life(requests, answers=answers))

    def written(self, content: bytes) -> Path:
        path = self.folder / "rows.jsonl"
        path.write_bytes(content)
        return path

    def upload(self, process: Process) -> str:
        path = self.written(rows(12))
        return process.files.create(TEAM, "key", path, filename="rows.jsonl", purpose=FINE_TUNE).id

    def create(
        self, process: Process | None = None, *, retried: bool = False, key: str | None = None
    ) -> openai_types.FineTuningJob:
        body = openai_types.CreateFineTuningJob(model=BASE, training_file=self.file)
        tuning = (process or self.process).tuning
        return tuning.create(body, Developer(), key=key, retried=retried, max_open=10_000)

    def tick(self, seconds: float = 1.0) -> None:
        self.clock_s += seconds
        self.process.tuning.reconcile()

    def job_id(self, identifier: str) -> str:
        return records.load(self.store, TEAM, identifier).job_id

    def begin(self, runner_id: str) -> jobs.Job:
        arguments = self.launcher.arguments[runner_id]
        self.launcher.become(runner_id, "running")
        paused_at = arguments[arguments.index("--paused-at") + 1] if "--paused-at" in arguments else None
        return begin_job(self.store, arguments[1], Launched(paused_at))

    def messages(self, identifier: str) -> list[str]:
        return [event.message for _, event in jobs.events(self.store, self.job_id(identifier))]


@pytest.fixture
def service(store: Store, tmp_path: Path) -> Service:
    return Service(store, tmp_path)


def cut_off(service: Service, do: Callable[[Process], object]) -> Iterator[str]:
    """Once for each request that `do` makes, with it cut off there, before and after the request is made."""
    for answers in (False, True):
        number = 0
        while True:
            number += 1
            try:
                do(service.born(number, answers=answers))
            except Killed:
                yield f"{'after' if answers else 'before'} request {number}"
            else:
                break
        assert number > 3, "nothing was cut off"


def test_a_create_that_is_cut_off_is_a_whole_job_or_none(service: Service) -> None:
    for where in cut_off(service, service.create):
        service.tick(1000)
        service.tick(1000)
        made = records.ids(service.store, TEAM)
        assert {identifier for _, identifier in records.all_open(service.store)} == set(made), where
        for identifier in made:
            assert service.messages(identifier) == [
                f"created fine-tuning job {identifier}",
                "files validated, job queued",
            ], where
            assert f"{identifier}-1" in service.launcher.known, where
    assert len(records.ids(service.store, TEAM)) > 5


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("answers", [True, False])
def test_a_create_that_is_cut_off_and_sent_again_is_one_job(service: Service, keyed: bool, answers: bool) -> None:
    for number in range(1, 100):
        before = set(records.ids(service.store, TEAM))
        key = f"key {number}" if keyed else None
        service.clock_s += records.RETRY_WINDOW_S
        try:
            service.create(service.born(number, answers=answers), key=key)
            break
        except Killed:
            job = service.create(retried=True, key=key)
        assert set(records.ids(service.store, TEAM)) - before == {job.id}
    assert number > 5


@pytest.mark.parametrize("then", ["complete", "cancel"])
@pytest.mark.parametrize("answers", [True, False])
def test_an_upload_whose_end_is_cut_off_becomes_one_file_or_none(service: Service, then: str, answers: bool) -> None:
    content = rows(12)
    files, uploads = service.process.files, service.process.uploads
    for number in range(1, 100):
        before = set(files._ids(TEAM))
        body = openai_types.CreateUpload(filename="rows.jsonl", purpose=FINE_TUNE, bytes=len(content))
        upload = uploads.create(TEAM, "key", body, None).id
        whole = openai_types.CompleteUpload(part_ids=[uploads.add_part(TEAM, upload, service.written(content)).id])
        try:
            service.born(number, answers=answers).uploads.complete(TEAM, upload, whole)
            break
        except Killed:
            expected = set()
            try:
                done = uploads.complete(TEAM, upload, whole) if then == "complete" else uploads.cancel(TEAM, upload)
            except ApiError as error:
                if "is completed" not in error.message:  # cut off when it had become one
                    raise
                done = uploads.complete(TEAM, upload, whole)
            if done.file is not None:
                expected = {done.file.id}
                assert b"".join(files.content(files.get(TEAM, done.file.id))) == content
            assert (done.status == "completed") == bool(expected)
        assert set(files._ids(TEAM)) - before == expected
    assert number > 5


def test_a_part_whose_answer_was_lost_is_sent_again(service: Service) -> None:
    uploads = service.process.uploads
    body = openai_types.CreateUpload(filename="rows.jsonl", purpose=FINE_TUNE, bytes=len(rows(12)))
    upload = uploads.create(TEAM, "key", body, None).id
    lines = rows(12).splitlines(keepends=True)
    halves = [b"".join(lines[:6]), b"".join(lines[6:])]
    uploads.add_part(TEAM, upload, service.written(halves[0]))  # nobody hears of it
    parts = [uploads.add_part(TEAM, upload, service.written(half)).id for half in halves]
    assert uploads.complete(TEAM, upload, openai_types.CompleteUpload(part_ids=parts)).file is not None
    with pytest.raises(ApiError, match="were declared"):
        uploads.add_part(TEAM, uploads.create(TEAM, "key", body, None).id, service.written(rows(13)))


@pytest.mark.parametrize("how", ["ended", "unknown"])
def test_a_resumed_job_whose_runner_is_lost_before_it_begins_goes_on(
    service: Service, how: Literal["ended", "unknown"]
) -> None:
    identifier = service.create().id
    service.tick()
    service.process.tuning.pause(TEAM, identifier)
    assert service.process.tuning.resume(TEAM, identifier).status == "queued"
    if how == "ended":
        service.launcher.become(f"{identifier}-2", "ended", "no room")
    else:
        del service.launcher.known[f"{identifier}-2"]
    service.tick(10)
    assert service.process.tuning.get(TEAM, identifier).status == "queued"
    runner_id = f"{identifier}-{3 if how == 'ended' else 2}"
    service.begin(runner_id).finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier).status == "succeeded"


def test_a_job_is_paused_again_before_its_next_runner_has_begun(service: Service) -> None:
    identifier = service.create().id
    service.tick()
    tuning = service.process.tuning
    assert [tuning.pause(TEAM, identifier).status, tuning.resume(TEAM, identifier).status] == ["paused", "queued"]
    assert tuning.pause(TEAM, identifier).status == "paused"
    with pytest.raises(JobPaused):
        service.begin(f"{identifier}-2")
    assert tuning.resume(TEAM, identifier).status == "queued"
    service.begin(f"{identifier}-3")
    assert tuning.get(TEAM, identifier).status == "running"


def test_a_resumed_job_too_is_given_up_after_so_many_runners(service: Service) -> None:
    identifier = service.create().id
    service.tick()
    service.process.tuning.pause(TEAM, identifier)
    service.process.tuning.resume(TEAM, identifier)
    for number in range(2, MAX_LAUNCHES + 2):
        assert service.process.tuning.get(TEAM, identifier).status == "queued"
        service.launcher.become(f"{identifier}-{number}", "ended", "no room")
        service.tick(400)
    assert service.process.tuning.get(TEAM, identifier).status == "failed"


def lose_all(service: Service) -> tuple[str, jobs.Job]:
    """A job whose runners were all lost, the last of them a moment ago, and that runner."""
    identifier = service.create().id
    for number in range(1, MAX_LAUNCHES + 1):
        service.tick(400)
        runner = service.begin(f"{identifier}-{number}")
        service.launcher.become(f"{identifier}-{number}", "ended", "killed")
    service.clock_s += 400
    return identifier, runner


def test_an_end_is_written_down_before_a_list_tells_it(service: Service) -> None:
    identifier, runner = lose_all(service)
    (told,), _ = service.process.tuning.page(TEAM, limit=20, after=None, metadata={})
    assert (told.id, told.status) == (identifier, "failed")
    with pytest.raises(JobSuperseded, match="is over"):
        runner.check(fresh=True)
    with pytest.raises(JobSuperseded):
        runner.finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier) == told
    assert records.all_open(service.store) == []


def test_a_runner_is_looked_at_twice_before_its_job_is_given_up(service: Service) -> None:
    """The first answer is a moment old, and the runner has ended its job since."""
    identifier, runner = lose_all(service)
    service.process.tuning.runners._all(service.clock_s, fresh=False)  # remembers that it is gone
    service.launcher.become(f"{identifier}-{MAX_LAUNCHES}", "running")
    assert service.process.tuning.get(TEAM, identifier).status == "running"
    runner.finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier).status == "succeeded"


def test_one_job_that_cannot_be_read_holds_up_no_other(service: Service) -> None:
    broken, whole = service.create().id, service.create(key="another").id
    service.store.put(f"teams/{TEAM}/jobs/{broken}.json", b"{}")
    assert service.process.tuning.reconcile() == {"queued": 1}
    assert list(service.launcher.known) == [f"{whole}-1"]


def test_what_the_first_try_did_answers_the_second(service: Service) -> None:
    tuning = service.process.tuning
    identifier = service.create().id
    service.tick()
    for do, status in ((tuning.pause, "paused"), (tuning.resume, "queued"), (tuning.cancel, "cancelled")):
        assert do(TEAM, identifier).status == status
        assert do(TEAM, identifier, retried=True).status == status
        with pytest.raises(ApiError, match="cannot be"):
            do(TEAM, identifier)
    with pytest.raises(ApiError, match="cannot be paused"):
        tuning.pause(TEAM, identifier, retried=True)


def test_a_cut_off_delete_or_cancel_is_gone_on_with(service: Service) -> None:
    for where in cut_off(service, lambda process: process.tuning.cancel(TEAM, service.create().id)):
        service.tick(20)
        service.tick(20)
        for _, identifier in records.all_open(service.store):
            assert service.process.tuning.cancel(TEAM, identifier).status == "cancelled", where
        service.tick(20)
        assert records.all_open(service.store) == [], where


def test_events_keep_their_order_whoever_writes_late(store: Store, service: Service) -> None:
    identifier = service.create().id
    service.tick()
    first = service.begin(f"{identifier}-1")
    second = begin_job(store, first.id)
    seen = service.messages(identifier)
    first.event("info", "from the grave")
    jobs.note(store, first.id, "info", "from outside")
    second.event("info", "goes on")
    assert service.messages(identifier) == [*seen, "from the grave", "from outside", "goes on"]
    assert Runner("running") == service.launcher.known[f"{identifier}-1"]
