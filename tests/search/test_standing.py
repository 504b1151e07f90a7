"""Where a search stands: its finalists and its winner, the checkpoints that are kept, and what a later search takes."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.errors import TrainingError
from ray_jobs.pipeline.outputs import EncodedRows
from ray_jobs.pipeline.stage_work import labels_a_row
from ray_jobs.search.driver import mode_of_search
from ray_jobs.search.records import Problem, SamplingEnd, SearchRecords
from ray_jobs.search.standing import Standing, all_failed, prunable, read, standing, warm_points
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.shared_trainer import mode_of
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.search.problems import make_problem, outcome
from tests.search.simulation import Simulation, finish


def sampled(problem: Problem, until: int) -> dict[str, Result]:
    """The first results of a search."""
    simulation = Simulation(problem, outcome)
    simulation.run(until=until)
    return simulation.results


def test_finalists_run_again_and_the_mean_of_both_seeds_decides() -> None:
    def lucky(run: TrialSegment) -> Result:
        """With another seed the best trial is bad."""
        result = outcome(run)
        best = run.params == first.params
        return result.model_copy(update={"loss": 9.0}) if best and run.again else result

    problem = make_problem()
    now, _, _ = finish(problem)
    assert now.winner is not None
    first = now.winner
    again, results, _ = finish(problem, lucky)
    assert again.winner is not None
    assert again.winner.params != first.params
    assert len([name for name in results if name.endswith("again")]) == 2
    alone, results, _ = finish(make_problem({"finalists": 1}))
    assert alone.winner is not None
    assert not any(name.endswith("again") for name in results)


def test_after_the_end_of_a_budget_the_finalists_run() -> None:
    problem = make_problem()
    results = sampled(problem, 4)
    stop = SamplingEnd(reason="the budget is spent", results=tuple(results))
    now = standing(problem, results, stop)
    begun = list(now.due)
    assert not now.sampling
    assert now.winner is None
    assert {run.trial for run in begun} <= {result.run.trial for result in results.values()}
    assert len(begun) == 4  # two to their end, two again
    for run in begun:
        results[run.name] = outcome(run)
    now = standing(problem, results, stop)
    assert now.winner is not None
    assert (now.why, now.due) == ("the budget is spent", ())


def test_a_result_after_the_end_of_sampling_makes_no_finalist() -> None:
    problem = make_problem()
    results = sampled(problem, 4)
    stop = SamplingEnd(reason="the budget is spent", results=tuple(results))
    before = standing(problem, results, stop)
    late = TrialSegment(trial=8, rung=2, params={"learning_rate": 3e-4, "lora.rank": 16}, until=27)
    assert standing(problem, {**results, late.name: outcome(late)}, stop).due == before.due


def test_a_lost_second_run_does_not_count() -> None:
    problem = make_problem()
    straight, _, _ = finish(problem)
    assert straight.winner is not None
    best = straight.winner.trial
    now, _, _ = finish(problem, lambda run: outcome(run, "lost" if run.again and run.trial == best else "ok"))
    assert now.winner is not None
    assert now.winner.trial == best
    now, results, _ = finish(problem, lambda run: outcome(run, "not_finite" if run.again else "ok"))
    assert now.winner is not None
    assert results[now.winner.name].run.rung == 2


def test_when_all_trials_fail_the_error_says_why() -> None:
    _, results, _ = finish(make_problem(), lambda run: outcome(run, "not_finite"))
    error = all_failed(results)
    assert isinstance(error, TrainingError)
    assert "all 9 trials of the search failed" in str(error)
    assert "not_finite on purpose" in str(error)
    assert len(error.details) == 1


def test_needed_checkpoints_are_never_deleted_and_few_are_kept() -> None:
    problem = make_problem({"checkpoints_to_keep": 1, "trials": 27, "parallel": 5})
    gone: set[str] = set()
    most_kept = 0

    def make(run: TrialSegment) -> Result:
        assert run.source not in gone
        live = {trial.config["trial"] for trial in simulation.trials if trial.status in ("RUNNING", "PENDING")}
        gone.update(prunable(problem, simulation.results, Standing(), live))
        nonlocal most_kept
        most_kept = max(most_kept, len(set(simulation.results) - gone))
        return outcome(run)

    simulation = Simulation(problem, make)
    simulation.run()
    assert gone
    assert most_kept < 27
    now, results, _ = finish(problem)
    assert now.winner is not None
    left = set(results) - set(prunable(problem, results, now))
    assert now.winner.name in left
    assert len(left) <= 3


def test_a_search_that_only_stops_trials_keeps_what_a_paused_one_resumes_from() -> None:
    problem = make_problem({"scheduler": "hyperband", "trials": 9, "parallel": 2, "storage_gib": 0.1})
    results = {name: r.model_copy(update={"stored_bytes": 2**30}) for name, r in sampled(problem, 9).items()}
    kept = set(results) - set(prunable(problem, results, Standing(), live=range(9)))
    latest = {result.run.trial: result.run.name for result in results.values()}
    assert set(latest.values()) <= kept


def test_the_storage_budget_keeps_the_best_that_fit() -> None:
    problem = make_problem({"storage_gib": 4.5, "trials": 27, "finalists": 1})
    results = {name: r.model_copy(update={"stored_bytes": 2**30}) for name, r in sampled(problem, 9).items()}
    kept = set(results) - set(prunable(problem, results, Standing()))
    assert len(kept) == 4
    unlimited = make_problem({"trials": 27, "finalists": 1})
    assert set(prunable(unlimited, results, Standing())) < set(results) - kept


def test_a_segment_does_not_resume_what_another_one_left_under_its_name(store: Workspace) -> None:
    """After a crash a member of a population may get other values for the same rung."""
    records = SearchRecords(store, "jobs/x/search/y")
    run = TrialSegment(trial=3, rung=1, params={"learning_rate": 1e-3}, until=9, source="0003-0")
    key = f"{records.checkpoints(run)}/step-4/weights"
    records.begin_segment(run)
    store.put(key, b"x")
    records.begin_segment(run)  # resumed
    assert store.exists(key)
    records.begin_segment(run.model_copy(update={"source": "0001-0"}))
    assert not store.exists(key)


def stored(store: Workspace, problem: Problem) -> SearchRecords:
    """A finished search in a store."""
    job = jobs.start_attempt(store, problem.spec)
    records = SearchRecords(store, f"jobs/{job.id}/search/x")
    records.begin(problem)
    _, results, _ = finish(problem)
    for result in results.values():
        records.add(result)
    return records


def test_a_search_of_an_earlier_version_has_its_winner(store: Workspace) -> None:
    """It recorded the end of sampling only where a budget was spent."""
    records = stored(store, make_problem())
    _, results, now = read(records)
    assert records.stopped() is None
    assert now.winner == finish(make_problem())[0].winner
    records.spend({"wall": 0.0, "worker": 0.0}, [results["0000-0"].run])
    _, _, again = read(records)  # it was resumed and samples
    assert again.sampling
    assert again.running == ()  # its segment has a result already


def test_a_later_search_begins_with_earlier_winners_of_its_team(store: Workspace) -> None:
    first = make_problem()
    records = stored(store, first)
    winner = read(records)[2].winner
    assert winner is not None
    other = make_problem({"seed": 5})
    assert warm_points(store, other, other.spec.job_id) == (winner.params,)
    assert warm_points(store, make_problem({"warm_start": False}), "x") == ()
    assert warm_points(store, make_problem({"scheduler": "pbt"}), "x") == ()
    narrow = make_problem({"space": {"learning_rate": [1.0]}})
    assert warm_points(store, narrow, "x") == ()
    assert warm_points(Workspace(store, "blue"), other, "x") == ()


@pytest.mark.parametrize(
    ("training", "compute", "mode", "why"),
    [
        ({"method": "lora"}, {"workers": 2}, "shared", ""),
        ({"method": "frozen"}, {}, "shared", ""),
        ({"method": "full"}, {}, "alone", "full"),
        ({"method": "full"}, {"workers": 2}, "workers", "full"),
        ({"method": "lora", "lora": {"dropout": 0.1}}, {}, "alone", "dropout"),
        ({"method": "lora"}, {"workers": 2, "zero_stage": 3}, "workers", "zero_stage 3"),
    ],
)
def test_where_a_trial_can_run(training: dict[str, Any], compute: dict[str, Any], mode: str, why: str) -> None:
    found = mode_of(make_spec(training=training, compute=compute))
    assert found[0] == mode
    assert why in found[1]


@pytest.mark.parametrize(
    ("space", "workers", "mode"),
    [
        ({"method": ["lora", "full"]}, 1, "shared"),
        ({"method": ["lora", "full"]}, 2, "workers"),
        ({"lora.dropout": [0.1, 0.2]}, 1, "alone"),
        ({"lora.dropout": {"min": 0.0, "max": 0.1}}, 1, "shared"),
        ({"lora.dropout": {"min": 0.0, "max": 0.1}}, 2, "workers"),
    ],
)
def test_one_trial_that_needs_several_workers_gives_them_to_all(space: dict[str, Any], workers: int, mode: str) -> None:
    """Shared trainers and groups would wait for each other's CPUs."""
    spec = make_spec(search={"space": space}, compute={"workers": workers})
    assert spec.search is not None
    assert mode_of_search(Problem(spec=spec, space=dict(spec.search.space or {}), rows=10)) == mode


def test_bases_whose_tokenizers_differ_are_compared_by_the_loss_of_a_row() -> None:
    """The worse base divides a row into three times as many tokens, each of which is easier."""
    rows = {"coarse": (20, 200), "fine": (20, 600)}
    encoded = {
        name: EncodedRows(validation_rows=count, validation_supervised=labels, test_kept=(), key=name, labels=())
        for name, (count, labels) in rows.items()
    }
    space = {"base_model": ["coarse", "fine"]}
    plain = make_problem({"space": space})
    assert labels_a_row({**encoded, "fine": encoded["coarse"]}) == {}
    problem = plain.model_copy(update={"labels_a_row": labels_a_row(encoded)})
    segment = TrialSegment(trial=0, rung=0, params={"base_model": "coarse"}, until=9)
    coarse = Result(run=segment, status="ok", loss=2.0)
    fine = coarse.model_copy(update={"run": segment.model_copy(update={"params": {"base_model": "fine"}}), "loss": 1.0})
    assert plain.comparable(fine).value("loss") < plain.comparable(coarse).value("loss")
    assert problem.comparable(coarse).loss == pytest.approx(20.0)
    assert problem.comparable(fine).loss == pytest.approx(30.0)
    failed = Result(run=segment, status="failed")
    assert problem.comparable(failed) == failed
