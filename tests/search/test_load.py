"""docs/search.md: its code runs on a stored search, and its tables and job file are those of the schema."""

from __future__ import annotations

import contextlib
import io
import re
from typing import get_args

import pytest
import yaml

from ray_jobs import jobs
from ray_jobs.errors import JobError
from ray_jobs.search import load
from ray_jobs.search.records import SearchRecords
from ray_jobs.spec.search import Sampler, Scheduler, SearchSection
from ray_jobs.storage import Workspace
from tests.repository import ROOT
from tests.search.problems import make_problem
from tests.search.simulation import finish

TEXT = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")


@pytest.fixture
def job(store: Workspace) -> str:
    """A job with a finished search."""
    problem = make_problem()
    job_id = jobs.start_attempt(store, problem.spec).id
    records = SearchRecords(store, f"jobs/{job_id}/search/x")
    records.begin(problem)
    now, results, _ = finish(problem)
    for result in results.values():
        records.add(result)
    records.stop(now.why, {name: result for name, result in results.items() if not result.run.again})
    return job_id


@pytest.mark.usefixtures("store_environment")
def test_the_example_runs(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.setenv("JOB", job)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "docs/search.md", "exec"), {"__name__": "docs"})
    assert "lora.rank" in output.getvalue()
    assert "learning_rate" in output.getvalue()


def test_the_frame_has_every_segment_and_one_winner(store: Workspace, job: str) -> None:
    frame, (_, results, _) = load(job, store), finish(make_problem())
    assert len(frame) == len(results)
    assert set(frame.columns) >= {"trial", "rung", "again", "status", "loss", "token_accuracy", "ended_at", "lora.rank"}
    assert frame.ended_at.is_monotonic_increasing
    (won,) = frame[frame.won].itertuples()
    assert (won.rung, won.steps) == (2, 27)
    assert list(frame[frame.again].rung) == [2, 2]


def test_a_job_without_a_search_is_an_error(store: Workspace) -> None:
    spec = make_problem().spec.model_copy(update={"search": None})
    with pytest.raises(JobError, match="has no search yet"):
        load(jobs.start_attempt(store, spec).id, store)
    with pytest.raises(JobError):
        load("no-such-job", store)


def test_the_tables_name_every_scheduler_and_sampler_and_the_job_file_is_valid() -> None:
    named = set(re.findall(r"^\| `([a-z_0-9]+)`(?:, `([a-z_0-9]+)`)? \|", TEXT, flags=re.MULTILINE))
    assert {name for pair in named for name in pair if name} >= {*get_args(Scheduler), *get_args(Sampler)}
    (section,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    SearchSection.model_validate(yaml.safe_load(section)["search"])
