"""Asks a Kitae model the prompts that a model of OpenAI's, or a row, has answered, and compares the answers.

Answers are appended to a file as they come, so that a killed replay resumes, and a second one asks nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ray_jobs.data.formats import Record, read_records
from ray_jobs.errors import DataError, RemoteError
from ray_jobs.importing import parity_page
from ray_jobs.importing.client import ApiClient, Document
from ray_jobs.importing.comparison import AnswerPair, as_json, compare
from ray_jobs.importing.completions import Asked, asked_of_completion, asked_of_row
from ray_jobs.importing.exports import Export, completion_ids
from ray_jobs.importing.workdir import Workdir, write, write_json
from ray_jobs.jobs.progress import StageProgress

Prompts = Literal["completions", "validation"]
_AT_ONCE = 4
_FINAL = (400, 404, 413, 422, 500)
"""Statuses of a request that belong to its prompt: the others are asked."""


@dataclass(frozen=True)
class Replayed:
    """A finished replay."""

    asked: int
    """Requests of this run."""
    pairs: Sequence[AnswerPair]
    failed: Sequence[tuple[str, str]]
    """(id of the prompt, reason) of each that the endpoint did not answer."""
    page: Path
    document: Path


def prompts_of(export: Export, kind: Prompts | None) -> tuple[Prompts, list[Asked]]:
    """The prompts of a replay: stored completions, without any the validation rows of the jobs. Raises DataError."""
    if kind is None:
        kind = "completions" if any(export.completions()) else "validation"
    found = [asked_of_completion(each) for each in export.completions()] if kind == "completions" else []
    if kind == "validation":
        found = list(_validation_prompts(export))
    usable = [each for each in found if isinstance(each, Asked) and each.whole]
    if not usable:
        raise DataError(
            f"there are no prompts among the {kind}: `kitae import openai` fetches stored completions and the "
            "validation files of jobs"
        )
    return kind, usable


def chosen(prompts: Sequence[Asked], most: int) -> list[Asked]:
    """At most `most` prompts, spread evenly over all."""
    if len(prompts) <= most:
        return list(prompts)
    return [prompts[i * len(prompts) // most] for i in range(most)]


def replay(
    target: ApiClient,
    model: str,
    prompts: Sequence[Asked],
    workdir: Workdir,
    *,
    kind: Prompts,
    of: int,
    max_tokens: int = 1024,
    again: bool = False,
) -> Replayed:
    """Ask, compare and write the report. `of`: number of prompts that `prompts` were chosen from. `max_tokens`: of an
    answer. `again`: forget the answers of earlier runs.

    Raises RemoteError if the endpoint refuses the key, has no such model, or does not answer.
    """
    folder = workdir.replay / _folder_name(model)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "answers.jsonl"
    if again:
        path.unlink(missing_ok=True)
    completion_ids(path)  # cuts a half-written line off
    answers = {str(each["key"]): each for each in _lines(path)}
    requests = {_key(body := _request(each, model, max_tokens)): body for each in prompts}
    new = {key: body for key, body in requests.items() if key not in answers}
    if new:
        target.get(f"/models/{quote(model, safe='/:@')}")  # an unknown model is one error, not one for each prompt
    with StageProgress("replay") as progress, path.open("a", encoding="utf-8") as file:
        for done, answer in enumerate(_answered(target, new), 1):
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()
            answers[str(answer["key"])] = answer
            progress.update(done, len(new), "prompts")
    pairs: list[AnswerPair] = []
    failed: list[tuple[str, str]] = []
    for each in prompts:
        answer = answers[_key(_request(each, model, max_tokens))]
        if isinstance(answer.get("message"), dict):
            pairs.append(compare(each, answer["message"], cut_off=answer.get("finish_reason") == "length"))
        else:
            failed.append((each.id, str(answer.get("error"))))
    document = {"model": model, "prompts_are": kind, "prompts_in_all": of, "not_answered": dict(failed)}
    write_json(folder / "parity.json", {**document, **as_json(pairs)})
    write(folder / "parity.html", parity_page.page(model, kind, pairs, failed, of=of))
    return Replayed(len(new), pairs, failed, folder / "parity.html", folder / "parity.json")


def _answered(target: ApiClient, requests: dict[str, Document]) -> Iterator[Document]:
    """An answer or an error for each request, as they come."""

    def ask(key: str, body: Document) -> Document:
        try:
            answer = target.post("/chat/completions", body)
        except RemoteError as error:
            if error.status not in _FINAL:
                raise
            return {"id": key, "key": key, "error": error.message}
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        return {
            "id": key,
            "key": key,
            "message": choice.get("message") or {},
            "finish_reason": choice.get("finish_reason"),
            "model": answer.get("model"),
        }

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting: list[Future[Document]] = [pool.submit(ask, key, body) for key, body in requests.items()]
        try:
            for each in as_completed(waiting):
                yield each.result()
        finally:
            for each in waiting:  # after an error nothing more is asked
                each.cancel()


def _request(asked: Asked, model: str, max_tokens: int) -> Document:
    """The request of a prompt: greedy, so that a replay can be repeated."""
    body: Document = {
        "model": model,
        "messages": list(asked.messages),
        "temperature": 0,
        "max_completion_tokens": max_tokens,
    }
    if asked.tools:
        body["tools"] = list(asked.tools)
    if asked.response_format is not None:
        body["response_format"] = asked.response_format
    return body


def _key(body: Document) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def _folder_name(model: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-")[:60]
    return f"{readable}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _lines(path: Path) -> Iterator[Document]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _validation_prompts(export: Export) -> Iterator[Asked | str]:
    """The rows of the jobs' validation files; without such files, of every file with `valid` in its name."""
    named = {str(job["validation_file"]) for job in export.jobs if job.get("validation_file")}
    files = [each for each in export.files if each.id in named] or [
        each for each in export.files if "valid" in each.filename.lower()
    ]
    for file in files:
        for record in read_records(file.path):
            if isinstance(record, Record):
                yield asked_of_row(f"{file.id}:{record.number}", record.values)
