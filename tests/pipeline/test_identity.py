"""What changes after a training does not train again; a training of an earlier version is found under its old id."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import jobs, pipeline
from ray_jobs.errors import GateError
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.pipeline.builders import FakeStages, job_file


@pytest.mark.parametrize("search", [None, {"trials": 2, "retrain": False}], ids=["train", "search"])
@pytest.mark.parametrize(
    ("change", "ran"),
    [
        ({"evaluation": {"generate_rows": 1}}, ["evaluate", "register", "deploy"]),
        ({"serving": {"max_model_len": 512}}, ["parity", "register", "deploy"]),
        ({"serving": {"max_queued_requests": 9}}, ["register", "deploy"]),
        ({"suffix": "shop"}, ["deploy"]),
        ({"tracking": {"tensorboard": False}}, ["deploy"]),
        ({"serving": {"deploy": False}}, []),
    ],
    ids=["evaluation", "serving", "queue", "suffix", "tracking", "deploy"],
)
def test_a_change_after_the_training_trains_nothing_again(
    stages: FakeStages, store: Workspace, search: dict[str, Any] | None, change: dict[str, Any], ran: list[str]
) -> None:
    found = {} if search is None else {"search": search}
    pipeline.run(store, job_file(store, **found))
    assert stages.rerun(store, job_file(store, **found, **change)) == ran
    assert len(jobs.list_jobs(store)) == 1


def test_a_gate_that_is_loosened_registers_what_was_trained(stages: FakeStages, store: Workspace) -> None:
    stages.tuned_loss = 3.0
    with pytest.raises(GateError):
        pipeline.run(store, job_file(store))
    loosened = job_file(store, evaluation={"must_beat_base": False})
    assert stages.rerun(store, loosened) == ["evaluate", "parity", "register", "deploy"]


def test_another_learning_rate_is_another_job(stages: FakeStages, store: Workspace) -> None:
    pipeline.run(store, job_file(store))
    other = job_file(store, training={"method": "full", "learning_rate": 1e-5})
    assert "train" in stages.rerun(store, other)
    assert len(jobs.list_jobs(store)) == 2


def finished_before(store: Workspace, spec: JobSpec) -> str:
    """A job that an earlier version finished."""
    job_id = spec.former_id
    pipeline.run(store, spec, job_id=job_id)
    return job_id


def test_a_finished_job_of_an_earlier_version_is_not_trained_again(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    assert (job_id := finished_before(store, spec)) != spec.job_id
    assert stages.rerun(store, spec) == ["deploy"]
    assert stages.rerun(store, job_file(store, serving={"max_queued_requests": 9})) == ["register", "deploy"]
    assert [record.id for record in jobs.list_jobs(store)] == [job_id]
    assert pipeline.plan(store, spec).job_id == job_id


def test_of_several_earlier_jobs_the_last_that_succeeded_is_it(stages: FakeStages, store: Workspace) -> None:
    first, second = (job_file(store, evaluation={"generate_rows": rows}) for rows in (1, 2))
    ids = [finished_before(store, first), finished_before(store, second)]
    failed = job_file(store, evaluation={"generate_rows": 3})
    jobs.start_attempt(store, failed, failed.former_id).finish("failed", error="no")
    assert jobs.id_of(store, job_file(store)) == ids[1]
    pipeline.run(store, first, job_id=ids[0])
    assert jobs.load(store, ids[0]).attempt == 2  # a resumed record stays itself


def test_a_running_job_of_an_earlier_version_is_taken_over(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    job = jobs.start_attempt(store, spec, spec.former_id)
    pipeline.run(store, spec)
    assert jobs.load(store, job.id).attempt == 2
    assert [record.id for record in jobs.list_jobs(store)] == [job.id]


def test_other_jobs_are_not_taken_for_it(store: Workspace) -> None:
    spec = make_spec("greeter")
    jobs.create(store, make_spec("greeter", training={"epochs": 9}))
    jobs.create(store, make_spec("greeter-too"))
    jobs.create(store, spec, "greeter-not0a0digest")
    store.put("jobs/greeter-0123456789/job.json", b"{")  # damaged
    store.put("jobs/greeter-abcdef0123/stages/dataset-1.json", b"{}")  # deleted
    assert jobs.id_of(store, spec) == spec.job_id == f"greeter-{spec.identity}"
    unread = {**spec.model_dump(mode="json"), "task": "gone"}
    record = jobs.create(store, spec, "greeter-00000000aa").model_dump(mode="json") | {"spec": unread}
    store.put_json("jobs/greeter-00000000aa/job.json", record)
    assert jobs.id_of(store, spec) == spec.job_id


def test_the_identity_of_a_plain_job_does_not_change() -> None:
    """A version that gives another one trains every job again."""
    assert make_spec("greeter").identity == "131799ec6f"
