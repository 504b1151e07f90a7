"""A tick over the open jobs costs a bounded number of requests, and misses nothing that is due."""

from __future__ import annotations

from ray_jobs import jobs
from ray_jobs.launch.launcher import Runner
from serving.files.stored_files import Files
from serving.fine_tuning import records
from serving.fine_tuning.open_jobs import LOOKS_PER_TICK, OpenJobs
from serving.fine_tuning.records import ApiJob, Launch, OpenJob
from serving.fine_tuning.service import FineTuningService
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import NoTokens, begin_job
from tests.storage.memory_store import START_S, memory_store

TEAM, KEY = "blue", "key"


class CountingLauncher(FakeLauncher):
    listed = 0

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        self.listed += 1
        return super().runners(prefix, fresh=fresh)


class Endpoint:
    """A job service on a store in memory, with jobs that run."""

    def __init__(self, open_jobs: int) -> None:
        self.store, self.client = memory_store()
        self.launcher = CountingLauncher()
        self.tuning = self.replica()
        self.attempts: dict[str, jobs.Job] = {}
        self.ids = [self.running(number) for number in range(open_jobs)]

    def replica(self) -> FineTuningService:
        store, _ = memory_store(self.client)
        return FineTuningService(store, Files(store, NoTokens(store)), self.launcher, parallel_jobs=1)

    def running(self, number: int) -> str:
        identifier = new_id(records.KIND, now_s=START_S + number / 1000)
        spec = make_spec(identifier, team=TEAM)
        api = ApiJob(
            id=identifier, team=TEAM, key_id=KEY, created_at=0, model="m", training_file="f", validation_file=None,
            suffix=None, seed=1, metadata=None, integrations=None, method={}, hyperparameters={},
            spec=spec.model_dump(mode="json"), job_id=spec.job_id,
            launches=(Launch(number=1, at=START_S, attempt_before=0),),
        )  # fmt: skip
        records.mark_open(self.store, TEAM, KEY, identifier)
        records.put_new(self.store, api)
        jobs.create(self.store, spec)
        self.attempts[identifier] = begin_job(self.store, spec.job_id)
        self.launcher.known[f"{identifier}-1"] = Runner("running")
        return identifier

    def tick(self, seconds: float = 2.0) -> int:
        """Returns the requests to the store."""
        self.client.clock.at_s += seconds
        before = self.client.made
        self.tuning.reconcile()
        return self.client.made - before

    def until_known(self) -> None:
        for _ in range(-(-len(self.ids) // LOOKS_PER_TICK) + 1):
            self.tick()

    def job_id(self, identifier: str) -> str:
        return records.load(self.store, TEAM, identifier).job_id


def test_a_tick_over_three_hundred_jobs_costs_what_its_looks_cost() -> None:
    endpoint = Endpoint(300)
    for _ in range(10):
        # Each look reads the marker once, the API's record and the job's record; then its hours are metered.
        assert endpoint.tick() <= 1 + 8 * LOOKS_PER_TICK
    assert endpoint.tick() <= 1 + 2 * LOOKS_PER_TICK
    assert endpoint.tuning.reconcile() == {"running": 300}


def test_every_job_has_its_turn_and_one_whose_runner_ended_is_next() -> None:
    endpoint = Endpoint(300)
    endpoint.until_known()
    paused, ended = endpoint.ids[7], endpoint.ids[200]
    jobs.request_pause(endpoint.store, endpoint.job_id(paused))  # as `kitae pause` does, which no listing shows
    endpoint.attempts[ended].finish("succeeded", result={})
    endpoint.launcher.become(f"{ended}-1", "ended")
    endpoint.tick()
    assert records.load(endpoint.store, TEAM, ended).closed is not None
    for _ in range(-(-300 // LOOKS_PER_TICK) + 7):  # its turn comes, and its grace period ends
        endpoint.tick()
    assert endpoint.launcher.stopped == [f"{paused}-1"]


def test_when_all_runners_are_lost_all_are_replaced_with_bounded_requests() -> None:
    endpoint = Endpoint(200)
    endpoint.until_known()
    endpoint.launcher.known.clear()
    endpoint.launcher.listed, ticks = 0, 0
    while len(endpoint.launcher.known) < 200 and ticks < 40:
        assert endpoint.tick() <= 1 + 12 * LOOKS_PER_TICK
        ticks += 1
    assert set(endpoint.launcher.known) == {f"{identifier}-2" for identifier in endpoint.ids}
    assert endpoint.launcher.listed <= 4 * ticks, "one answer confirms all losses of a moment"


def test_a_request_wakes_its_own_job() -> None:
    endpoint = Endpoint(300)
    endpoint.until_known()
    paused = endpoint.ids[123]
    endpoint.tuning.pause(TEAM, paused)
    for _ in range(6):
        endpoint.tick()
    assert endpoint.launcher.stopped == [f"{paused}-1"]


def listed(count: int, key: str = KEY) -> list[OpenJob]:
    return [OpenJob(key, f"{key}-{number:05d}", START_S) for number in range(count)]


def test_a_key_with_thousands_of_jobs_does_not_delay_anothers() -> None:
    chosen = OpenJobs().choose([*listed(5000), *listed(1, "other")], {})
    assert "other-00000" in [job.id for job in chosen]
    assert len(chosen) == LOOKS_PER_TICK


def test_pending_jobs_do_not_keep_quiet_ones_from_their_turn() -> None:
    seen, all_jobs = OpenJobs(looks_per_tick=8), listed(40)
    for _ in range(6):
        for job in seen.choose(all_jobs, {}):
            seen.looked(job.id, TEAM, "queued", pending=int(job.id[-5:]) < 30)
    turns = {job.id: 0 for job in all_jobs}
    for _ in range(40):
        for job in seen.choose(all_jobs, {}):
            turns[job.id] += 1
            seen.looked(job.id, TEAM, "queued", pending=int(job.id[-5:]) < 30)
    assert min(turns.values()) >= 2


def test_a_change_of_a_runner_comes_before_a_change_of_its_message() -> None:
    seen, all_jobs = OpenJobs(looks_per_tick=4), listed(100)
    waiting = {job.id: Runner("pending", "waiting: about 40 min") for job in all_jobs}
    for _ in range(30):
        for job in seen.choose(all_jobs, waiting):
            seen.looked(job.id, TEAM, "queued", pending=False)
    later = {job.id: Runner("pending", "waiting: about 30 min") for job in all_jobs}
    later["key-00050"] = Runner("running")
    assert "key-00050" in [job.id for job in seen.choose(all_jobs, later)]
    for _ in range(30):
        for job in seen.choose(all_jobs, None):
            seen.looked(job.id, TEAM, "queued", pending=False)
    turn = seen.choose(all_jobs, None)  # an unreachable launcher is no change: all take turns
    assert not {job.id for job in turn} & {job.id for job in seen.choose(all_jobs, None)}
