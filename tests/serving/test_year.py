"""The number of objects and requests stays bounded, day after day."""

from __future__ import annotations

import pytest

from ray_jobs.storage.turns import take_turn
from ray_jobs.tenancy import api_keys, usage
from serving.fine_tuning import records
from serving.fine_tuning.cleanup import sweep_claims, sweep_places
from serving.http.ids import new_id
from tests.serving.year import ANSWERS, ANSWERS_LIVE_DAYS, FILES, FILES_LIVE_DAYS, FLUSHES, JOBS, Year, tick_over
from tests.storage.memory_store import START_S, memory_store

TEAMS = 3


@pytest.fixture(scope="module")
def year() -> Year:
    year = Year(TEAMS)
    for _ in range(FILES_LIVE_DAYS + 5):
        year.live_a_day()
    return year


def test_what_requests_leave_behind_is_cleaned_or_summed_up(year: Year) -> None:
    counts, days = year.counts(), FILES_LIVE_DAYS + 5
    assert counts["jobs"] == JOBS * TEAMS * days, "jobs stay"
    assert counts["files"] == counts["contents"] == counts["expiring"] <= FILES * TEAMS * (FILES_LIVE_DAYS + 1)
    kept = ANSWERS * TEAMS * (ANSWERS_LIVE_DAYS + 1)
    assert 0 < counts["answers"] <= kept
    prefix = f"kitae/teams/{year.teams[0]}/index/answers/"
    entries = sum(key.startswith(prefix) for key in year.client.objects)
    assert 0 < entries <= 3 * kept / TEAMS, "the model twice and a pair of metadata; no longer than the answers"
    assert counts["creates"] <= JOBS * TEAMS * 4
    assert counts["usage"] <= TEAMS * (days + 2 * FLUSHES + JOBS), "one a day and team, and those of the last hours"
    assert counts["uploads"] <= 2 * TEAMS * 2
    assert counts["webhooks-out"] <= JOBS * TEAMS
    assert counts["open"] == 0
    assert counts["places"] <= TEAMS
    assert counts["turns"] == len(year.replicas[0].chores)


def test_no_usage_is_lost(year: Year) -> None:
    today = year.now.date()
    total = usage.group(usage.read(year.store, year.teams[0], today.replace(year=2000), today), "team")[0]
    days = FILES_LIVE_DAYS + 5
    assert (total.requests, total.training_runs) == (2 * FLUSHES * days, JOBS * days)


def test_the_chores_of_a_day_cost_the_same_every_day(year: Year) -> None:
    costs = []
    for _ in range(3):
        year.live_a_day()
        costs.append(year.chores_cost)
    assert max(costs) <= 1.1 * min(costs)
    assert max(costs) <= 450 * TEAMS


def test_a_tick_over_ten_thousand_open_jobs_is_bounded() -> None:
    few, _ = tick_over(300)
    many, _ = tick_over(2000)
    assert max(many) <= max(few) + 2, "one more listing per thousand"


def test_one_of_several_replicas_takes_a_turn() -> None:
    store, client = memory_store()
    other, _ = memory_store(client)
    assert take_turn(store, "chore", every_s=60)
    assert not take_turn(other, "chore", every_s=60)
    client.clock.at_s += 60
    assert take_turn(other, "chore", every_s=60)
    assert not take_turn(store, "chore", every_s=60)
    store.put("turns/chore.json", b"not JSON")
    assert take_turn(store, "chore", every_s=60), "a damaged record stops no chore"


def test_claims_are_kept_for_two_days_and_places_for_the_life_of_their_keys() -> None:
    store, client = memory_store()
    identifier = new_id(records.KIND, now_s=START_S)
    records.claim(store, "blue", "key", "request", identifier, retried=False, now_s=START_S)
    key, _ = api_keys.create(store, "blue", "a key")
    for key_id in (key.id, "unknown"):
        records.reserve_slot(store, "blue", key_id, identifier, 1, START_S)
    client.clock.at_s += 86_400
    assert (sweep_claims(store, store.now_s()), sweep_places(store, store.now_s())) == (0, 0)
    assert records.claim(store, "blue", "key", "request", "other", retried=True, now_s=START_S) == identifier
    api_keys.revoke(store, key.id)
    client.clock.at_s += 86_401
    records.mark_open(store, "blue", key.id, identifier)
    assert sweep_places(store, store.now_s()) == 0, "it has an open job"
    records.unmark_open(store, key.id, identifier)
    assert (sweep_claims(store, store.now_s()), sweep_places(store, store.now_s())) == (1, 1)
    assert [info.key for info in store.list("places")] == ["places/unknown.json"]
