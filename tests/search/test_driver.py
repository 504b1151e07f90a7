"""Whole searches on Ray Tune, in one process with a real Ray and a real store: every scheduler and every sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.search.driver import Search
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Store
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.lr_schedule import decay_start
from tests.search.trials import Setting, make_setting

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]


def make_search(setting: Setting, **section: Any) -> Search:
    """A search of four trials in a shared trainer; a whole trial has 20 steps."""
    space = {"learning_rate": {"min": 1e-3, "max": 1e-1, "scale": "log"}, "weight_decay": [0.0, 0.01]}
    search = {"space": space, "trials": 4, "finalists": 1, **section}
    spec = parse_spec(setting.inputs.spec.model_dump() | {"search": search})
    assert spec.search is not None
    job = jobs.start_attempt(setting.store, spec)
    records = SearchRecords(setting.store, f"jobs/{job.id}/search/x")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=len(setting.rows)))
    materials = {spec.base_model: setting.inputs}
    return Search(job, records, problem, materials, lambda *_, **__: None, print)


@pytest.mark.parametrize("algorithm", ["asha", "pbt"])
def test_a_search_ends_with_a_trained_winner(store: Store, tmp_path: Path, algorithm: str) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    ray_workers.connect()
    search = make_search(setting, algorithm=algorithm)
    now = search.run()
    assert now.winner is not None
    results = search.records.results()
    winner = results[now.winner.name]
    assert winner.run.until == 20
    whole = [result.loss for result in results.values() if result.run.until == 20]
    assert winner.loss == min(loss for loss in whole if loss is not None)
    assert winner.checkpoint is not None
    assert checkpoint.load(store, winner.checkpoint) is not None
    if algorithm == "pbt":
        moved = [r.run for r in results.values() if r.run.source and int(r.run.source[:4]) != r.run.trial]
        assert moved
        for run in moved:  # it resumes from the other member
            source = results[run.source or ""]
            kept = decay_start(source.run.until)
            assert results[run.name].losses[:kept] == source.losses[:kept]
