"""Every algorithm ends its search with the best complete trial; trials are simulated here."""

from __future__ import annotations

import pytest

from ray_jobs.storage import Store
from tests.search.test_decide import make_problem
from tests.search.test_runner import InstantExecutor, result_of, run


@pytest.mark.parametrize("algorithm", ["asha", "pbt", "random", "tpe"])
def test_an_algorithm_ends_with_the_best_complete_trial(store: Store, algorithm: str) -> None:
    problem = make_problem({"algorithm": algorithm, "trials": 4, "finalists": 1})
    schedule, results, _ = run(store, problem, InstantExecutor(result_of))
    assert schedule.winner is not None
    winner = results[schedule.winner.name]
    last = max(result.run.until for result in results.values())
    assert winner.run.until == last == 27
    assert winner.checkpoint is not None
    assert winner.loss == min(result.loss or 0.0 for result in results.values() if result.run.until == last)
