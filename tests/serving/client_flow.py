"""The whole flow of a developer's program, with the official client and nothing else.

    PYTHONPATH=CLIENT python tests/serving/client_flow.py BASE_URL API_KEY BASE_MODEL ROWS.jsonl

Prints a report as JSON. Imports nothing of Kitae.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

PATIENCE_S = 1500.0


def main(base_url: str, api_key: str, base_model: str, rows: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=120)
    seen: dict[str, Any] = {"client": openai.__version__}

    file = client.files.create(file=Path(rows), purpose="fine-tune")
    assert (file.object, file.purpose, file.status) == ("file", "fine-tune", "processed")
    assert client.files.retrieve(file.id).bytes == Path(rows).stat().st_size
    assert client.files.content(file.id).read() == Path(rows).read_bytes()
    assert file.id in [found.id for found in client.files.list(purpose="fine-tune")]

    job = client.fine_tuning.jobs.create(
        model=base_model,
        training_file=file.id,
        suffix="flow",
        seed=7,
        metadata={"who": "flow"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        extra_body={"evaluation": {"must_beat_base": False}},
    )
    assert job.status in ("validating_files", "queued", "running")
    assert job.fine_tuned_model is None
    started = time.monotonic()
    statuses: list[str] = [job.status]
    while statuses[-1] not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() - started < PATIENCE_S, statuses
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status != statuses[-1]:
            statuses.append(job.status)
    seen |= {"statuses": statuses, "error": job.error.message if job.error else None, "model": job.fine_tuned_model}
    succeeded_at = time.monotonic()
    assert statuses[-1] == "succeeded", seen
    tuned = job.fine_tuned_model or ""
    assert tuned.startswith("ft:")
    assert job.trained_tokens
    assert job.hyperparameters.n_epochs == 2

    question: Any = [{"role": "user", "content": "How do I reset my password?"}]
    answer = client.chat.completions.create(model=tuned, messages=question, max_tokens=12)
    seen["first_answer_s"] = round(time.monotonic() - succeeded_at, 3)
    assert answer.choices[0].message.content
    assert answer.model == tuned
    pieces = client.chat.completions.create(model=tuned, messages=question, max_tokens=12, stream=True)
    said = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(said)

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))  # pages of one
    assert len({found.id for found in checkpoints}) == len(checkpoints) > 0
    for found in checkpoints:
        named = found.fine_tuned_model_checkpoint
        reply = client.chat.completions.create(model=named, messages=question, max_tokens=4)
        assert reply.model == named
        assert found.metrics.full_valid_loss is not None
    seen["checkpoints"] = [found.step_number for found in checkpoints]

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert len({event.id for event in events}) == len(events) > 3
    assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)
    assert any(event.type == "metrics" for event in events)
    seen["events"] = len(events)

    results = client.files.content(job.result_files[0]).read().decode()
    assert results.startswith("step,")
    models = [model.id for model in client.models.list()]
    assert {base_model, tuned} <= set(models)
    assert client.models.retrieve(tuned).id == tuned

    second = client.fine_tuning.jobs.create(model=base_model, training_file=file.id, suffix="other")
    assert second.id != job.id
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    listed = [found.id for found in client.fine_tuning.jobs.list(limit=1)]
    assert listed[:2] == [second.id, job.id]
    seen["errors"] = _errors(client, job.id)

    assert client.models.delete(tuned).deleted
    seen["errors"] |= _refusals(
        {"deleted model": lambda: client.chat.completions.create(model=tuned, messages=question)}
    )
    assert client.files.delete(file.id).deleted
    return seen


def _errors(client: openai.OpenAI, job_id: str) -> dict[str, list[Any]]:
    """Every kind of error, as the client maps it: [exception, code, param, type, has a request id]."""
    wrong = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    hasty = client.with_options(max_retries=0)
    calls: dict[str, Callable[[], object]] = {
        "no key": lambda: wrong.models.list(),
        "no job": lambda: hasty.fine_tuning.jobs.retrieve("ftjob-nothing"),
        "no file": lambda: hasty.files.retrieve("file-nothing"),
        "no model": lambda: hasty.models.retrieve("ft:nothing"),
        "bad rows": lambda: hasty.files.create(file=("x.jsonl", b'{"messages": []}\n'), purpose="fine-tune"),
        "bad create": lambda: hasty.fine_tuning.jobs.create(model="nothing", training_file="file-nothing"),
        "dpo": lambda: hasty.fine_tuning.jobs.create(
            model="nothing", training_file="file-nothing", method={"type": "dpo"}
        ),
        "cancel twice": lambda: hasty.fine_tuning.jobs.cancel(job_id),
    }
    return _refusals(calls)


def _refusals(calls: dict[str, Callable[[], object]]) -> dict[str, list[Any]]:
    seen: dict[str, list[Any]] = {}
    for name, call in calls.items():
        try:
            call()
        except openai.APIStatusError as error:
            seen[name] = [type(error).__name__, error.code, error.param, error.type, bool(error.request_id)]
        else:
            raise AssertionError(f"{name}: no error")
    return seen


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
