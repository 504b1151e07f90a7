"""A stub of OpenAI's API with an account's files, jobs, evals and stored completions, on a real port.

It behaves as the API does: pages, ids, purposes, contents, 429 with `Retry-After`, evals that have ended. It repeats
the key in an error's text, as an upstream proxy may.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.serving.api_harness import rows

KEY = "sk-proj-the-key-of-the-account-0123456789"
TRAINING, VALIDATION, BAD, PREFERENCES = "file-Train1", "file-Valid1", "file-Bad1", "file-Dpo1"
Document = dict[str, Any]
JUDGED = [{"role": "user", "content": "Is this a good answer? {{sample.output_text}}"}]


@dataclass
class OpenAIStub:
    """The account, and what was asked for."""

    url: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    files: list[Document] = field(default_factory=list)
    jobs: list[Document] = field(default_factory=list)
    evals: list[Document] | None = None
    """None: `/v1/evals` has ended."""
    completions: list[Document] = field(default_factory=list)
    messages: dict[str, list[Document]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    """Path of each request."""
    ignores_purpose: bool = False
    """Lists files of every purpose, as a proxy may."""
    refuse_every: int = 0
    """Each such request is answered by 429 first, and each other such one by 503. 0: none."""
    dies_after: int | None = None
    """Requests after which every one fails at once, so that the command ends. None: it does not."""

    def add_file(self, identifier: str, content: bytes, filename: str, purpose: str = "fine-tune") -> None:
        self.contents[identifier] = content
        self.files.append(
            {
                "id": identifier,
                "object": "file",
                "bytes": len(content),
                "created_at": 1,
                "filename": filename,
                "purpose": purpose,
                "status": "processed",
            }
        )

    def add_completions(self, count: int) -> None:
        for i in range(count):
            identifier = f"chatcmpl-{i:05d}"
            answer = {"role": "assistant", "content": f"回答 {i}", "refusal": None}
            choice = {"index": 0, "finish_reason": "stop", "message": answer}
            self.completions.append(
                {"id": identifier, "object": "chat.completion", "model": "gpt-4o-mini", "choices": [choice]}
            )
            parts = [{"type": "text", "text": f"質問 {i}"}] if i % 2 else None
            self.messages[identifier] = [
                {"id": f"{identifier}-0", "role": "system", "content": "答えてください。", "content_parts": None},
                {
                    "id": f"{identifier}-1",
                    "role": "user",
                    "content": None if parts else f"質問 {i}",
                    "content_parts": parts,
                },
            ]


def account(completions: int = 0) -> OpenAIStub:
    """An account with files of each kind and jobs of each method."""
    stub = OpenAIStub()
    stub.add_file(TRAINING, rows(12), "train.jsonl")
    stub.add_file(VALIDATION, rows(3, start=50), "valid.jsonl")
    good = rows(2).splitlines()
    bad = [good[0], b'{"messages": []}', b"not JSON", good[1]]
    stub.add_file(BAD, b"\n".join(bad) + b"\n", "bad.jsonl")
    stub.add_file("file-Other1", b"PDF", "manual.pdf", "assistants")
    user, yes, no = ({"role": role, "content": text} for role, text in (("user", "q"), *[("assistant", "a")] * 2))
    preference = {"input": {"messages": [user]}, "preferred_output": [yes], "non_preferred_output": [no]}
    stub.add_file(PREFERENCES, json.dumps(preference).encode() + b"\n", "[v2] preferences.jsonl")
    stub.jobs = [
        job("ftjob-Good1", validation_file=VALIDATION, metadata={"app": "faq"}),
        job("ftjob-Dpo1", training_file=PREFERENCES, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}),
        job("ftjob-Bad1", training_file=BAD, status="failed", fine_tuned_model=None),
        job("ftjob-Gone1", training_file="file-Deleted1"),
    ]
    stub.add_completions(completions)
    return stub


def job(identifier: str, **changes: Any) -> Document:
    hyper = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8}
    return {
        "id": identifier,
        "object": "fine_tuning.job",
        "created_at": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:support:AbCd1234",
        "status": "succeeded",
        "training_file": TRAINING,
        "validation_file": None,
        "hyperparameters": hyper,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "seed": 42,
        "result_files": ["file-Result1"],
        "integrations": [],
        "metadata": None,
    } | changes


def exact_eval() -> Document:
    """An eval as the API returned it."""
    item = {"type": "object", "properties": {"answer": {"type": "string"}}}
    schema = {"type": "object", "properties": {"item": item, "sample": {"type": "object"}}}
    return {
        "id": "eval_1",
        "object": "eval",
        "name": "answers",
        "created_at": 1,
        "data_source_config": {"type": "custom", "schema": schema},
        "testing_criteria": [
            {
                "id": "grader-1",
                "type": "string_check",
                "name": "same",
                "input": "{{sample.output_text}}",
                "reference": "{{item.answer}}",
                "operation": "eq",
            },
            {"id": "grader-2", "type": "score_model", "name": "good", "model": "gpt-4o", "input": JUDGED},
        ],
        "metadata": {},
    }


@contextmanager
def running(stub: OpenAIStub) -> Iterator[OpenAIStub]:
    """Serve the stub until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            status, headers, content = _answer(stub, self.path, self.headers.get("Authorization") or "")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _answer(stub: OpenAIStub, target: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(target)
    path = parts.path.removeprefix("/v1")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    stub.paths.append(path)
    asked = len(stub.paths)
    if stub.dies_after is not None and asked > stub.dies_after:
        return _error(418, "it has died")
    if authorization != f"Bearer {KEY}":
        return _error(401, f"Incorrect API key provided: {authorization}")
    if stub.refuse_every and asked % stub.refuse_every == 0:
        again = asked // stub.refuse_every % 2
        return _error(429 if again else 503, f"Rate limit of {authorization}", {"Retry-After": "0"})
    if path == "/files":
        wanted = [each for each in stub.files if stub.ignores_purpose or query.get("purpose") == each["purpose"]]
        return _page(wanted, query, newest_first=True)
    if path == "/fine_tuning/jobs":
        return _page(stub.jobs, query, newest_first=True)
    if path == "/evals":
        if stub.evals is None:
            return _error(404, "The evals API has ended.")
        return _page(stub.evals, query, newest_first=False)
    if path == "/chat/completions":
        return _page(stub.completions, query, newest_first=query.get("order") == "desc")
    match path.strip("/").split("/"):
        case ["files", identifier, "content"] if identifier in stub.contents:
            return 200, {"Content-Type": "application/octet-stream"}, stub.contents[identifier]
        case ["chat", "completions", identifier, "messages"] if identifier in stub.messages:
            return _page(stub.messages[identifier], query, newest_first=False)
    return _error(404, f"no {path}")


def _page(every: list[Document], query: dict[str, str], *, newest_first: bool) -> tuple[int, dict[str, str], bytes]:
    ordered = every[::-1] if newest_first else every
    first = 0
    if "after" in query:
        first = [each["id"] for each in ordered].index(query["after"]) + 1
    limit = min(int(query.get("limit", 20)), 100)
    data = ordered[first : first + limit]
    return _json(200, {"object": "list", "data": data, "has_more": first + limit < len(ordered)})


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return _json(status, {"error": {"message": message, "type": "error", "param": None, "code": None}}, headers)


def _json(status: int, document: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    content = json.dumps(document, ensure_ascii=False).encode()
    return status, {"Content-Type": "application/json", **(headers or {})}, content
