"""Concurrent create requests at two replicas: one job for equal requests, and no more jobs than a key's limit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.fine_tuning import records
from serving.http.errors import ApiError
from serving.http.ids import new_id
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, rows

MANY = 200
CONNECTIONS = 100
PATIENCE_S = 60.0
Headers = Mapping[str, str]


@dataclass
class Replicas:
    """Two endpoints on one store, with one launcher."""

    store: Workspace
    servers: Sequence[ApiServer]
    launcher: FakeLauncher

    def post(self, body: Mapping[str, Any], headers: Headers | None = None, *, key: str = KEY) -> httpx.Response:
        (answer,) = self.post_at_once([(body, headers or {})], key=key)
        return answer

    def post_at_once(
        self, requests: Sequence[tuple[Mapping[str, Any], Headers]], *, key: str = KEY
    ) -> list[httpx.Response]:
        """Send create requests concurrently, alternating between the replicas."""

        async def send() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(limits=limits, headers=headers, timeout=120, trust_env=False) as client:
                urls = [f"{server.url}/v1/fine_tuning/jobs" for server in self.servers]
                calls = [
                    client.post(urls[number % len(urls)], json=body, headers=more)
                    for number, (body, more) in enumerate(requests)
                ]
                return await asyncio.gather(*calls)

        return asyncio.run(send())

    def upload(self, *, key: str = KEY) -> str:
        answer = httpx.post(
            f"{self.servers[0].url}/v1/files",
            headers={"Authorization": f"Bearer {key}"},
            data={"purpose": "fine-tune"},
            files={"file": ("rows.jsonl", rows(12))},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def jobs(self, team: str = "default") -> list[str]:
        return records.ids(self.store, team)

    def events(self, identifier: str) -> list[str]:
        """Messages of a job's events, oldest first."""
        answer = httpx.get(
            f"{self.servers[1].url}/v1/fine_tuning/jobs/{identifier}/events?limit=100",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
            trust_env=False,
        )
        return [event["message"] for event in reversed(answer.json()["data"])]

    def launched(self, count: int) -> list[str]:
        """Wait for `count` runners. Returns their ids."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.launcher.known) < count:
            assert time.monotonic() < deadline, self.launcher.known
            time.sleep(0.05)
        return sorted(self.launcher.known)


@pytest.fixture
def replicas(store: Workspace) -> Iterator[Replicas]:
    add_base(store)
    launcher = FakeLauncher()
    with ExitStack() as stack:
        servers = [stack.enter_context(api_server(store, launcher=launcher)) for _ in range(2)]
        yield Replicas(store, servers, launcher)


def assert_one_job(replicas: Replicas, answers: Sequence[httpx.Response]) -> str:
    """Assert that every response is the same job, which was created and launched once."""
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    (identifier,) = {answer.json()["id"] for answer in answers}
    assert replicas.jobs() == [identifier]
    assert replicas.launched(1) == [f"{identifier}-1"]
    job = records.load(replicas.store, "default", identifier)
    assert [launch.number for launch in job.launches] == [1]
    assert replicas.store.list_dirs("jobs/") == [job.job_id]
    assert records.all_open(replicas.store) == [("operator", identifier)]
    deadline = time.monotonic() + PATIENCE_S
    while len(events := replicas.events(identifier)) < 2:  # written by the replica that launched it
        assert time.monotonic() < deadline, events
    assert events == [f"created fine-tuning job {identifier}", "files validated, job queued"]
    return str(identifier)


def test_many_creates_with_one_key_make_one_job(replicas: Replicas) -> None:
    body = {"model": BASE, "training_file": replicas.upload()}
    answers = replicas.post_at_once([(body, {"Idempotency-Key": "the same"})] * MANY)
    identifier = assert_one_job(replicas, answers)

    other = replicas.post(body | {"suffix": "other"}, {"Idempotency-Key": "the same"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    assert replicas.jobs() == [identifier]


@pytest.mark.parametrize(
    ("tries", "original_at"), [(50, 0), (MANY, MANY // 2), (50, 49)], ids=["first", "in the middle", "last"]
)
def test_all_tries_of_the_client_make_one_job(replicas: Replicas, tries: int, original_at: int) -> None:
    """Without an Idempotency-Key, and with the first try arriving at any position."""
    body = {"model": BASE, "training_file": replicas.upload()}
    counts = [0 if number == original_at else 1 + number % 5 for number in range(tries)]
    answers = replicas.post_at_once([(body, {"x-stainless-retry-count": str(count)}) for count in counts])
    assert_one_job(replicas, answers)


def test_two_requests_that_are_not_retries_make_two_jobs(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": BASE, "training_file": replicas.upload()}
    retried = {"x-stainless-retry-count": "1"}
    first, second = replicas.post(body).json()["id"], replicas.post(body, {"x-stainless-retry-count": "0"}).json()["id"]
    assert replicas.jobs() == [first, second]
    assert replicas.post(body, retried).json()["id"] == second
    assert replicas.post(body, {"Idempotency-Key": ""}).json()["id"] not in (first, second)  # no key
    assert replicas.post(body | {"seed": 1}, retried).json()["id"] not in (first, second)
    assert len(replicas.jobs()) == 4
    monkeypatch.setattr(records, "RETRY_WINDOW_S", 0.0)
    assert replicas.post(body, retried).json()["id"] not in replicas.jobs()[:4]
    assert len(replicas.jobs()) == 5


def test_an_idempotency_key_is_scoped_to_its_team(replicas: Replicas) -> None:
    _, red = api_keys.create(replicas.store, "red", "tests")
    _, blue = api_keys.create(replicas.store, "blue", "tests")
    made = []
    for key in (red, blue):
        body = {"model": BASE, "training_file": replicas.upload(key=key)}
        answers = replicas.post_at_once([(body, {"Idempotency-Key": "the same"})] * 4, key=key)
        made.append({answer.json()["id"] for answer in answers})
    assert [[*ids] for ids in made] == [replicas.jobs("red"), replicas.jobs("blue")]
    assert made[0].isdisjoint(made[1])


def test_a_retry_returns_the_job_after_its_file_was_deleted(replicas: Replicas) -> None:
    body = {"model": BASE, "training_file": replicas.upload()}
    made = [replicas.post(body, headers).json()["id"] for headers in ({"Idempotency-Key": "k"}, {})]
    replicas.store.delete(f"teams/default/files/{body['training_file']}.json")
    assert replicas.post(body, {"Idempotency-Key": "k"}).json()["id"] == made[0]
    assert replicas.post(body, {"x-stainless-retry-count": "2"}).json()["id"] == made[1]
    assert replicas.post(body).status_code == 400


def test_concurrent_creates_do_not_exceed_the_keys_limit(replicas: Replicas) -> None:
    most = 3
    key, secret = api_keys.create(replicas.store, "red", "tests", Limits(concurrent_jobs=most))
    file = replicas.upload(key=secret)

    def ask(count: int, suffix: str) -> list[str]:
        bodies = [{"model": BASE, "training_file": file, "suffix": f"{suffix}{n}"} for n in range(count)]
        answers = replicas.post_at_once([(body, {}) for body in bodies], key=secret)
        for answer in answers:
            if answer.status_code != 200:
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "concurrent_jobs_exceeded")
                assert answer.headers["x-should-retry"] == "false"
        return [answer.json()["id"] for answer in answers if answer.status_code == 200]

    made = ask(40, "a")
    assert sorted(made) == records.open_of(replicas.store, key.id)
    assert len(made) == most
    for identifier in made[:2]:
        answer = httpx.post(
            f"{replicas.servers[0].url}/v1/fine_tuning/jobs/{identifier}/cancel",
            headers={"Authorization": f"Bearer {secret}"},
            timeout=60,
            trust_env=False,
        )
        assert answer.json()["status"] == "cancelled"
    deadline = time.monotonic() + PATIENCE_S
    while len(records.open_of(replicas.store, key.id)) > most - 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(ask(40, "b")) == 2
    assert len(records.open_of(replicas.store, key.id)) == most
    assert len(replicas.jobs("red")) == most + 2


def test_a_slow_create_takes_no_slot_that_is_taken(store: Workspace) -> None:
    """Its id is older than those of the jobs that reserved the slots before it."""
    slow = new_id("ftjob", now_s=1000.0)
    for identifier in (new_id("ftjob", now_s=1001.0), new_id("ftjob", now_s=1002.0)):
        records.reserve_slot(store, "red", "key", identifier, 2, 1002.0)
        records.mark_open(store, "red", "key", identifier)
    with pytest.raises(ApiError, match="2 jobs at once"):
        records.reserve_slot(store, "red", "key", slow, 2, 1003.0)
    records.reserve_slot(store, "red", "key", identifier, 2, 1003.0)  # a retry of a job that has a slot


def test_the_slot_of_an_interrupted_create_is_free_after_two_minutes(store: Workspace) -> None:
    records.reserve_slot(store, "red", "key", new_id("ftjob", now_s=1000.0), 1, 1000.0)
    with pytest.raises(ApiError):
        records.reserve_slot(store, "red", "key", new_id("ftjob", now_s=1000.0), 1, 1000.0 + records.ORPHAN_AFTER_S - 1)
    records.reserve_slot(store, "red", "key", new_id("ftjob", now_s=1000.0), 1, 1000.0 + records.ORPHAN_AFTER_S)
