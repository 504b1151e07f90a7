"""Usage: every counted row is stored once, whatever fails."""

from __future__ import annotations

import csv
import io
import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import SpecError, StoreAccessDenied, StoreUnreachable
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from serving.http.background import BackgroundLoop, PeriodicTask
from serving.observability.usage_ledger import UsageLedger
from tests.conftest import StoreServer
from tests.serving.observability.finished_requests import finished
from tests.storage.faulty_store import Forward, Request, Response, faulty

DAY = date(2026, 11, 24)
ALWAYS = ("--since", "2026-11-01", "--until", "2099-01-01")


def row(**changes: Any) -> UsageRow:
    fields: dict[str, Any] = {"day": DAY, "team": "blue", "key_id": "k1", "model": "m", "kind": "inference"}
    return UsageRow(**(fields | {"requests": 1} | changes))


def make_ledger(store: Store, **options: Any) -> UsageLedger:
    return UsageLedger(store, **({"today": lambda: DAY} | options))


def use(ledger: UsageLedger, team: str, key_id: str, prompt_tokens: int = 0) -> None:
    ledger.count(finished(team=team, key_id=key_id, prompt_tokens=prompt_tokens, completion_tokens=0))


def in_store(store: Store, team: str | None = None) -> list[UsageRow]:
    return usage.read(store, team, DAY, DAY)


def test_requests_are_added_up_and_each_object_is_named_by_team_day_and_writer(store: Store) -> None:
    ledger = make_ledger(store, writer="api-1")
    for _ in range(3):
        ledger.count(finished())
    ledger.count(finished(team="red", key_id="k2"))
    ledger.flush()
    ledger.count(finished(completion_tokens=9))
    ledger.flush()
    ledger.flush()  # nothing new: nothing is written
    keys = [info.key for info in store.list("usage/")]
    assert keys == [
        "usage/blue/2026-11-24/api-1-000001.json",
        "usage/blue/2026-11-24/api-1-000002.json",
        "usage/red/2026-11-24/api-1-000001.json",
    ]
    assert in_store(store) == [
        row(requests=4, prompt_tokens=12, completion_tokens=12),
        row(team="red", key_id="k2", prompt_tokens=3, completion_tokens=1),
    ]
    assert in_store(store, "red") == in_store(store)[1:]


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, 1),
        ({"model": None}, 0),
        ({"team": None}, 0),
        ({"key_id": None}, 0),
        ({"status": 429, "prompt_tokens": None, "completion_tokens": None}, 0),
        ({"status": 500, "completion_tokens": 5}, 1),  # the tokens were generated
        ({"prompt_tokens": None, "completion_tokens": None}, 1),
    ],
)
def test_only_answers_of_a_model_count(store: Store, changes: dict[str, Any], counted: int) -> None:
    ledger = make_ledger(store)
    ledger.count(finished(**changes))
    ledger.flush()
    assert sum(found.requests for found in in_store(store)) == counted


class Unsteady(Store):
    """A store whose writes fail as scripted: before the object is written, or after it, when the answer is lost."""

    def __init__(self, inner: Store) -> None:
        self.__dict__.update(inner.__dict__)
        self.faults: list[str] = []

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        fault = self.faults.pop(0) if self.faults else "none"
        if fault == "denied":
            raise StoreAccessDenied("made by a test")
        if fault == "before":
            raise StoreUnreachable("made by a test")
        etag = super().put(key, data, if_absent=if_absent, if_match=if_match)
        if fault == "after":
            raise StoreUnreachable("made by a test")
        return etag


_STEP = st.one_of(
    st.tuples(st.sampled_from(["blue", "red"]), st.sampled_from(["k1", "k2"]), st.integers(0, 50)),
    st.lists(st.sampled_from(["none", "before", "after", "denied"]), max_size=3),
)


@given(steps=st.lists(_STEP, max_size=14))
@example([("blue", "k1", 1), ["before"], ("blue", "k1", 2), ["none"]])
@example([("blue", "k1", 1), ["after"], ("blue", "k1", 2), ["none"]])
@example([("blue", "k1", 1), ("red", "k1", 2), ["none", "before"]])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_counted_once_whatever_fails(store: Store, steps: list[Any]) -> None:
    unsteady = Unsteady(store.at(f"{store.uri()}/{uuid.uuid4().hex}"))
    ledger = make_ledger(unsteady)
    expected: list[UsageRow] = []
    for step in steps:
        if isinstance(step, tuple):
            team, key_id, tokens = step
            use(ledger, team, key_id, tokens)
            expected.append(row(team=team, key_id=key_id, prompt_tokens=tokens))
        else:
            unsteady.faults = list(step)
            with suppress(StoreUnreachable, StoreAccessDenied):
                ledger.flush()
    unsteady.faults = []
    ledger.flush()
    ledger.flush()  # rows held back until their team's last batch was written
    assert in_store(unsteady) == usage.added(expected)


def test_a_write_with_a_lost_answer_is_counted_once(store: Store, store_server: StoreServer) -> None:
    """The same through a real client and a real connection that is cut."""
    cut = 1

    def fault(request: Request, forward: Forward) -> Response | None:
        nonlocal cut
        answer = forward(request)
        if request.method == "PUT" and cut:
            cut -= 1
            return None
        return answer

    with faulty(store_server.settings(patience_s=5.0), fault) as cut_off:
        ledger = make_ledger(Store(store.uri(), cut_off))
        use(ledger, "blue", "k1", 4)
        ledger.flush()
    assert cut == 0
    assert in_store(store) == [row(prompt_tokens=4)]


def test_a_team_that_cannot_be_written_does_not_delay_others(store: Store) -> None:
    unsteady = Unsteady(store)
    ledger = make_ledger(unsteady)
    use(ledger, "blue", "k1")
    use(ledger, "red", "k1")
    unsteady.faults = ["denied"]
    with pytest.raises(StoreAccessDenied):
        ledger.flush()
    assert [found.team for found in in_store(store)] == ["red"]


def test_memory_during_an_outage_grows_with_names_not_with_requests(store: Store) -> None:
    unsteady = Unsteady(store)
    ledger = make_ledger(unsteady, max_rows=5)
    for i in range(500):
        use(ledger, "blue", f"k{i % 20}", 1)
        if i % 100 == 0:
            unsteady.faults = ["before"]
            with pytest.raises(StoreUnreachable):
                ledger.flush()
    assert len(ledger._rows) <= 6
    assert sum(len(rows) for _, rows in ledger._batches.values()) <= 6
    for _ in range(2):
        ledger.flush()
    found = in_store(store)
    assert sum(one.requests for one in found) == sum(one.prompt_tokens for one in found) == 500
    assert "other" in {one.key_id for one in found}


def test_replicas_and_threads_count_concurrently(store: Store) -> None:
    ledgers = [make_ledger(store) for _ in range(3)]

    def work(ledger: UsageLedger) -> None:
        for _ in range(5):
            for _ in range(20):
                use(ledger, "blue", "k1", 1)
            ledger.flush()

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.flush()
    assert in_store(store) == [row(requests=600, prompt_tokens=600)]


def test_the_background_loop_flushes_periodically_and_at_shutdown_and_survives_failures(store: Store) -> None:
    unsteady = Unsteady(store)
    unsteady.faults = ["before"]
    ledger = make_ledger(unsteady)
    task = PeriodicTask("usage", 0.02, ledger.flush, at_shutdown=True)
    loop = BackgroundLoop([task])
    use(ledger, "blue", "k1")
    loop.start()
    deadline = time.monotonic() + 20
    while in_store(store) != [row()]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    task.every_s = 60
    time.sleep(0.1)
    use(ledger, "blue", "k1")
    loop.stop()
    assert unsteady.faults == []
    assert in_store(store) == [row(requests=2)]


def test_a_training_run_is_counted_once_by_many_replicas(store: Store) -> None:
    ran = row(kind="training", worker_seconds=120.5, gpu_seconds=241.0, prompt_tokens=900)
    assert usage.write(store, "blue", DAY, "ftjob-1", 1, [ran])
    assert not usage.write(store, "blue", DAY, "ftjob-1", 1, [ran])
    assert usage.write(store, "blue", DAY, "ftjob-1", 2, [ran])
    (found,) = in_store(store)
    assert (found.requests, found.worker_seconds, found.gpu_seconds) == (2, 241.0, 482.0)


@pytest.mark.parametrize("team", ["../keys", "blue/red", "", "Blue"])
def test_an_invalid_team_name_reaches_no_key(store: Store, team: str) -> None:
    with pytest.raises(SpecError):
        usage.read(store, team, DAY, DAY)
    with pytest.raises(SpecError):
        usage.write(store, team, DAY, "w", 1, [])
    with pytest.raises(ValueError, match="cannot be part of a key"):
        usage.write(store, "blue", DAY, "a/b", 1, [])


def test_an_invalid_object_is_left_out_and_counted(store: Store) -> None:
    usage.write(store, "blue", DAY, "w", 1, [row()])
    store.put_json(f"usage/blue/{DAY.isoformat()}/x.json", {"rows": [{"requests": "many"}]})
    assert in_store(store) == [row()]
    assert store.unreadable.counts() == {"usage object": 1}


def test_days_from_the_first_to_the_last_are_read(store: Store) -> None:
    for back in range(4):
        day = DAY - timedelta(days=back)
        usage.write(store, "blue", day, "w", 1, [row(day=day)])
    found = usage.read(store, "blue", DAY - timedelta(days=2), DAY - timedelta(days=1))
    assert [one.day.day for one in found] == [22, 23]


_ROWS = st.lists(
    st.builds(
        row,
        team=st.sampled_from(["blue", "red"]),
        key_id=st.sampled_from(["k1", "k2"]),
        model=st.sampled_from(["m", "n"]),
        kind=st.sampled_from(["inference", "training"]),
        requests=st.integers(0, 9),
        prompt_tokens=st.integers(0, 9),
        worker_seconds=st.integers(0, 9).map(float),
    )
)


@given(_ROWS, st.sampled_from(["team", "key", "model", "day"]), st.randoms(use_true_random=False))
def test_the_sum_is_independent_of_the_grouping(rows: list[UsageRow], by: Any, order: random.Random) -> None:
    expected = usage.total("total", rows)
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert usage.added(shuffled) == usage.added(rows)
    groups = usage.group(usage.added(shuffled), by)
    for field in usage.Total.model_fields:
        if field != "name":
            assert sum(getattr(one, field) for one in groups) == getattr(expected, field)


@pytest.fixture
def kitae(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)

    def run(*arguments: str) -> str:
        ran = CliRunner().invoke(cli, ["usage", *arguments])
        assert ran.exit_code == 0, ran.output
        return ran.output

    return run


@pytest.fixture
def month(store: Store) -> None:
    today = datetime.now(UTC).date()
    usage.write(store, "blue", today, "a", 1, [row(day=today, requests=1200, prompt_tokens=5000, completion_tokens=70)])
    usage.write(store, "red", DAY, "a", 2, [row(team="red", key_id="k2", requests=2)])
    trained = row(kind="training", model="n", requests=1, prompt_tokens=800, worker_seconds=5400.0, gpu_seconds=1800.0)
    usage.write(store, "blue", DAY, "ftjob-1", 1, [trained])


def cells(line: str) -> list[str]:
    return line.split()


@pytest.mark.usefixtures("month")
def test_the_table_has_one_line_per_team_and_a_sum(kitae: Callable[..., str]) -> None:
    lines = kitae(*ALWAYS).splitlines()
    assert cells(lines[-3]) == ["blue", "1,200", "5,000", "70", "1", "800", "1.50", "0.50"]
    assert cells(lines[-2]) == ["red", "2", "0", "0", "0", "0", "0.00", "0.00"]
    assert cells(lines[-1]) == ["total", "1,202", "5,000", "70", "1", "800", "1.50", "0.50"]


@pytest.mark.usefixtures("month")
def test_json_and_csv_have_the_same_numbers(kitae: Callable[..., str]) -> None:
    printed = json.loads(kitae("--by", "model", *ALWAYS, "--json"))
    assert [(one["model"], one["requests"], one["worker_seconds"]) for one in printed["rows"]] == [
        ("m", 1202, 0.0),
        ("n", 0, 5400.0),
    ]
    assert printed["total"]["requests"] == 1202
    read = list(csv.DictReader(io.StringIO(kitae("--by", "model", *ALWAYS, "--csv"))))
    assert read == [{name: str(value) for name, value in one.items()} for one in printed["rows"]]


@pytest.mark.usefixtures("month")
def test_one_team_one_day_and_keys_by_their_team(kitae: Callable[..., str]) -> None:
    one_day = kitae("--team", "red", "--since", "2026-11-24", "--until", "2026-11-24", "--by", "key")
    assert cells(one_day.splitlines()[-2])[:2] == ["red/k2", "2"]
    assert "no usage from 2020-01-01 to 2020-01-02" in kitae("--since", "2020-01-01", "--until", "2020-01-02")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "2026-11-02", "--until", "2026-11-01"], "is after the last day"),
        (["--since", "yesterday"], "does not match the format"),
        (["--json", "--csv"], "exclude each other"),
    ],
)
def test_contradictory_options_are_refused(store: Store, arguments: list[str], message: str) -> None:
    ran = CliRunner().invoke(cli, ["usage", *arguments])
    assert ran.exit_code == 2
    assert message in ran.output
