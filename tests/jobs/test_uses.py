"""Bases and datasets that open jobs need stay; what was made from them is listed before they are deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ray_jobs import jobs
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import JobError, ObjectNotFound
from ray_jobs.jobs import Job, uses
from ray_jobs.registry import catalogue
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.serving.api_harness import BASE, DIGEST, add_base, register

ROWS = "d" * 16  # the dataset of the harness's versions
Kitae = Callable[..., Result]


@pytest.fixture
def kitae(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)

    def run(*arguments: str, **more: Any) -> Result:
        return CliRunner().invoke(cli, list(arguments), prog_name="kitae", **more)

    return run


def begin(store: Workspace, *, with_rows: bool = True) -> Job:
    """A running job of the base, with a model and, with `with_rows`, a dataset."""
    add_base(store)
    spec = make_spec("faq", base_model=BASE)
    job = jobs.start_attempt(store, spec)
    if with_rows:
        store.put(f"datasets/{ROWS}/train.jsonl", b"{}\n")
        store.commit(f"datasets/{ROWS}", [], {"task": "chat", "train_rows": 1, "held_out_rows": 0})
        for stage in ("dataset", "encode", "train"):
            job.finish_stage(stage, {"of": stage}, {"digest": ROWS} if stage == "dataset" else {}, 1.0)
    register(store, spec, "1")
    return job


def test_a_dataset_that_an_open_job_needs_is_not_deleted(store: Workspace, kitae: Kitae) -> None:
    job = begin(store)
    refused = kitae("data", "delete", ROWS, "--yes")
    assert isinstance(refused.exception, JobError)
    assert refused.exception.details == (job.id,)
    with pytest.raises(JobError, match="used by open jobs"):
        uses.delete_dataset(store, ROWS)
    job.finish("succeeded", result={})
    asked = kitae("data", "delete", ROWS, input="n\n")
    assert f"jobs made from it: {job.id}\nmodels made from it: faq@1\nDelete the dataset {ROWS}?" in asked.output
    assert ROWS in kitae("data").stdout
    assert kitae("data", "delete", ROWS, "--yes").exit_code == 0
    assert not list(store.list("datasets"))
    assert [stage.name for stage in jobs.stages(store, job.id)] == ["train"]  # a new run reads the rows again
    assert "no datasets" in kitae("data").stdout
    with pytest.raises(ObjectNotFound, match="kitae data"):
        uses.delete_dataset(store, ROWS)


def test_a_dataset_stays_while_a_job_may_be_about_to_use_it(store: Workspace) -> None:
    begin(store).finish("succeeded", result={})
    starting = jobs.start_attempt(store, make_spec("other", base_model=BASE))
    with pytest.raises(JobError):
        uses.delete_dataset(store, ROWS)
    starting.finish_stage("dataset", {}, {"digest": "e" * 16}, 1.0)
    uses.delete_dataset(store, ROWS)


def test_a_dataset_stays_for_a_job_that_begins_during_its_deletion(
    store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(store).finish("succeeded", result={})
    real = store.delete

    def delete(keys: Any) -> None:
        monkeypatch.setattr(store, "delete", real)
        other = jobs.start_attempt(store, make_spec("other", base_model=BASE))
        other.finish_stage("dataset", {}, {"digest": ROWS}, 1.0)
        real(keys)

    monkeypatch.setattr(store, "delete", delete)
    with pytest.raises(JobError):
        uses.delete_dataset(store, ROWS)
    assert store.read_manifest(f"datasets/{ROWS}") is not None


@pytest.mark.parametrize("searched", [False, True])
def test_a_base_that_an_open_job_names_is_not_removed(store: Workspace, kitae: Kitae, searched: bool) -> None:
    job = begin(store, with_rows=False)
    if searched:
        job.finish("succeeded", result={})
        spec = make_spec("tries", base_model="org/other", search={"space": {"base_model": ["org/other", BASE]}})
        job = jobs.start_attempt(store, spec)
    refused = kitae("bases", "remove", BASE, "--yes")
    assert isinstance(refused.exception, JobError)
    assert refused.exception.details == (job.id,)
    jobs.request_pause(store, job.id)
    assert isinstance(kitae("bases", "remove", BASE, "--yes").exception, JobError)
    jobs.request_cancel(store, job.id)
    asked = kitae("bases", "remove", BASE, input="n\n")
    assert f"jobs made from it: {job.id}" in asked.output
    assert "models made from it: faq@1" in asked.output
    assert catalogue.find(store, BASE) is not None
    assert kitae("bases", "remove", BASE, "--yes").exit_code == 0
    assert catalogue.find(store, BASE) is None
    assert uses.of_base(store, BASE, DIGEST).models == ("faq@1",)


def test_checkpoints_of_an_open_job_stay(store: Workspace, kitae: Kitae) -> None:
    job = begin(store)
    kept = f"jobs/{job.id}/job.json"
    trees = [f"jobs/{job.id}/{tree}" for tree in ("checkpoints/x/1", "candidates/1", "search/y/checkpoints/2")]
    for tree in trees:
        store.put(f"{tree}/weights.safetensors", b"x")
        store.commit(tree, [], {})
    for state in ("running", "paused"):
        refused = kitae("checkpoints", "delete", job.id, "--yes")
        assert isinstance(refused.exception, JobError), state
        assert all(store.read_manifest(tree) is not None for tree in trees)
        jobs.request_pause(store, job.id)
    jobs.request_cancel(store, job.id)
    assert "models made from them: " in kitae("checkpoints", "delete", job.id, input="n\n").output
    assert kitae("checkpoints", "delete", job.id, "--yes").exit_code == 0
    assert not [info.key for tree in trees for info in store.list(tree)]
    assert [stage.name for stage in jobs.stages(store, job.id)] == ["dataset", "encode"]  # it trains again
    assert store.exists(kept)


def test_a_registered_job_is_not_trained_again_without_its_checkpoints(store: Workspace) -> None:
    job = begin(store)
    job.finish_stage("register", {}, {}, 1.0)
    job.finish("succeeded", result={})
    uses.delete_checkpoints(store, job.id)
    assert "train" in [stage.name for stage in jobs.stages(store, job.id)]


def test_a_version_stays_until_its_job_has_ended(store: Workspace, kitae: Kitae) -> None:
    job = begin(store)
    refused = kitae("models", "delete", "faq@1", "--yes")
    assert isinstance(refused.exception, JobError)
    assert "is of job" in str(refused.exception)
    job.finish("succeeded", result={})
    assert kitae("models", "delete", "faq@1", "--yes").exit_code == 0
