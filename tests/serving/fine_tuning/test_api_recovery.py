"""Interrupted operations are completed: each is interrupted at every request that it makes to store and launcher."""

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
from ray_jobs.storage import Workspace
from serving.files.stored_files import FINE_TUNE, Files
from serving.fine_tuning import records
from serving.fine_tuning.lifecycle import MAX_LAUNCHES
from serving.http import openai_types
from serving.http.errors import ApiError
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, add_base, begin_job, rows
from tests.serving.api_replica import TEAM, ApiReplica, developer
from tests.serving.crash_injector import Crashed, CrashPoint


class Service:
    """API processes on one store, with a simulated clock."""

    def __init__(self, store: Workspace, folder: Path) -> None:
        add_base(store)
        self.store = store
        self.folder = folder
        self.launcher = FakeLauncher()
        self.clock_s = time.time()
        self.process = self.new_process()
        self.file = self.upload(self.process)

    def now(self) -> float:
        self.clock_s += 0.001
        return self.clock_s

    def new_process(self, crash_at: int | None = None, *, answers: bool = True) -> ApiReplica:
        return ApiReplica(self.store, self.launcher, self.now, CrashPoint(crash_at, answers=answers))

    def written(self, content: bytes) -> Path:
        path = self.folder / "rows.jsonl"
        path.write_bytes(content)
        return path

    def upload(self, process: ApiReplica) -> str:
        path = self.written(rows(12))
        return process.files.create(TEAM, "key", path, filename="rows.jsonl", purpose=FINE_TUNE).id

    def create(
        self, process: ApiReplica | None = None, *, retried: bool = False, key: str | None = None
    ) -> openai_types.FineTuningJob:
        body = openai_types.CreateFineTuningJob(model=BASE, training_file=self.file)
        tuning = (process or self.process).tuning
        return tuning.create(body, developer(10_000), key=key, retried=retried)

    def reconcile(self, seconds: float = 1.0) -> None:
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
def service(store: Workspace, tmp_path: Path) -> Service:
    return Service(store, tmp_path)


def interrupted(service: Service, do: Callable[[ApiReplica], object]) -> Iterator[str]:
    """Interrupt `do` at each of its requests, before and after the request is made; yields where."""
    for answers in (False, True):
        number = 0
        while True:
            number += 1
            try:
                do(service.new_process(number, answers=answers))
            except Crashed:
                yield f"{'after' if answers else 'before'} request {number}"
            else:
                break
        assert number > 3, "nothing was interrupted"


def test_an_interrupted_create_makes_a_whole_job_or_none(service: Service) -> None:
    for where in interrupted(service, service.create):
        service.reconcile(1000)
        service.reconcile(1000)
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
def test_a_retry_of_an_interrupted_create_makes_one_job(service: Service, keyed: bool, answers: bool) -> None:
    for number in range(1, 100):
        before = set(records.ids(service.store, TEAM))
        key = f"key {number}" if keyed else None
        service.clock_s += records.RETRY_WINDOW_S
        try:
            service.create(service.new_process(number, answers=answers), key=key)
            break
        except Crashed:
            job = service.create(retried=True, key=key)
        assert set(records.ids(service.store, TEAM)) - before == {job.id}
    assert number > 5


@pytest.mark.parametrize("then", ["complete", "cancel"])
@pytest.mark.parametrize("answers", [True, False])
def test_an_upload_with_an_interrupted_end_becomes_one_file_or_none(service: Service, then: str, answers: bool) -> None:
    content = rows(12)
    files, uploads = service.process.files, service.process.uploads
    for number in range(1, 100):
        before = file_ids(files)
        body = openai_types.CreateUpload(filename="rows.jsonl", purpose=FINE_TUNE, bytes=len(content))
        upload = uploads.create(TEAM, "key", body, None).id
        whole = openai_types.CompleteUpload(part_ids=[uploads.add_part(TEAM, upload, service.written(content)).id])
        try:
            service.new_process(number, answers=answers).uploads.complete(TEAM, upload, whole)
            break
        except Crashed:
            expected = set()
            try:
                done = uploads.complete(TEAM, upload, whole) if then == "complete" else uploads.cancel(TEAM, upload)
            except ApiError as error:
                if "is completed" not in error.message:  # interrupted after the upload was completed
                    raise
                done = uploads.complete(TEAM, upload, whole)
            if done.file is not None:
                expected = {done.file.id}
                assert b"".join(files.content(files.get(TEAM, done.file.id))) == content
            assert (done.status == "completed") == bool(expected)
        assert file_ids(files) - before == expected
    assert number > 5


def test_a_part_whose_response_was_lost_is_sent_again(service: Service) -> None:
    uploads = service.process.uploads
    body = openai_types.CreateUpload(filename="rows.jsonl", purpose=FINE_TUNE, bytes=len(rows(12)))
    upload = uploads.create(TEAM, "key", body, None).id
    lines = rows(12).splitlines(keepends=True)
    halves = [b"".join(lines[:6]), b"".join(lines[6:])]
    uploads.add_part(TEAM, upload, service.written(halves[0]))  # its response is lost
    parts = [uploads.add_part(TEAM, upload, service.written(half)).id for half in halves]
    assert uploads.complete(TEAM, upload, openai_types.CompleteUpload(part_ids=parts)).file is not None
    with pytest.raises(ApiError, match="were declared"):
        uploads.add_part(TEAM, uploads.create(TEAM, "key", body, None).id, service.written(rows(13)))


@pytest.mark.parametrize("how", ["ended", "unknown"])
def test_a_resumed_job_whose_runner_is_lost_before_it_begins_is_launched_again(
    service: Service, how: Literal["ended", "unknown"]
) -> None:
    identifier = service.create().id
    service.reconcile()
    service.process.tuning.pause(TEAM, identifier)
    assert service.process.tuning.resume(TEAM, identifier).status == "queued"
    if how == "ended":
        service.launcher.become(f"{identifier}-2", "ended", "no room")
    else:
        del service.launcher.known[f"{identifier}-2"]
    service.reconcile(10)
    assert service.process.tuning.get(TEAM, identifier).status == "queued"
    runner_id = f"{identifier}-{3 if how == 'ended' else 2}"
    service.begin(runner_id).finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier).status == "succeeded"


def test_a_resumed_job_can_be_paused_before_its_next_runner_begins(service: Service) -> None:
    identifier = service.create().id
    service.reconcile()
    tuning = service.process.tuning
    assert [tuning.pause(TEAM, identifier).status, tuning.resume(TEAM, identifier).status] == ["paused", "queued"]
    assert tuning.pause(TEAM, identifier).status == "paused"
    with pytest.raises(JobPaused):
        service.begin(f"{identifier}-2")
    assert tuning.resume(TEAM, identifier).status == "queued"
    service.begin(f"{identifier}-3")
    assert tuning.get(TEAM, identifier).status == "running"


def test_a_resumed_job_fails_after_the_maximum_of_launches(service: Service) -> None:
    identifier = service.create().id
    service.reconcile()
    service.process.tuning.pause(TEAM, identifier)
    service.process.tuning.resume(TEAM, identifier)
    for number in range(2, MAX_LAUNCHES + 2):
        assert service.process.tuning.get(TEAM, identifier).status == "queued"
        service.launcher.become(f"{identifier}-{number}", "ended", "no room")
        service.reconcile(400)
    assert service.process.tuning.get(TEAM, identifier).status == "failed"


def file_ids(files: Files) -> set[str]:
    return {record.id for record in files.page(TEAM, purpose=None, limit=10_000, after=None, order="asc")[0]}


def lose_all(service: Service) -> tuple[str, jobs.Job]:
    """Create a job whose runners are all lost, the last of them just now. Returns its id and the last runner's job."""
    identifier = service.create().id
    for number in range(1, MAX_LAUNCHES + 1):
        service.reconcile(400)
        runner = service.begin(f"{identifier}-{number}")
        service.launcher.become(f"{identifier}-{number}", "ended", "killed")
    service.clock_s += 400
    return identifier, runner


def test_an_end_is_recorded_before_a_list_reports_it(service: Service) -> None:
    identifier, runner = lose_all(service)
    (listed,), _ = service.process.tuning.page(TEAM, limit=20, after=None, metadata={})
    assert (listed.id, listed.status) == (identifier, "failed")
    with pytest.raises(JobSuperseded, match="is over"):
        runner.check(fresh=True)
    with pytest.raises(JobSuperseded):
        runner.finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier) == listed
    assert records.all_open(service.store) == []


def test_a_lost_runner_is_confirmed_without_the_cache_before_its_job_fails(service: Service) -> None:
    """The cached state is outdated: the runner has ended its job since."""
    identifier, runner = lose_all(service)
    api = records.load(service.store, TEAM, identifier)
    assert service.process.tuning.runners.newest(api).state == "ended"  # is cached
    service.launcher.become(f"{identifier}-{MAX_LAUNCHES}", "running")
    assert service.process.tuning.get(TEAM, identifier).status == "running"
    runner.finish("succeeded")
    assert service.process.tuning.get(TEAM, identifier).status == "succeeded"


def test_an_unreadable_job_does_not_block_others(service: Service) -> None:
    broken, whole = service.create().id, service.create(key="another").id
    service.store.put(f"teams/{TEAM}/jobs/{broken}.json", b"{}")
    assert service.process.tuning.reconcile() == {"queued": 1}
    assert list(service.launcher.known) == [f"{whole}-1"]


def test_a_retry_is_answered_with_the_result_of_the_first_try(service: Service) -> None:
    tuning = service.process.tuning
    identifier = service.create().id
    service.reconcile()
    for do, status in ((tuning.pause, "paused"), (tuning.resume, "queued"), (tuning.cancel, "cancelled")):
        assert do(TEAM, identifier).status == status
        assert do(TEAM, identifier, retried=True).status == status
        with pytest.raises(ApiError, match="cannot be"):
            do(TEAM, identifier)
    with pytest.raises(ApiError, match="cannot be paused"):
        tuning.pause(TEAM, identifier, retried=True)


def test_an_interrupted_cancel_is_completed(service: Service) -> None:
    for where in interrupted(service, lambda process: process.tuning.cancel(TEAM, service.create().id)):
        service.reconcile(20)
        service.reconcile(20)
        for _, identifier in records.all_open(service.store):
            assert service.process.tuning.cancel(TEAM, identifier).status == "cancelled", where
        service.reconcile(20)
        assert records.all_open(service.store) == [], where


def test_events_of_a_superseded_runner_do_not_change_the_order(store: Workspace, service: Service) -> None:
    identifier = service.create().id
    service.reconcile()
    first = service.begin(f"{identifier}-1")
    second = begin_job(store, first.id)
    seen = service.messages(identifier)
    first.event("info", "from the superseded runner")
    jobs.note(store, first.id, "info", "from outside")
    second.event("info", "continues")
    assert service.messages(identifier) == [*seen, "from the superseded runner", "from outside", "continues"]
    assert Runner("running") == service.launcher.known[f"{identifier}-1"]
