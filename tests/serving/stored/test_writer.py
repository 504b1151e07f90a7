"""The writing of answers: bounded, retried, and never lost without a log line and a count."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from ray_jobs.errors import StoreUnreachable
from ray_jobs.storage import Workspace
from ray_jobs.tenancy.answers import records
from ray_jobs.tenancy.answers.records import StoredAnswer
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.http.errors import ApiError
from serving.http.ids import new_id
from serving.stored import writer as writing
from serving.stored.answers import StoredAnswers
from serving.stored.writer import AnswerWriter
from tests.storage.memory_store import START_S, memory_store


@pytest.fixture
def store() -> Workspace:
    return memory_store()[0]


class Outcomes(Counter[str]):
    """Counts outcomes."""

    def add(self, outcome: str) -> None:
        self[outcome] += 1


def answer(number: int = 0, *, team: str = "blue", text: str = "x") -> StoredAnswer:
    return StoredAnswer(
        id=new_id("chatcmpl", now_s=START_S + number), team=team, key_id="k", model="m@1", requested_model="m",
        created_at=0, input=[{"role": "user", "content": text}], answer={"choices": []},
    )  # fmt: skip


def made(store: Workspace, quotas: TeamQuotas | None = None) -> tuple[AnswerWriter, Outcomes]:
    seen = Outcomes()
    return AnswerWriter(store, quotas or TeamQuotas(), seen.add, delays_s=(0.0, 0.0)), seen


def names(store: Workspace, team: str = "blue") -> list[str]:
    return records.documents(team, "chat").names(store)


def test_answers_are_written_and_a_reader_waits_for_them(store: Workspace) -> None:
    writer, seen = made(store)
    submitted = [answer(i) for i in range(20)]
    for each in submitted:
        writer.submit("chat", each)
    writer.settle("blue", 10)
    assert names(store) == [each.id for each in submitted]
    writer.close()
    assert seen == {"stored": 20}


def test_a_failed_write_is_tried_again(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, seen = made(store)
    real, failures = records.write, iter([True, True])

    def write(*arguments: Any) -> None:
        if next(failures, False):
            raise StoreUnreachable("away")
        real(*arguments)

    monkeypatch.setattr(records, "write", write)
    assert writer.submit("chat", answer()).result() == "stored"
    assert seen == {"stored": 1}


def test_an_answer_that_cannot_be_written_is_counted_and_logged(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, seen = made(store)

    def away(*_: Any) -> None:
        raise StoreUnreachable("the store is away")

    monkeypatch.setattr(records, "write", away)
    lost = answer(text="a secret prompt")
    assert writer.submit("chat", lost).result() == "failed"
    assert seen == {"failed": 1}
    assert lost.id in caplog.text
    assert "the store is away" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.undo()
    assert writer.submit("chat", answer(1)).result() == "stored", "what failed does not count against the team"


def test_a_team_has_limits_of_its_own(store: Workspace) -> None:
    quotas = TeamQuotas(stored_answers=3, teams={"red": {"stored_answer_bytes": 1500}})
    writer, seen = made(store, quotas)
    results = [writer.submit("chat", answer(i)).result() for i in range(4)]
    assert results == ["stored"] * 3 + ["no_room"]
    assert not writer.has_room("blue")
    assert writer.submit("chat", answer(team="red", text="y" * 1500)).result() == "no_room"
    assert writer.submit("chat", answer(team="red")).result() == "stored"
    assert seen == {"stored": 4, "no_room": 2}
    again, _ = made(store, quotas)
    assert again.submit("chat", answer(5)).result() == "no_room", "another process counts what is stored"


def test_room_is_found_again_once_answers_are_deleted(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_TOTALS_TTL_S", 0.0)
    writer, _ = made(store, TeamQuotas(stored_answers=1))
    first = answer()
    assert writer.submit("chat", first).result() == "stored"
    assert writer.submit("chat", answer(1)).result() == "no_room"
    records.delete(store, "chat", first)
    assert writer.submit("chat", answer(2)).result() == "stored"


def test_what_waits_is_bounded(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, seen = made(store)
    go, real = threading.Event(), records.write

    def slow(*arguments: Any) -> None:
        go.wait(30)
        real(*arguments)

    monkeypatch.setattr(records, "write", slow)
    monkeypatch.setattr(writing, "_WAITING_BYTES", 4000)
    pending = [writer.submit("chat", answer(i, text="y" * 1000)) for i in range(6)]
    go.set()
    results = Counter(each.result() for each in pending)
    assert results == {"stored": 3, "queue_full": 3}
    assert seen == results


def test_what_could_not_be_read_again_is_not_written(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, seen = made(store)
    nested: Any = []
    for _ in range(70):
        nested = [nested]
    assert writer.submit("chat", answer().model_copy(update={"answer": {"x": nested}})).result() == "too_large"
    monkeypatch.setattr(writing, "MAX_ANSWER_BYTES", 1000)
    assert writer.submit("chat", answer(text="y" * 1000)).result() == "too_large"
    assert seen == {"too_large": 2}
    assert names(store) == []


def test_closing_writes_what_waits(store: Workspace) -> None:
    writer, seen = made(store)
    for i in range(30):
        writer.submit("chat", answer(i))
    writer.close()
    assert seen["stored"] == len(names(store)) == 30
    assert writer.submit("chat", answer(31)).result() == "queue_full"


def admit(stored: StoredAnswers, wanted: bool | None, *, default: bool = False) -> bool:
    return asyncio.run(stored.admit("blue", wanted, default=default))


def test_a_team_without_room_is_refused_before_its_answer_is_generated(store: Workspace) -> None:
    seen = Outcomes()
    stored = StoredAnswers(store, TeamQuotas(stored_answers=1), 30, seen.add)
    assert admit(stored, True)
    stored.keep("chat", answer()).result()
    with pytest.raises(ApiError) as caught:
        admit(stored, True)
    assert (caught.value.status, caught.value.code) == (429, "stored_answers_exceeded")
    assert caught.value.headers["x-should-retry"] == "false"
    assert not admit(stored, None, default=True), "a response that did not ask for it is answered all the same"
    assert seen["no_room"] == 2


def test_nothing_is_stored_with_a_retention_of_no_days(store: Workspace) -> None:
    stored = StoredAnswers(store, TeamQuotas(), 0, Outcomes().add)
    assert not admit(stored, None, default=True)
    with pytest.raises(ApiError) as caught:
        admit(stored, True)
    assert caught.value.code == "storing_disabled"


def test_answers_are_given_while_the_store_is_away(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> bool:
        raise StoreUnreachable("away")

    seen = Outcomes()
    monkeypatch.setattr("ray_jobs.tenancy.answers.policy.may_store", away)
    assert not admit(StoredAnswers(store, TeamQuotas(), 30, seen.add), True)
    assert seen == {"failed": 1}
