"""`kitae import openai replay`: the report, its measures, and a replay that was killed."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from ray_jobs import registry
from ray_jobs.importing.client import ApiClient, Document
from ray_jobs.importing.comparison import bootstrap_interval, compare, refuses, summarize
from ray_jobs.importing.completions import Asked, asked_of_completion, asked_of_row
from ray_jobs.importing.replay import chosen
from tests.builders import make_spec
from tests.importing.conftest import Kitae
from tests.importing.openai_stub import account, running
from tests.serving.api_harness import BASE, ApiServer, register, write_deployment

MODEL = "faq"
REPLAYS = Path(".kitae/import-openai/replay")


@pytest.fixture
def model(target: ApiServer) -> str:
    """A deployed model, whose engine repeats the question."""
    register(target.store, make_spec(MODEL, base_model=BASE), "1")
    registry.set_alias(target.store, MODEL, "champion", "1")
    write_deployment(target.store, MODEL)
    return MODEL


def asked(old: str | None, **more: object) -> Asked:
    found = asked_of_row("row", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": old}]})
    assert isinstance(found, Asked)
    return Asked(found.id, found.messages, {**found.answer, **more})


def test_stored_completions_are_replayed_into_a_report(kitae: Kitae, target: ApiServer, model: str) -> None:
    stub = account(completions=40)
    stub.completions[4]["choices"][0]["message"]["content"] = "質問 4"
    stub.messages["chatcmpl-00005"][1]["content_parts"] = [{"type": "image_url", "image_url": {"url": "data:x"}}]
    with running(stub):
        kitae("--base-url", stub.url)
    shown = json.loads(kitae("replay", "--model", model, "--json").stdout)
    assert (shown["asked"], shown["answered"]) == (40, 39)
    assert list(shown["not_answered"]) == ["chatcmpl-00005"]
    summary = {each["name"]: each for each in shown["summary"]}
    assert summary["exact match"]["value"] == pytest.approx(1 / 39)
    assert 0 <= summary["exact match"]["low"] <= 1 / 39 <= summary["exact match"]["high"]
    assert "JSON equal" not in summary
    page = Path(shown["page"]).read_text(encoding="utf-8")
    assert "回答 7" in page
    assert "質問 7" in page
    assert "not which is better" in page
    document = json.loads(Path(shown["document"]).read_text(encoding="utf-8"))
    assert document["prompts"][7]["old"] == "回答 8"
    calls = len(target.backend.calls)
    assert "nothing was asked" in kitae("replay", "--model", model).output
    assert len(target.backend.calls) == calls
    kitae("replay", "--model", model, "--again", "--limit", "5")
    assert len(target.backend.calls) == calls + 5


def test_a_killed_replay_asks_only_the_rest(
    kitae: Kitae, target: ApiServer, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(account(completions=30)) as stub:
        kitae("--base-url", stub.url)
    calls = 0
    post = ApiClient.post

    def post_or_die(client: ApiClient, path: str, body: Document, *, key: str | None = None) -> Document:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise KeyboardInterrupt
        return post(client, path, body, key=key)

    with monkeypatch.context() as dying:
        dying.setattr(ApiClient, "post", post_or_die)
        kitae("replay", "--model", model, fails=True)
    (answers,) = REPLAYS.glob("*/answers.jsonl")
    kept = answers.read_text(encoding="utf-8")
    assert 1 <= kept.count("\n") <= 10
    answers.write_text(kept + '{"id": "half', encoding="utf-8")
    shown = json.loads(kitae("replay", "--model", model, "--json").stdout)
    assert (shown["asked"], shown["answered"]) == (30 - kept.count("\n"), 30)


def test_validation_rows_are_prompts_too(kitae: Kitae, model: str) -> None:
    with running(account()) as stub:
        kitae("--base-url", stub.url)
    shown = json.loads(kitae("replay", "--model", model, "--json").stdout)
    assert shown["answered"] == 3
    assert {each["name"]: each["low"] for each in shown["summary"]}["exact match"] is None  # too few prompts
    assert "there are no prompts" in str(
        kitae("replay", "--model", model, "--prompts", "completions", fails=True).exception
    )
    assert "'none'" in str(kitae("replay", "--model", "none", fails=True).exception)


def test_measures_of_equal_and_of_other_answers() -> None:
    same = compare(asked("東京都です。"), {"content": " 東京都です。\n"})
    other = compare(asked("東京都です。"), {"content": "大阪府です。"})
    far = compare(asked("東京都です。"), {"content": "わかりません"})
    assert (same.exact, other.exact) == (True, False)
    assert same.chrf == pytest.approx(100)
    assert other.chrf is not None
    assert far.chrf is not None
    assert 100 > other.chrf > far.chrf
    assert compare(asked("abcd"), {"content": "ab"}).length_ratio == 0.5
    assert same.new_is_json is same.tools_equal is same.json_equal is None


def test_json_is_compared_as_json() -> None:
    old = asked('{"a": 1, "b": 2}')
    assert compare(old, {"content": '{"b":2,"a":1}'}).json_equal is True
    assert compare(old, {"content": '{"a": 2}'}).json_equal is False
    broken = compare(old, {"content": '{"a": 1'})
    assert (broken.new_is_json, broken.json_equal) == (False, False)


def test_tool_calls_are_compared_by_function_and_arguments() -> None:
    def call(arguments: str, name: str = "find") -> dict[str, object]:
        return {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}

    old = asked(None, **call('{"a": 1, "b": "東京"}'))
    assert compare(old, call('{"b": "東京", "a": 1}')).tools_equal is True
    assert compare(old, call('{"a": 2}')).tools_equal is False
    assert compare(old, call('{"a": 1, "b": "東京"}', "look")).tools_equal is False
    text = compare(old, {"content": "東京です"})
    assert (text.tools_equal, text.exact, text.chrf) == (False, False, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with this request.", True),
        ("申し訳ございませんが、その質問にはお答えできません。", True),
        ("恐れ入りますが、対応できかねます。", True),
        ("You can reset it in the settings.", False),
        ("申し訳ございません。設定画面から変更してください。", False),
        ("Paris. " * 60 + "I'm sorry, but I can't say more.", False),
    ],
)
def test_refusals(text: str, expected: bool) -> None:
    assert refuses({"content": text}) is expected
    assert refuses({"content": None, "refusal": "no"}) is True


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    """In a hundred samples of a share of 0.3, the interval misses it in about five."""
    chance = random.Random(5)
    missed = 0
    for i in range(100):
        sample = [float(chance.random() < 0.3) for _ in range(60)]
        low, high = bootstrap_interval(sample, statistics.fmean, seed=i)
        assert low is not None
        assert high is not None
        missed += not low <= 0.3 <= high
    assert 0 < missed <= 12
    assert bootstrap_interval([1.0] * 9, statistics.fmean) == (None, None)


def test_a_summary_has_each_measure_over_the_prompts_it_applies_to() -> None:
    pairs = [compare(asked("a"), {"content": "a"}), compare(asked("[1]"), {"content": "[1]"}, cut_off=True)]
    found = {each.name: (each.value, each.count) for each in summarize(pairs)}
    assert found["exact match"] == (1.0, 2)
    assert found["JSON equal"] == (1.0, 1)
    assert found["new answer cut off"] == (0.5, 2)
    assert "tool calls equal" not in found


def test_prompts_are_chosen_evenly() -> None:
    prompts = [asked(str(i)) for i in range(10)]
    assert [each.answer["content"] for each in chosen(prompts, 5)] == ["0", "2", "4", "6", "8"]
    assert chosen(prompts, 20) == prompts


def test_a_completion_without_messages_or_answer_says_why() -> None:
    assert asked_of_completion({"id": "1", "messages": None, "choices": []}) == "its messages are not there"
    user = [{"role": "user", "content": "q"}]
    assert asked_of_completion({"id": "1", "messages": user, "choices": [{}]}) == "its answer is not there"
    cut = {"finish_reason": "length", "message": {"content": "a"}}
    found = asked_of_completion({"id": "1", "messages": user, "choices": [cut], "tools": [], "response_format": None})
    assert isinstance(found, Asked)
    assert (found.whole, found.row) == (False, {"messages": [*user, {"role": "assistant", "content": "a"}]})
