"""Stored chat completions by the official client: made by `store: true`, listed, read, changed, deleted, exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner, Result
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.data.row_validation import check_rows
from ray_jobs.tenancy.answers import policy
from ray_jobs.tenancy.answers.rows import AnswerFilter, stored_rows
from tests.serving.answers_server import MODEL, OTHER, TEAM, AnswersServer, answers_server

TOOLS: Any = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"word": "a"}'}}


@pytest.fixture
def here() -> Iterator[AnswersServer]:
    with answers_server(key_ttl_s=60.0) as running:
        yield running


def question(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def ask(here: AnswersServer, text: str, **more: Any) -> ChatCompletion:
    """Store an answer. A moment passes, so that ids are in the order of their making."""
    here.wait(days=1 / 86_400)
    answer: ChatCompletion = here.client.chat.completions.create(
        model=MODEL, messages=question(text), store=True, **more
    )
    return answer


def stream(here: AnswersServer, text: str, **more: Any) -> list[Any]:
    here.wait(days=1 / 86_400)
    return list(
        here.client.chat.completions.create(model=MODEL, messages=question(text), store=True, stream=True, **more)
    )


def test_an_answer_is_stored_with_its_request(here: AnswersServer) -> None:
    answer = ask(here, "good day", metadata={"k": "v"}, temperature=0.5)
    found = here.client.chat.completions.retrieve(answer.id)
    assert answer.id.startswith("chatcmpl-")
    assert (found.id, found.choices[0].message.content) == (answer.id, "good day")
    assert found.usage == answer.usage
    assert (found.to_dict()["metadata"], found.to_dict()["temperature"]) == ({"k": "v"}, 0.5)
    (message,) = here.client.chat.completions.messages.list(answer.id)
    assert (message.id, message.role, message.content) == (f"{answer.id}-0", "user", "good day")


def test_without_store_nothing_is_stored(here: AnswersServer) -> None:
    create: Any = here.client.chat.completions.create
    for store in ({}, {"store": False}):
        create(model=MODEL, messages=question("x"), metadata={"k": "v"}, **store)
    assert list(here.client.chat.completions.list()) == []
    assert not [key for key in here.memory.objects if "/answers/" in key]


def test_a_stream_is_stored_as_the_whole_answer(here: AnswersServer) -> None:
    chunks = stream(here, "one two three", metadata={"k": "v"})
    (identifier,) = {chunk.id for chunk in chunks}
    found = here.client.chat.completions.retrieve(identifier)
    assert found.object == "chat.completion"
    assert found.choices[0].message.content == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None, "also without stream_options"
    assert found.usage.total_tokens == 6
    assert all(chunk.usage is None for chunk in chunks)


def test_a_streamed_tool_call_is_put_together(here: AnswersServer) -> None:
    here.backend.message, here.backend.finish_reason = {"content": None, "tool_calls": [CALL]}, "tool_calls"
    chunks = stream(here, "find a", tools=TOOLS, tool_choice="none")
    found = here.client.chat.completions.retrieve(chunks[0].id)
    calls = found.choices[0].message.tool_calls
    assert calls is not None
    assert [call.to_dict() for call in calls] == [CALL]
    assert found.to_dict()["tools"] == TOOLS


def test_a_stream_that_breaks_off_is_not_stored(here: AnswersServer) -> None:
    here.backend.failure, here.backend.fail_after = RuntimeError("x"), 2
    with pytest.raises(openai.APIError):
        stream(here, "a b c d")
    assert list(here.client.chat.completions.list()) == []


def test_lists_are_filtered_ordered_and_paged(here: AnswersServer) -> None:
    made = [ask(here, f"word {i}", metadata={"even": str(i % 2 == 0), "all": "yes"}).id for i in range(7)]
    completions = here.client.chat.completions

    def listed(**filters: Any) -> list[str]:
        return [each.id for each in completions.list(**filters)]

    assert listed() == made
    assert listed(order="desc", limit=2) == made[::-1], "the client fetches every page"
    assert listed(metadata={"even": "True", "all": "yes"}, limit=2) == made[::2]
    assert listed(metadata={"even": "True", "all": "yes"}, limit=2, order="desc") == made[::-2]
    assert listed(model=MODEL) == listed(model=f"{MODEL}@1") == made
    assert listed(model="another") == listed(metadata={"even": "maybe"}) == []
    page = completions.list(limit=3, after=made[1])
    assert [each.id for each in page.data] == made[2:5]
    assert page.has_more
    assert page.to_dict()["last_id"] == made[4]
    for wrong in ({"after": "chatcmpl-1"}, {"limit": 101}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            completions.list(**wrong)


def test_messages_are_paged_and_show_parts(here: AnswersServer) -> None:
    parts: Any = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: Any = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    answer = here.client.chat.completions.create(model=MODEL, messages=messages, store=True)
    found = list(here.client.chat.completions.messages.list(answer.id, limit=1))
    assert [message.content for message in found] == ["s", "ab"]
    assert found[1].to_dict()["content_parts"] == parts
    newest = here.client.chat.completions.messages.list(answer.id, order="desc", limit=1)
    assert newest.data[0].content == "ab"


def test_metadata_is_replaced_and_found(here: AnswersServer) -> None:
    answer, completions = ask(here, "x", metadata={"old": "1", "both": "1"}), here.client.chat.completions
    changed = completions.update(answer.id, metadata={"new": "2", "both": "1"})
    assert changed.to_dict()["metadata"] == {"new": "2", "both": "1"}
    assert completions.retrieve(answer.id).to_dict()["metadata"] == {"new": "2", "both": "1"}
    for filters, count in (({"old": "1"}, 0), ({"new": "2"}, 1), ({"both": "1"}, 1)):
        assert len(list(completions.list(metadata=filters))) == count, filters
    entries = [key for key in here.memory.objects if "/index/answers/" in key]
    assert len(entries) == 4, "of the model's two names and the two pairs; none of the old pair"
    assert completions.update(answer.id, metadata=None).to_dict()["metadata"] == {}
    with pytest.raises(openai.BadRequestError):
        completions.update(answer.id, metadata={"k": "v" * 513})


def test_delete_leaves_nothing_behind(here: AnswersServer) -> None:
    answer = ask(here, "x", metadata={"k": "v"})
    deleted = here.client.chat.completions.delete(answer.id)
    assert (deleted.deleted, deleted.object) == (True, "chat.completion.deleted")
    with pytest.raises(openai.NotFoundError) as caught:
        here.client.chat.completions.retrieve(answer.id)
    assert caught.value.code == "completion_not_found"
    assert not [key for key in here.memory.objects if "/answers/" in key]


def test_another_teams_answers_are_unknown(here: AnswersServer) -> None:
    answer = ask(here, "secret")
    theirs = here.other.chat.completions
    assert list(theirs.list()) == []
    for call in (
        theirs.retrieve,
        theirs.delete,
        lambda name: theirs.update(name, metadata={}),
        theirs.messages.list,
    ):
        with pytest.raises(openai.NotFoundError):
            call(answer.id)
    assert here.client.chat.completions.retrieve(answer.id).id == answer.id


def test_a_team_that_stores_nothing_refuses_store(here: AnswersServer) -> None:
    policy.set_policy(here.store, OTHER, allowed=False)
    with pytest.raises(openai.BadRequestError) as caught:
        here.other.chat.completions.create(model=MODEL, messages=question("x"), store=True)
    assert (caught.value.code, caught.value.param) == ("storing_disabled", "store")
    assert not here.backend.calls, "refused before it is generated"
    assert here.other.chat.completions.create(model=MODEL, messages=question("x")).choices


def test_answers_expire_and_are_swept(here: AnswersServer) -> None:
    old = ask(here, "old", metadata={"k": "v"})
    here.wait(days=29)
    kept = ask(here, "new", metadata={"k": "v"})
    here.client.chat.completions.update(old.id, metadata={"k": "w"})
    here.wait(days=2)
    assert [each.id for each in here.client.chat.completions.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        here.client.chat.completions.retrieve(old.id)
    assert sweep(here) == 1
    assert not [key for key in here.memory.objects if old.id in key]
    assert [each.id for each in here.client.chat.completions.list(metadata={"k": "v"})] == [kept.id]


def sweep(here: AnswersServer) -> int:
    from ray_jobs.tenancy.team_limits import TeamQuotas
    from serving.stored.answers import StoredAnswers

    return StoredAnswers(here.store, TeamQuotas(), 30, lambda outcome: None).sweep(here.store.now_s())


def test_rows_are_the_whole_answers_with_their_questions(here: AnswersServer) -> None:
    ask(here, "first", metadata={"good": "yes"})
    here.backend.finish_reason = "length"
    ask(here, "cut off", metadata={"good": "yes"})
    here.backend.message, here.backend.finish_reason = {"content": None, "tool_calls": [CALL]}, "tool_calls"
    ask(here, "find a", metadata={"good": "yes"}, tools=TOOLS, tool_choice="none")
    ask(here, "bad", metadata={"good": "no"})
    assert len(list(here.client.chat.completions.list())) == 4
    rows = list(stored_rows(here.store, TEAM, AnswerFilter(model=MODEL, metadata={"good": "yes"})))
    assert rows == [
        {"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "first"}]},
        {
            "messages": [{"role": "user", "content": "find a"}, {"role": "assistant", "tool_calls": [CALL]}],
            "tools": TOOLS,
        },
    ]
    assert list(stored_rows(here.store, OTHER, AnswerFilter())) == []


def export(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["completions", "export", *arguments], prog_name="kitae")


def test_an_export_is_a_file_for_fine_tuning(
    here: AnswersServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: here.store)
    for i in range(12):
        ask(here, f"question {i}", metadata={"good": "yes"})
    assert len(list(here.client.chat.completions.list())) == 12
    out = tmp_path / "rows.jsonl"
    done = export("--team", TEAM, "--model", MODEL, "--metadata", "good=yes", "--out", str(out))
    assert done.output == f"12 rows in {out}\n"
    assert json.loads(out.read_text().splitlines()[0])["messages"][1]["content"] == "question 0"
    here.store.put("rows.jsonl", out.read_bytes())
    assert check_rows(here.store, "rows.jsonl", "rows.jsonl", "chat", None).rows == 12
    for arguments in (("--team", OTHER), ("--team", TEAM, "--metadata", "good=no")):
        assert export(*arguments, "--out", str(tmp_path / "none.jsonl")).exception is not None
    assert export("--team", TEAM, "--metadata", "good", "--out", str(out)).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
