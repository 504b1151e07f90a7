"""Which trials run how long: Ray Tune's schedulers over the rungs, after failures and after crashes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Trial

from ray_jobs.search.rungs import rungs_of, trial_spec
from ray_jobs.search.schedulers import Places, scheduler_of
from ray_jobs.search.trainables import SharedTrial
from ray_jobs.sharing.segments import Result, SegmentStatus, TrialSegment
from ray_jobs.training.lr_schedule import decay_start, learning_rate_at
from tests.builders import make_spec
from tests.search.problems import make_problem, outcome
from tests.search.simulation import MemoryStore, Simulation, finish


def by_rung(results: dict[str, Result]) -> list[list[Result]]:
    return [[r for r in results.values() if r.run.rung == rung and not r.run.again] for rung in range(3)]


def test_asha_promotes_only_the_best_of_a_rung_and_resumes_from_before_the_decay() -> None:
    now, results, _ = finish(make_problem({"finalists": 1}))
    rungs = by_rung(results)
    assert [result.run.until for result in rungs[0]] == [3] * 9
    assert list(map(len, rungs[1:])) == [3, 1]
    best = min(rungs[0], key=lambda result: result.loss or 0)
    assert best.run.trial in {result.run.trial for result in rungs[1]}
    for result in rungs[1] + rungs[2]:
        assert result.run.source is not None
        source = results[result.run.source].run
        assert (source.trial, source.params, source.rung) == (
            result.run.trial, result.run.params, result.run.rung - 1,
        )  # fmt: skip
    assert now.winner is not None
    assert now.winner.until == 27


@pytest.mark.parametrize("parallel", [1, 5])
def test_asha_promotes_no_more_than_its_share_of_the_planned_trials(parallel: int) -> None:
    """Each trial is better than all before it, so that the best ninth changes with every result."""
    problem = make_problem({"trials": 27, "parallel": parallel, "finalists": 1})
    _, results, _ = finish(problem, lambda run: outcome(run).model_copy(update={"loss": 9.0 - run.trial / 10}))
    assert list(map(len, by_rung(results))) == [27, 3, 0]


def test_asha_has_two_rungs_where_a_ninth_of_the_trials_are_three() -> None:
    def rungs(**search: Any) -> tuple[int, int]:
        section = make_problem(search).search
        return section.rungs, section.reduction

    assert rungs(trials=27) == rungs(trials=27, scheduler="asha", sampler="gp") == (2, 9)
    assert rungs(trials=26) == rungs(trials=27, rungs=3) == rungs(trials=27, reduction=3) == (3, 3)
    assert rungs(trials=27, scheduler="hyperband") == rungs(trials=27, algorithm="pbt") == (3, 3)
    stored = make_problem({"trials": 27, "rungs": 3, "reduction": 3})  # by an earlier version
    assert type(stored).model_validate(stored.model_dump(mode="json")).search.rungs == 3


def test_asha_promotes_before_it_begins_another_trial() -> None:
    _, _, begun = finish(make_problem({"parallel": 1, "trials": 6}))
    assert begun[:3] == ["0000-0", "0001-0", "0002-0"]
    assert begun[3].endswith("-1")


@pytest.mark.parametrize(
    ("scheduler", "trained"),
    [
        ("asha", (9, 3, 1)),
        ("asha_stopping", (9, 2, 2)),  # the first trial passes every rung
        ("hyperband", (9, 9, 6)),  # 3 trials to their end, 5 from the second rung, 1 from the first
        ("median_stopping", (9, 3, 3)),
        ("none", (9, 0, 0)),
    ],
)
def test_each_scheduler_trains_as_many_to_each_rung_as_its_rule_says(scheduler: str, trained: tuple[int, ...]) -> None:
    problem = make_problem({"scheduler": scheduler, "finalists": 1})
    now, results, _ = finish(problem)
    assert tuple(map(len, by_rung(results))) == trained
    assert now.winner is not None
    assert now.winner.until == 27
    whole = [result.loss or 0.0 for result in results.values() if result.run.until == 27]
    assert results[now.winner.name].loss == min(whole)


@pytest.mark.parametrize("scheduler", ["asha", "asha_stopping", "hyperband", "median_stopping", "none"])
@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_a_search_ends_and_never_has_more_trials_at_once_than_places(scheduler: str, parallel: int) -> None:
    simulation = Simulation(make_problem({"scheduler": scheduler, "parallel": parallel, "trials": 12}), outcome)
    simulation.run()
    assert simulation.most_at_once == parallel
    assert len({result.run.trial for result in simulation.results.values()}) == 12


@pytest.mark.parametrize("status", ["not_finite", "out_of_memory", "timed_out", "lost", "failed"])
@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_a_trial_that_fails_is_recorded_and_the_search_continues(scheduler: str, status: SegmentStatus) -> None:
    def make(run: TrialSegment) -> Result:
        return outcome(run, status if run.trial in (0, 1, 4) else "ok")

    now, results, _ = finish(make_problem({"scheduler": scheduler}), make)
    assert now.winner is not None
    assert now.winner.trial not in (0, 1, 4)
    assert not any(result.run.rung and result.run.trial in (0, 1, 4) for result in results.values())
    assert len({result.run.trial for result in results.values()}) == 9


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("failing", range(6))
def test_a_search_ends_when_a_promoted_trial_fails(parallel: int, failing: int) -> None:
    """It may be the last one of its bracket that ran."""
    promoted: list[str] = []

    def make(run: TrialSegment) -> Result:
        if run.rung == 1:
            promoted.append(run.name)
        return outcome(run, "failed" if run.rung == 1 and len(promoted) == failing + 1 else "ok")

    simulation = Simulation(make_problem({"scheduler": "hyperband", "trials": 17, "parallel": parallel}), make)
    simulation.run()
    assert len({result.run.trial for result in simulation.results.values()}) == 17


def test_the_members_of_a_population_do_not_wait_for_one_that_died() -> None:
    problem = make_problem({"scheduler": "pbt", "trials": 3})
    scheduler = scheduler_of(problem, Places(3))
    scheduler.set_search_properties("loss", "min")
    tune.register_trainable("made-up", SharedTrial)
    params = {"learning_rate": 1e-3, "lora.rank": 8}
    trials = [Trial("made-up", config={"trial": i, "params": params}) for i in range(3)]
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: trials)
    for trial, status in zip(trials, (Trial.PAUSED, Trial.PAUSED, Trial.ERROR), strict=True):
        scheduler.on_trial_add(controller, trial)
        trial.set_status(status)
    for trial in trials[:2]:
        scheduler._trial_state[trial].last_train_time = 1  # both wait at the first rung
    assert scheduler.choose_trial_to_run(controller) in trials[:2]
    trials[2].set_status(Trial.RUNNING)
    scheduler._next_perturbation_sync = 1
    assert scheduler.choose_trial_to_run(controller) is None  # they wait for it


def test_when_all_fail_no_trial_wins() -> None:
    now, results, _ = finish(make_problem(), lambda run: outcome(run, "not_finite"))
    assert now.winner is None
    assert len(results) == 9


@pytest.mark.parametrize("search", [{}, {"sampler": "gp"}, {"scheduler": "asha_stopping"}, {"algorithm": "random"}])
@pytest.mark.parametrize("ended", [1, 4, 11])
def test_one_trial_at_a_time_has_the_same_end_after_a_crash(search: dict[str, Any], ended: int) -> None:
    problem = make_problem({"parallel": 1, **search})
    straight, expected, _ = finish(problem)
    store = MemoryStore()
    crashed = Simulation(problem, outcome, store)
    crashed.run(until=ended)
    now, results, begun = finish(problem, store=store)
    assert not set(begun) & set(crashed.begun)
    assert now == straight
    assert {name: result.run for name, result in results.items()} == {n: r.run for n, r in expected.items()}


def test_trials_at_once_lose_nothing_in_a_crash_and_the_best_of_all_results_wins() -> None:
    problem, store = make_problem({"finalists": 1}), MemoryStore()
    before: set[str] = set()
    for ended in (2, 5, 9):
        crashed = Simulation(problem, outcome, store)
        crashed.run(until=ended)
        assert not before & set(crashed.begun)
        before |= set(crashed.begun)
    now, results, begun = finish(problem, store=store)
    assert not before & set(begun)
    assert before < set(results)
    assert now.winner is not None
    whole = [result for result in results.values() if result.run.until == 27]
    assert now.winner == min(whole, key=lambda result: result.loss or 0.0).run


def test_rungs_and_the_start_of_their_decay() -> None:
    problem = make_problem()
    assert rungs_of(problem, {"learning_rate": 1e-4}) == (3, 9, 27)
    assert rungs_of(problem, {"batch_size": 270}) == (1, 1, 1)
    assert rungs_of(make_problem({"algorithm": "pbt"}), {}) == (9, 18, 27)
    assert [decay_start(steps) for steps in (1, 2, 3, 9, 27)] == [0, 1, 2, 7, 22]
    spec = make_spec(training={"learning_rate": 1e-3, "warmup_fraction": 0.1})
    short = [learning_rate_at(step, 27, spec, stop_at_step=9) for step in range(9)]
    long = [learning_rate_at(step, 27, spec, stop_at_step=27) for step in range(27)]
    assert short[:7] == long[:7]  # the trunk is the same
    assert short[0] < short[2] == 1e-3
    assert 0 < short[8] < short[7] < 1e-3


def test_the_job_of_a_segment_has_the_values_of_its_trial() -> None:
    problem = make_problem()
    run = TrialSegment(trial=0, rung=0, params={"learning_rate": 3e-3, "lora.rank": 8}, until=3)
    spec = trial_spec(problem, run)
    assert (spec.training.learning_rate, spec.training.lora.rank, spec.search) == (3e-3, 8, None)
    again = trial_spec(problem, run.model_copy(update={"again": True}))
    assert again.training.seed == spec.training.seed + 1
