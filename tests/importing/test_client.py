"""Requests of an import: retries, pages, and what is created at the target once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.errors import MachineError, RemoteError, SpecError
from ray_jobs.importing.bring import bring
from ray_jobs.importing.client import Address, ApiClient, retry_after_s
from ray_jobs.importing.exports import completion_ids
from ray_jobs.importing.mapping import mapped_eval
from ray_jobs.importing.plan import ImportPlan, PlannedEval, PlannedFile
from ray_jobs.importing.target import TargetFacts, look
from ray_jobs.importing.workdir import ImportState, opened
from tests.importing.openai_stub import exact_eval

KEY = "the-key-of-this-test"
Answers = Callable[[httpx.Request], httpx.Response]


def client(answer: Answers, waits: list[float] | None = None) -> ApiClient:
    address = Address("OpenAI", "http://api.example/v1", KEY, "OPENAI_API_KEY")
    waited: list[float] = [] if waits is None else waits
    return ApiClient(address, sleep=waited.append, transport=httpx.MockTransport(answer))


def in_turn(*answers: httpx.Response | Exception) -> Answers:
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return answer


def test_busy_answers_are_retried_after_the_time_that_they_name() -> None:
    waits: list[float] = []
    answers = in_turn(
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(503, headers={"retry-after-ms": "1500"}),
        httpx.ConnectError("no"),
        httpx.Response(200, json={"ok": True}),
    )
    assert client(answers, waits).get("/x") == {"ok": True}
    assert waits[:2] == [7.0, 1.5]
    assert 0 < waits[2] < 10


@pytest.mark.parametrize(
    ("response", "tried"),
    [
        (httpx.Response(400), 1),
        (httpx.Response(429, json={"error": {"code": "insufficient_quota"}}), 1),
        (httpx.Response(409, headers={"x-should-retry": "false"}), 1),
        (httpx.Response(500), 3),
    ],
)
def test_final_answers(response: httpx.Response, tried: int) -> None:
    assert retry_after_s(response, tried) is None


def test_retry_after_may_be_a_date() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    found = retry_after_s(httpx.Response(429, headers={"Retry-After": until}), 1)
    assert found is not None
    assert 3000 < found <= 3600


def test_a_wait_that_is_too_long_and_a_server_that_never_recovers_end_the_command() -> None:
    waits: list[float] = []
    with pytest.raises(RemoteError, match="asks for 4,000 s"):
        client(in_turn(httpx.Response(429, headers={"Retry-After": "4000"})), waits).get("/x")
    with pytest.raises(RemoteError, match="answered /x with 503"):
        client(lambda request: httpx.Response(503), waits).get("/x")
    assert len(waits) == 7


def test_no_message_has_the_key() -> None:
    error = {"error": {"message": f"bad key {KEY}\x1b[2J"}}
    with pytest.raises(RemoteError) as raised:
        client(lambda request: httpx.Response(400, json=error)).get("/x")
    assert KEY not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    with pytest.raises(RemoteError) as raised:
        client(lambda request: httpx.Response(302, headers={"Location": f"http://elsewhere/{KEY}"})).get("/x")
    assert "it redirects elsewhere, which is not followed" in str(raised.value)
    assert KEY not in str(raised.value) + repr(Address("OpenAI", "http://a.example", KEY, "K"))


@pytest.mark.parametrize("url", ["ftp://a.example", "api.openai.com/v1", "https://u:p@a.example/v1", "http:///v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SpecError):
        Address("OpenAI", url, KEY, "K")


def test_a_list_that_does_not_end_is_an_error() -> None:
    page = {"data": [{"id": "a"}], "has_more": True}
    with pytest.raises(RemoteError, match="does not end"):
        list(client(in_turn(*[httpx.Response(200, json=page)] * 2)).pages("/files"))


def test_a_download_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(RemoteError, match="5 bytes came, and 9 were announced"):
        client(lambda request: httpx.Response(200, content=b"short")).download("/x", file, size_bytes=9)
    assert list(tmp_path.iterdir()) == []
    answers = in_turn(httpx.Response(200, content=b"short"), httpx.Response(200, content=b"123456789"))
    client(answers).download("/x", file, size_bytes=9)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"123456789"


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c", "mess')
    assert completion_ids(file) == {"a", "b"}
    assert file.read_text() == '{"id": "a"}\n{"id": "b"}\n'


def test_an_upload_without_an_answer_is_looked_for_before_it_is_sent_again(tmp_path: Path) -> None:
    stored: dict[str, bytes] = {}
    sent = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        if request.method == "POST":
            sent += 1
            stored["file-1"] = b"rows\n"
            raise httpx.ReadTimeout("no answer")
        if request.url.path.endswith("/content"):
            return httpx.Response(200, content=stored["file-1"])
        data = [{"id": name, "filename": "a.jsonl", "bytes": 5} for name in stored]
        return httpx.Response(200, json={"data": data, "has_more": False})

    rows = tmp_path / "a.jsonl"
    rows.write_bytes(b"rows\n")
    file = PlannedFile("file-a", "a.jsonl", 5, "bring", 1, path=str(rows), sha256="0" * 64)
    with opened(tmp_path / "work") as workdir, client(answer) as target:
        other = ImportPlan(files=[file])
        with pytest.raises(RemoteError, match="does not answer"):  # the stored file has another content
            bring(other, target, TargetFacts(), ImportState(), workdir, sleep=lambda s: None)
        assert sent == 3
        same = replace(file, sha256=hashlib.sha256(b"rows\n").hexdigest())
        stored.clear()
        state = ImportState()
        done = bring(ImportPlan(files=[same]), target, TargetFacts(), state, workdir, sleep=lambda s: None)
        assert (sent, done.files, state.files["file-a"].target_id) == (4, ["file-a → file-1"], "file-1")


def test_evals_are_created_once_where_the_endpoint_has_them(tmp_path: Path) -> None:
    created: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny", "fine_tunable": True}]})
        if request.url.path == "/v1/files":
            return httpx.Response(200, json={"data": [], "has_more": False})
        if request.method == "GET":
            return httpx.Response(200, json={"data": created, "has_more": False})
        body = json.loads(request.content)
        if body["name"] == "bad":
            return httpx.Response(400, json={"error": {"message": "testing_criteria[0]: unknown"}})
        created.append({"id": f"eval_{len(created)}", **body})
        return httpx.Response(200, json=created[-1])

    planned = [PlannedEval(mapped_eval(exact_eval() | {"id": name, "name": name}), "bring") for name in ("good", "bad")]
    with opened(tmp_path / "work") as workdir, client(answer) as target:
        facts, state = look(target), ImportState()
        assert (facts.has_evals, facts.bases) == (True, ("tiny",))
        done = bring(ImportPlan(evals=planned), target, facts, state, workdir, judge="tiny")
        assert (done.evals, state.evals) == (["good → eval_0"], {"good": "eval_0"})
        assert done.refused == ["bad (bad): OpenAI answered /evals with 400: testing_criteria[0]: unknown"]
        assert created[0]["testing_criteria"][1]["model"] == "tiny"
        # A run that was killed before it recorded the eval finds it by its metadata.
        again = ImportState()
        bring(ImportPlan(evals=planned[:1]), target, facts, again, workdir)
        assert (len(created), again.evals) == (1, {"good": "eval_0"})


def test_two_commands_do_not_share_a_directory(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "work"),
        pytest.raises(MachineError, match="another `kitae import`"),
        opened(tmp_path / "work"),
    ):
        pass
