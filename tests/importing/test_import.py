"""`kitae import openai` from a stub of OpenAI's API to the endpoint: what comes over, what is refused, and resuming."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.importing.workdir import ImportState, Workdir
from tests.importing.conftest import Kitae
from tests.importing.openai_stub import BAD, KEY, TRAINING, VALIDATION, account, exact_eval, running
from tests.serving import api_harness
from tests.serving.api_harness import BASE, ApiServer

WORKDIR = Path(".kitae/import-openai")


def at_target(target: ApiServer, path: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{target.url}/v1{path}", headers={"Authorization": f"Bearer {api_harness.KEY}"})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def content(target: ApiServer, identifier: str) -> bytes:
    url = f"{target.url}/v1/files/{identifier}/content"
    return httpx.get(url, headers={"Authorization": f"Bearer {api_harness.KEY}"}).content


def contents(target: ApiServer) -> list[tuple[str, bytes]]:
    return sorted((each["filename"], content(target, each["id"])) for each in at_target(target, "/files"))


def everything_written(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and "cache" not in path.parts)


def test_an_account_comes_over_and_a_second_run_changes_nothing(
    kitae: Kitae, target: ApiServer, tmp_path: Path
) -> None:
    stub = account(completions=1000)
    stub.refuse_every, stub.ignores_purpose = 50, True
    with running(stub):
        first = kitae("--base-url", stub.url, "--apply")
        there = contents(target)
        state = (WORKDIR / "state.json").read_text()
        stub.paths.clear()
        second = kitae("--base-url", stub.url, "--apply")
    sent = dict(there)
    assert sorted(sent) == ["openai-completions.jsonl", "train.jsonl", "valid.jsonl"]
    assert sent["train.jsonl"] == stub.contents[TRAINING]
    assert sent["valid.jsonl"] == stub.contents[VALIDATION]
    rows = [json.loads(line) for line in sent["openai-completions.jsonl"].splitlines()]
    assert len(rows) == 1000
    assert rows[7]["messages"] == [
        {"role": "system", "content": "答えてください。"},
        {"role": "user", "content": [{"type": "text", "text": "質問 7"}]},
        {"role": "assistant", "content": "回答 7"},
    ]
    assert len(json.loads((WORKDIR / "jobs.json").read_text())) == 4
    assert "/evals is skipped: OpenAI no longer has it (404)" in first.output
    assert "manual.pdf" not in first.output
    assert "nothing to do: everything is there already" in second.output
    assert (WORKDIR / "state.json").read_text() == state
    assert contents(target) == there
    assert not [path for path in stub.paths if path.endswith(("/content", "/messages"))]
    assert KEY.encode() not in everything_written(tmp_path) + (first.output + second.output).encode()


def test_a_dry_run_writes_nothing_to_the_target_and_names_what_is_refused(kitae: Kitae, target: ApiServer) -> None:
    with running(account(completions=3)) as stub:
        shown = kitae("--base-url", stub.url).output
        plan = json.loads(kitae("--base-url", stub.url, "--json").stdout)
    assert at_target(target, "/files") == at_target(target, "/fine_tuning/jobs") == []
    assert not (WORKDIR / "state.json").exists()
    files = {each["id"]: each for each in plan["files"]}
    assert files[BAD]["action"] == "refused"
    assert [finding.partition(":")[0] for finding in files[BAD]["findings"]] == ["line 2", "line 3"]
    assert "line 2: messages must be a non-empty list" in shown
    assert "rows of preferences" in shown
    assert "[v2] preferences.jsonl   " in shown
    assert "would be brought: --apply does it" in shown
    jobs = {each["mapped"]["id"]: each for each in plan["jobs"]}
    assert {name: bool(each["mapped"]["problems"]) for name, each in jobs.items()} == {
        "ftjob-Good1": False, "ftjob-Dpo1": True, "ftjob-Bad1": True, "ftjob-Gone1": True,
    }  # fmt: skip
    assert jobs["ftjob-Good1"]["proposed"] == BASE
    assert any(
        "learning_rate_multiplier: OpenAI's 1.8" in each for each in jobs["ftjob-Good1"]["mapped"]["differences"]
    )


def test_refused_rows_are_left_out_on_request(kitae: Kitae, target: ApiServer) -> None:
    with running(account()) as stub:
        shown = kitae("--base-url", stub.url, "--apply", "--drop-refused").output
        assert "without 2 refused row(s)" in shown
        assert "nothing to do" in kitae("--base-url", stub.url, "--apply", "--drop-refused").output
    lines = stub.contents[BAD].splitlines()
    assert dict(contents(target))["bad.jsonl"].splitlines() == [lines[0], lines[3]]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_import_resumes_to_the_same_result(
    kitae: Kitae, target: ApiServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """It is killed while it reads from OpenAI, and after each object that it has created, before recording it."""
    stub, chosen = account(completions=250), random.Random(seed)
    save = Workdir.save
    deaths = 0

    def save_or_die(workdir: Workdir, state: ImportState) -> None:
        if chosen.random() < 0.6:
            raise KeyboardInterrupt
        save(workdir, state)

    monkeypatch.setattr(Workdir, "save", save_or_die)
    arguments = ["--apply", "--retrain", BASE]
    with running(stub):
        while True:
            stub.paths.clear()
            stub.dies_after = chosen.randrange(20, 200) if deaths < 4 else None
            if deaths > 12:
                monkeypatch.setattr(Workdir, "save", save)
            try:
                shown = kitae("--base-url", stub.url, *arguments).output
                break
            except AssertionError:
                deaths += 1
        assert "nothing to do" in kitae("--base-url", stub.url, *arguments).output
    assert deaths >= 2, shown
    sent = dict(found := contents(target))
    assert [name for name, _ in found] == ["openai-completions.jsonl", "train.jsonl", "valid.jsonl"]
    answers = [json.loads(line)["messages"][-1]["content"] for line in sent["openai-completions.jsonl"].splitlines()]
    assert answers == [f"回答 {i}" for i in range(250)]
    assert len(at_target(target, "/fine_tuning/jobs")) == 1


def test_jobs_are_created_on_a_base(kitae: Kitae, target: ApiServer) -> None:
    with running(account()) as stub:
        kitae("--base-url", stub.url, "--apply")
        assert at_target(target, "/fine_tuning/jobs") == []
        kitae("--base-url", stub.url, "--retrain", BASE)
        assert at_target(target, "/fine_tuning/jobs") == []
        assert "ftjob-Good1 → ftjob-" in kitae("--base-url", stub.url, "--apply", "--retrain", BASE).output
        # Both are gone: what was recorded here, and the endpoint's memory of the Idempotency-Key.
        (WORKDIR / "state.json").unlink()
        target.store.root.delete_tree("teams/default/creates")
        kitae("--base-url", stub.url, "--apply", "--retrain", BASE)
    (job,) = at_target(target, "/fine_tuning/jobs")
    names = {each["id"]: each["filename"] for each in at_target(target, "/files")}
    assert (names[job["training_file"]], names[job["validation_file"]]) == ("train.jsonl", "valid.jsonl")
    assert (job["model"], job["seed"]) == (BASE, 42)
    assert job["metadata"] == {"app": "faq", "openai_job": "ftjob-Good1"}
    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}


def test_a_job_that_cannot_be_trained_again_is_refused_before_anything_is_sent(kitae: Kitae, target: ApiServer) -> None:
    with running(account()) as stub:
        wrong = ["--job", "ftjob-Dpo1", "--job", "ftjob-Gone1", "--job", "ftjob-None"]
        refused = kitae("--base-url", stub.url, "--apply", "--retrain", BASE, *wrong, fails=True)
        unknown = kitae("--base-url", stub.url, "--apply", "--retrain", "tiny-chet", fails=True)
    assert "method dpo" in str(refused.exception)
    assert "file-Deleted1 does not come over" in str(refused.exception)
    assert "ftjob-None: there is no such job" in str(refused.exception)
    assert "did you mean 'tiny-chat'?" in str(unknown.exception)
    assert at_target(target, "/files") == []


def test_jobs_that_the_endpoint_refuses_are_all_named_and_none_is_created(kitae: Kitae, target: ApiServer) -> None:
    stub = account()
    stub.add_file("file-Few1", api_harness.rows(4), "few.jsonl")
    stub.jobs.append({**stub.jobs[0], "id": "ftjob-Few1", "training_file": "file-Few1", "validation_file": None})
    with running(stub):
        refused = kitae("--base-url", stub.url, "--apply", "--retrain", BASE, fails=True)
        assert "ftjob-Few1" in str(refused.exception)
        assert "at least 10 are needed" in str(refused.exception)
        assert at_target(target, "/fine_tuning/jobs") == []
        kitae("--base-url", stub.url, "--apply", "--retrain", BASE, "--job", "ftjob-Good1")
    assert len(at_target(target, "/fine_tuning/jobs")) == 1


def test_exported_files_come_over_without_openai(
    kitae: Kitae, target: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    export = tmp_path / "export"
    for folder in ("files", "evals", "completions"):
        (export / folder).mkdir(parents=True)
    stub = account(completions=5)
    (export / "files" / f"{TRAINING}.jsonl").write_bytes(stub.contents[TRAINING])
    (export / "jobs.json").write_text(json.dumps({"object": "list", "data": stub.jobs[:1]}))
    (export / "evals" / "answers.json").write_text(json.dumps(exact_eval()))
    lines = [json.dumps({**each, "messages": stub.messages[each["id"]]}) for each in stub.completions]
    (export / "completions" / "may.jsonl").write_text("\n".join(lines) + "\n")
    shown = kitae("--from", "export", "--apply").output
    assert {each["filename"] for each in at_target(target, "/files")} == {
        f"{TRAINING}.jsonl", "openai-completions.jsonl",
    }  # fmt: skip
    assert "eval_1" in shown
    assert "same (string_check), good (score_model)" in shown
    assert f"validation_file {VALIDATION} does not come over: it is not at OpenAI any more" in shown
    # What a run has fetched is such a directory too.
    assert "nothing to do" in kitae("--from", "export", "--apply").output
    empty = kitae("--from", str(WORKDIR), "--apply", fails=True)
    assert "has nothing to import" in str(empty.exception)


def test_evals_are_read_while_the_api_answers(kitae: Kitae) -> None:
    stub = account()
    stub.evals = [exact_eval()]
    with running(stub):
        shown = kitae("--base-url", stub.url).output
    assert json.loads((WORKDIR / "evals" / "eval_1.json").read_text())["name"] == "answers"
    assert "criterion 'good' is judged by gpt-4o" in shown


def test_errors_come_before_anything_is_fetched(
    kitae: Kitae, target: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(account()) as stub:
        monkeypatch.setenv("KITAE_API_KEY", "another-key-that-is-not-valid")
        assert "KITAE_API_KEY is not valid" in str(kitae("--base-url", stub.url, "--apply", fails=True).exception)
        assert stub.paths == []
        monkeypatch.setenv("KITAE_API_KEY", api_harness.KEY)
        wrong = "sk-" + "w" * 40
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        refused = kitae("--base-url", stub.url, "--apply", fails=True)
        assert "the key in OPENAI_API_KEY is not valid there" in str(refused.exception)
        assert wrong not in str(refused.exception) + refused.output
        monkeypatch.setenv("OPENAI_API_KEY", "two words")
        assert "two words" not in str(kitae("--base-url", stub.url, fails=True).exception)
        monkeypatch.delenv("OPENAI_API_KEY")
        assert "set OPENAI_API_KEY" in str(kitae("--base-url", stub.url, fails=True).exception)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        secret = kitae("--base-url", "https://user:secret@proxy.example/v1", fails=True)
        assert "secret" not in str(secret.exception)
        monkeypatch.setenv("KITAE_TEAM", "red")
        kitae("--base-url", stub.url, "--apply")
        monkeypatch.setenv("KITAE_TEAM", "blue")
        assert "name another --workdir" in str(kitae("--base-url", stub.url, "--apply", fails=True).exception)


def test_a_plan_needs_no_target(kitae: Kitae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KITAE_API_KEY")
    with running(account()) as stub:
        shown = kitae("--base-url", stub.url).output
        assert "the target is not known: set KITAE_API_KEY" in shown
        assert "line 2: messages must be a non-empty list" in shown
        assert "set KITAE_API_KEY" in str(kitae("--base-url", stub.url, "--apply", fails=True).exception)


def test_what_the_target_refuses_after_all_is_named_and_the_rest_comes_over(
    kitae: Kitae, target: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint may be of another version, whose rules differ."""
    from ray_jobs.importing import plan as planning

    monkeypatch.setattr(planning, "_check", lambda path, filename: (1, []))
    with running(account()) as stub:
        refused = kitae("--base-url", stub.url, "--apply", fails=True)
    assert "file-Bad1 line 3: not JSON" in refused.output
    assert {each["filename"] for each in at_target(target, "/files")} == {"train.jsonl", "valid.jsonl"}


def test_completions_that_become_no_row_are_named(kitae: Kitae, target: ApiServer) -> None:
    stub = account(completions=5)
    stub.completions[0]["choices"][0]["finish_reason"] = "length"
    stub.messages["chatcmpl-00001"][1]["content_parts"] = [{"type": "image_url", "image_url": {"url": "data:x"}}]
    del stub.messages["chatcmpl-00002"]
    with running(stub):
        shown = kitae("--base-url", stub.url, "--apply").output
        assert "nothing to do" in kitae("--base-url", stub.url, "--apply").output
    assert "5 stored completion(s), 3 of them become no row" in shown
    assert "chatcmpl-00000: its answer was cut off" in shown
    assert "chatcmpl-00001: messages[1]: content[0] is 'image_url'" in shown
    assert "chatcmpl-00002: its messages are not there" in shown
    rows = dict(contents(target))["openai-completions.jsonl"].splitlines()
    assert [json.loads(row)["messages"][-1]["content"] for row in rows] == ["回答 3", "回答 4"]
