"""A job that cannot run reports the value, the limit and the fix, all problems at once, and registers nothing.

The real command line with its errors and exit codes; no Ray, since every job here fails before training.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from safetensors import SafetensorError

from ray_jobs import jobs, registry
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import DataError, MachineError, ModelError, StoreAccessDenied, StoreUnreachable, WorkerLost
from ray_jobs.local.processes import free_ports
from ray_jobs.storage import Workspace
from ray_jobs.training.machine_errors import is_disk_full, memory_errors, out_of_memory
from ray_jobs.training.ray_workers import explain
from tests.models import tiny_models
from tests.training.harness import make_spec

GOOD = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}
ENDLESS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
"""A chat template that puts no end token after an answer."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command."""

    exit_code: int
    error: str
    """Its standard error from `error:` on."""


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_causal(tmp_path_factory.mktemp("bases") / "causal")


@pytest.fixture
def kitae(
    store_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """`kitae run` of a chat job. Sections are merged into its file; no command may show a traceback."""
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(base: str | Path, rows: str | Path, *, task: str = "chat", **data: Any) -> Outcome:
        document = {
            "name": "wrong",
            "task": task,
            "base_model": str(base),
            "data": {"train": str(rows), "max_tokens": 128, **data},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["kitae", "run", str(path)])
        capfd.readouterr()
        exit_code = session.run(cli, prog_name="kitae")
        shown = capfd.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return Outcome(exit_code, shown.err[shown.err.index("error: ") :])

    return run


def rows_file(tmp_path: Path, rows: Sequence[Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_missing_rows_and_a_missing_base_are_reported_together(kitae: Run, store: Workspace, tmp_path: Path) -> None:
    outcome = kitae("./no-such-model", tmp_path / "no-rows.jsonl")
    assert outcome.exit_code == DataError.exit_code
    rows, base = outcome.error.splitlines()[1:3]
    assert str(tmp_path / "no-rows.jsonl") in rows
    assert "./no-such-model" in base
    assert "is neither an existing path" in base
    outcome = kitae(f"{store.uri()}/bases/none", f"{store.uri()}/files/none.jsonl")
    assert f"no rows at {store.uri()}/files/none.jsonl: upload the file there" in outcome.error
    assert f"base_model {store.uri()}/bases/none is empty; upload the model there" in outcome.error
    assert registry.names(store) == []


def test_a_base_of_the_wrong_architecture(kitae: Run, store: Workspace, tmp_path: Path, causal: Path) -> None:
    encoder = tiny_models.save_encoder(tmp_path / "encoder")
    outcome = kitae(encoder, rows_file(tmp_path, tiny_models.chat_rows(20)))
    assert outcome.exit_code == ModelError.exit_code
    assert "is BertModel, and task: chat needs one that ends in ForCausalLM" in outcome.error
    labels = rows_file(tmp_path, tiny_models.label_rows(20))
    outcome = kitae(causal, labels, task="text_classification")
    assert outcome.exit_code == ModelError.exit_code
    assert "is LlamaForCausalLM, and task: text_classification needs" in outcome.error
    assert registry.names(store) == []


def test_a_directory_that_is_no_model(kitae: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = kitae(tmp_path / "empty", rows_file(tmp_path, tiny_models.chat_rows(20)))
    assert (outcome.exit_code, "it has no config.json" in outcome.error) == (ModelError.exit_code, True)


def test_every_malformed_row_is_reported_with_its_line(
    kitae: Run, store: Workspace, tmp_path: Path, causal: Path
) -> None:
    outcome = kitae(causal, rows_file(tmp_path, [GOOD, {"messages": []}, GOOD, {"prompt": "x"}, GOOD]))
    assert outcome.exit_code == DataError.exit_code
    second, fourth = outcome.error.splitlines()[1:]
    assert "rows.jsonl line 2: " in second
    assert "rows.jsonl line 4: completion must be non-empty text" in fourth
    assert registry.names(store) == []


def test_an_empty_split(kitae: Run, store: Workspace, tmp_path: Path, causal: Path) -> None:
    outcome = kitae(causal, rows_file(tmp_path, [GOOD]))
    assert outcome.exit_code == DataError.exit_code
    assert "held_out" in outcome.error or "held-out" in outcome.error
    assert registry.names(store) == []


def test_nothing_supervised_and_no_end_token(kitae: Run, store: Workspace, tmp_path: Path, causal: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}]} for i in range(40)]
    outcome = kitae(causal, rows_file(tmp_path, rows))
    assert outcome.exit_code == DataError.exit_code
    assert "assistant" in outcome.error
    endless = tiny_models.save_causal(tmp_path / "endless", chat_template=ENDLESS)
    outcome = kitae(endless, rows_file(tmp_path, tiny_models.chat_rows(40)))
    assert outcome.exit_code in (DataError.exit_code, ModelError.exit_code)
    assert "end" in outcome.error
    assert registry.names(store) == []


def test_rows_longer_than_the_limit(kitae: Run, tmp_path: Path, causal: Path) -> None:
    long = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "no " * 400}]}
    outcome = kitae(causal, rows_file(tmp_path, [*tiny_models.chat_rows(40), long]))
    assert outcome.exit_code == DataError.exit_code
    assert "128" in outcome.error
    assert "too_long" in outcome.error


def test_an_unreachable_store_and_wrong_credentials(
    kitae: Run, store: Workspace, tmp_path: Path, causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_file(tmp_path, tiny_models.chat_rows(20))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-it")
    outcome = kitae(causal, rows)
    assert outcome.exit_code == StoreAccessDenied.exit_code
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in outcome.error
    assert "not-it" not in outcome.error
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("KITAE_STORE_PATIENCE_S", "1")
    outcome = kitae(causal, rows)
    assert outcome.exit_code == StoreUnreachable.exit_code
    assert address in outcome.error
    assert "AWS_ENDPOINT_URL" in outcome.error
    assert registry.names(store) == []


def test_a_full_disk_of_the_driver(
    kitae: Run, store: Workspace, tmp_path: Path, causal: Path, small_disk: Path
) -> None:
    outcome = kitae(causal, rows_file(tmp_path, tiny_models.chat_rows(400)), too_long="drop")
    assert outcome.exit_code == MachineError.exit_code
    assert "the disk is full: make room, or set TMPDIR and KITAE_CACHE" in outcome.error
    (record,) = jobs.list_jobs(store)
    assert (record.status, "the disk is full" in str(record.error)) == ("failed", True)


def test_an_error_on_a_worker_keeps_its_message() -> None:
    """Ray wraps it in an error whose text is the remote traceback."""
    wrapped: Exception = RayTaskError("evaluate", "Traceback", DataError("no rows", details=["a.jsonl"]))  # type: ignore[no-untyped-call]
    assert str(explain(wrapped, "unknown")) == "no rows\n  - a.jsonl"
    wrapped = RayTaskError("evaluate", "Traceback", DataError("no rows")).as_instanceof_cause()  # type: ignore[no-untyped-call]
    assert isinstance(wrapped, DataError)
    assert str(explain(wrapped, "unknown")) == "no rows"


@pytest.mark.parametrize(
    "cause",
    [
        OutOfMemoryError("Task was killed due to the node running low on memory."),  # type: ignore[no-untyped-call]
        WorkerHealthCheckFailedError("A worker health check failed.", OutOfMemoryError("killed")),  # type: ignore[no-untyped-call]
        RayTaskError("evaluate", "Traceback", MemoryError()),  # type: ignore[no-untyped-call]
    ],
)
def test_a_worker_killed_for_memory(cause: Exception) -> None:
    error = explain(WorkerGroupError("1 worker failed", {0: cause}), "unknown")
    assert isinstance(error, MachineError)
    assert "lower training.micro_batch_tokens" in str(error)


def test_a_full_disk_and_an_unknown_error_of_a_worker() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    error = explain(RayTaskError("evaluate", "Traceback", full), "unknown")  # type: ignore[no-untyped-call]
    assert isinstance(error, MachineError)
    assert "set TMPDIR and KITAE_CACHE" in str(error)
    error = explain(WorkerGroupError("Traceback\nValueError: odd\n", {0: ValueError("odd")}), "It failed")
    assert str(error) == "It failed: ValueError: odd"


def test_a_full_disk_is_known_by_its_class_and_number() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "full"))
    assert is_disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "No space left on device"))
    assert not is_disk_full(RuntimeError("No space left on device"))


def test_an_out_of_memory_error_lists_its_fixes() -> None:
    with pytest.raises(MemoryError), memory_errors():
        torch.empty(2**50)
    with pytest.raises(MemoryError), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_errors():
        raise RuntimeError("shape mismatch")
    error = out_of_memory(make_spec(compute={"workers": 2, "zero_stage": 0}))
    assert isinstance(error, MachineError)
    advice = " ".join(error.details)
    for part in ("micro_batch_tokens is 128", "gradient_checkpointing is off", "zero_stage is 0", "method is full"):
        assert part in advice
    settled = make_spec(
        training={"method": "lora", "gradient_checkpointing": True}, compute={"workers": 2, "zero_stage": 3}
    )
    assert len(out_of_memory(settled).details) == 1


def test_what_ray_itself_reports_is_an_accident_and_a_functions_error_is_not() -> None:
    died = explain(ActorDiedError(), "a worker failed")
    assert isinstance(died, WorkerLost)
    assert isinstance(explain(WorkerCrashedError(), "a worker failed"), WorkerLost)
    bug: Exception = RayTaskError("f", "trace", ValueError("a bug"))  # type: ignore[no-untyped-call]
    own = explain(bug, "a worker failed")
    assert not isinstance(own, WorkerLost)
