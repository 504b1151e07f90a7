"""Replicas, commands and pods whose clocks are ten minutes off: leases, windows, markers and retries hold."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from ray_jobs.launch.launcher import Runner
from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.webhooks import Sender
from serving.files.stored_files import FINE_TUNE, Files
from serving.fine_tuning import records
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from serving.http.errors import ApiError
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, NoTokens, add_base, begin_job, rows
from tests.serving.api_replica import TEAM, developer
from tests.storage.clocks import clock_off
from tests.tenancy.webhook_receiver import CLIENT, HERE, enqueue, receiving, subscribe, tick

OFF = [(600.0, -600.0), (-600.0, 600.0)]


class Replica:
    """A process whose clock is off: each use of it runs on its machine."""

    def __init__(self, store: Workspace, launcher: FakeLauncher, ahead_s: float) -> None:
        self.ahead_s = ahead_s
        with clock_off(ahead_s):
            self.store = Workspace(Store(store.uri(), store._bucket.settings, cache=store._cache), TEAM)
            self.files = Files(self.store, NoTokens(self.store))
            self.tuning = FineTuningService(self.store, self.files, launcher)


@pytest.fixture(params=OFF, ids=["ahead writes", "behind writes"])
def pair(store: Workspace, request: pytest.FixtureRequest) -> tuple[Replica, Replica, FakeLauncher]:
    add_base(store)
    launcher = FakeLauncher()
    first, second = (Replica(store, launcher, ahead_s) for ahead_s in request.param)
    return first, second, launcher


def create(replica: Replica, folder: Path, **options: object) -> str:
    path = folder / "rows.jsonl"
    path.write_bytes(rows(12))
    with clock_off(replica.ahead_s):
        file = replica.files.create(TEAM, "key", path, filename="rows.jsonl", purpose=FINE_TUNE)
        body = openai_types.CreateFineTuningJob(model=BASE, training_file=file.id)
        job = replica.tuning.create(body, developer(1), key=None, retried=bool(options.get("retried")))
    assert job.created_at == pytest.approx(time.time(), abs=5)
    assert file.created_at == pytest.approx(time.time(), abs=5)
    return job.id


def test_a_marker_whose_record_is_about_to_be_written_stays(
    pair: tuple[Replica, Replica, FakeLauncher], store: Store, tmp_path: Path
) -> None:
    first, second, launcher = pair
    identifier = create(first, tmp_path)
    record = records.load(store, TEAM, identifier)
    store.delete(f"teams/{TEAM}/jobs/{identifier}.json")  # as between the two writes of a create
    with clock_off(second.ahead_s):
        second.tuning.reconcile()
    records.put_new(store, record)
    with clock_off(second.ahead_s):
        second.tuning.reconcile()
    assert list(launcher.known) == [f"{identifier}-1"], "the job is found by its marker"


def test_a_slot_just_taken_is_not_free(
    pair: tuple[Replica, Replica, FakeLauncher], store: Store, tmp_path: Path
) -> None:
    first, second, _ = pair
    identifier = create(first, tmp_path)
    records.unmark_open(store, "key", identifier)  # as before the marker is written
    store.delete(f"teams/{TEAM}/jobs/{identifier}.json")
    with pytest.raises(ApiError, match="1 jobs at once"):
        create(second, tmp_path)


def test_a_stopped_runner_keeps_its_grace_period(
    pair: tuple[Replica, Replica, FakeLauncher], store: Store, tmp_path: Path
) -> None:
    first, second, launcher = pair
    identifier = create(first, tmp_path)
    with clock_off(first.ahead_s):
        first.tuning.reconcile()
    launcher.known[f"{identifier}-1"] = Runner("running")
    begin_job(Workspace(store, TEAM), records.load(store, TEAM, identifier).job_id)
    with clock_off(first.ahead_s):
        first.tuning.pause(TEAM, identifier)
    with clock_off(second.ahead_s):
        second.tuning.reconcile()
    assert launcher.stopped == [], "it writes a checkpoint first"


def test_a_lost_runner_is_replaced_after_its_delay_and_not_later(
    pair: tuple[Replica, Replica, FakeLauncher], store: Store, tmp_path: Path
) -> None:
    first, second, launcher = pair
    identifier = create(first, tmp_path)
    with clock_off(first.ahead_s):
        first.tuning.reconcile()
    launch = records.load(store, TEAM, identifier).launches[0]
    assert launch.at == pytest.approx(time.time(), abs=5)
    launcher.known[f"{identifier}-1"] = Runner("ended")
    with clock_off(second.ahead_s):
        second.tuning.reconcile()
        assert f"{identifier}-2" not in launcher.known, "within the delay"
    late = FineTuningService(second.store, second.files, launcher, now=lambda: second.store.now_s() + 6)
    with clock_off(second.ahead_s):
        late.reconcile()
    assert f"{identifier}-2" in launcher.known


def test_the_repeat_of_an_unanswered_create_makes_no_second_job(
    pair: tuple[Replica, Replica, FakeLauncher], store: Store, tmp_path: Path
) -> None:
    first, second, _ = pair
    made = create(first, tmp_path)
    body = openai_types.CreateFineTuningJob(model=BASE, training_file=records.load(store, TEAM, made).training_file)
    with clock_off(second.ahead_s):
        assert second.tuning.create(body, developer(1), key=None, retried=True).id == made


@pytest.mark.parametrize(("first_s", "second_s"), OFF)
def test_a_webhook_is_claimed_once_and_signed_with_the_right_time(
    store: Store, first_s: float, second_s: float
) -> None:
    with receiving() as receiver:
        endpoint = subscribe(store, receiver)
        with clock_off(first_s):
            one = Sender(store, HERE)
            event_id = enqueue(store, at=None)
            tick(one)
        assert receiver.ids == [event_id], "due at once"
        CLIENT.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=endpoint.secret)
        held = enqueue(store, "ftjob-2", at=None)
        claim_and_die(one, held, endpoint.id, first_s)
        with clock_off(second_s):
            tick(Sender(Store(store.uri(), store._bucket.settings), HERE))
        assert held not in receiver.ids, "the claim of the first sender holds"


def claim_and_die(sender: Sender, event_id: str, endpoint_id: str, ahead_s: float) -> None:
    with clock_off(ahead_s):
        assert sender._claim(f"webhooks-out/{event_id}.json", endpoint_id) is not None


@pytest.mark.parametrize(("first_s", "second_s"), OFF)
def test_a_key_expires_when_it_says(store: Store, first_s: float, second_s: float) -> None:
    with clock_off(first_s):
        _, secret = api_keys.create(store, "blue", "short", expires_at=store.now() + timedelta(minutes=5))
    with clock_off(second_s):
        assert api_keys.find(store, secret) is not None
