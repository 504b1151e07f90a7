"""No request costs a store request per file, job or event of a team: each is counted on a team that has thousands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_jobs import jobs
from ray_jobs.jobs.events import Event, append_event
from ray_jobs.storage import Workspace
from serving.files.stored_files import FILES_IN_A_PAGE, FileRecord, Files, _add_to_index, _records
from serving.fine_tuning import records
from serving.fine_tuning.records import ApiJob, ClosedJob
from serving.fine_tuning.service import FineTuningService
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import NoTokens
from tests.storage.memory_store import START_S, MemoryClient, memory_store

TEAM, COUNT = "blue", 3000


class Team:
    """A team with thousands of files, ended jobs and events of one job."""

    def __init__(self) -> None:
        self.store, self.client = memory_store()
        self.files = Files(self.store, NoTokens(self.store))
        self.tuning = FineTuningService(self.store, self.files, FakeLauncher(), parallel_jobs=1)
        for number in range(COUNT):
            self._file(number)
        self.jobs = [self._job(number) for number in range(COUNT)]
        self.last = records.load(self.store, TEAM, self.jobs[-1])
        at = self.store.now()
        for sequence in range(1, COUNT + 1):
            event = Event(attempt=1, sequence=sequence, at=at, level="info", message=f"step {sequence}")
            append_event(self.store, self.last.job_id, event)

    def _file(self, number: int) -> None:
        purpose = "user_data" if number % 1000 == 0 else "fine-tune"
        identifier = new_id("file", now_s=START_S - COUNT + number)
        record = FileRecord(
            id=identifier, team=TEAM, key_id="k", filename="a", purpose=purpose, bytes=1, created_at=0, key="k"
        )
        _add_to_index(self.store, record)
        self.store.put_json(_records(TEAM).key(identifier), record.model_dump(mode="json"))

    def _job(self, number: int) -> str:
        identifier = new_id(records.KIND, now_s=START_S - COUNT + number)
        spec = make_spec(identifier, team=TEAM)
        api = ApiJob(
            id=identifier, team=TEAM, key_id="k", created_at=0, model="m", training_file="f", validation_file=None,
            suffix=None, seed=1, metadata={"env": "prod", "run": str(number % 1500)}, integrations=None, method={},
            hyperparameters={}, spec=spec.model_dump(mode="json"), job_id=spec.job_id,
            closed=ClosedJob(status="failed", finished_at=0),
        )  # fmt: skip
        records.put_new(self.store, api)
        jobs.create(self.store, spec)
        return identifier

    def cost(self, call: Callable[[], object]) -> int:
        before = self.client.made
        call()
        return self.client.made - before


@pytest.fixture(scope="module")
def team() -> Team:
    return Team()


CALLS: dict[str, tuple[Callable[[Team], object], int]] = {
    # requests at most: a few listings, and the reads of the items of a page
    "files": (lambda t: t.files.page(TEAM, purpose=None, limit=10_000, after=None, order="desc"), FILES_IN_A_PAGE + 20),
    "files, oldest first": (lambda t: t.files.page(TEAM, purpose=None, limit=20, after=None, order="asc"), 30),
    "files of a rare purpose": (
        lambda t: t.files.page(TEAM, purpose="user_data", limit=10_000, after=None, order="desc"),
        10,
    ),
    "jobs": (lambda t: t.tuning.page(TEAM, limit=20, after=None, metadata={}), 60),
    "jobs after a cursor": (lambda t: t.tuning.page(TEAM, limit=20, after=t.jobs[1500], metadata={}), 60),
    "jobs with rare metadata": (
        lambda t: t.tuning.page(TEAM, limit=20, after=None, metadata={"run": "7", "env": "prod"}),
        45,
    ),
    "jobs with metadata of none": (lambda t: t.tuning.page(TEAM, limit=20, after=None, metadata={"run": "x"}), 4),
    "a job": (lambda t: t.tuning.get(TEAM, t.last.id), 4),
    "events": (lambda t: t.tuning.events(TEAM, t.last.id, limit=20, after=None), 50),
    "an event": (lambda t: jobs.note(t.store, t.last.job_id, "info", "x"), 30),
    "checkpoints": (lambda t: t.tuning.checkpoints(TEAM, t.last.id, limit=20, after=None), 4),
    "a tick over the open jobs": (lambda t: t.tuning.reconcile(), 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_costs_what_its_page_costs(team: Team, name: str) -> None:
    call, most = CALLS[name]
    call(team)  # an index is built once
    assert team.cost(lambda: call(team)) <= most


def test_pages_of_filtered_lists_contain_every_match_once(team: Team) -> None:
    found, more = team.tuning.page(TEAM, limit=20, after=None, metadata={"run": "7", "env": "prod"})
    assert ([job.id for job in found], more) == ([team.jobs[1507], team.jobs[7]], False)
    found_files, more = team.files.page(TEAM, purpose="user_data", limit=2, after=None, order="desc")
    assert (len(found_files), more) == (2, True)
    rest, more = team.files.page(TEAM, purpose="user_data", limit=2, after=found_files[-1].id, order="desc")
    assert (len(rest), more) == (1, False)


def test_events_are_listed_from_the_newest_and_continue(team: Team) -> None:
    found, _ = team.tuning.events(TEAM, team.jobs[-1], limit=2, after=None)
    again, _ = team.tuning.events(TEAM, team.jobs[-1], limit=2, after=found[-1].id)
    numbers = [int(event.id.rpartition("-")[2]) for event in (*found, *again)]
    assert numbers == [numbers[0] - i for i in range(4)]
    assert numbers[0] >= COUNT


def test_files_from_before_there_was_an_index_are_found(memory: tuple[Workspace, MemoryClient]) -> None:
    store, _ = memory
    record = FileRecord(
        id=new_id("file", now_s=START_S), team=TEAM, key_id="k", filename="a", purpose="vision", bytes=1, created_at=0,
        expires_at=int(START_S) + 60, key="k",
    )  # fmt: skip
    store.put_json(_records(TEAM).key(record.id), record.model_dump(mode="json"))
    store.put(f"files/{TEAM}/{record.id}/rows.jsonl", b"x")
    files = Files(store, NoTokens(store))
    assert [found.id for found in files.page(TEAM, purpose="vision", limit=9, after=None, order="desc")[0]] == [
        record.id
    ]
    files.sweep(START_S + 59)
    assert len(list(store.list("files/"))) == 1
    files.sweep(START_S + 61)
    assert list(store.list("files/")) == []
    assert [info.key for info in store.list("teams/")] == [f"teams/{TEAM}/index/files/built.json"]


@pytest.fixture
def memory() -> tuple[Workspace, MemoryClient]:
    return memory_store()


def test_a_sweep_reads_no_file_that_stays(team: Team) -> None:
    now_s = team.store.now_s()
    team.store.put(f"files/{TEAM}/{records.KIND}/x", b"")
    team.files.sweep(now_s)
    before = team.client.requests.copy()
    team.files.sweep(now_s)
    assert team.client.requests["get"] - before["get"] == 0
    assert team.client.made - before.total() <= 15
