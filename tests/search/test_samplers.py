"""The values of trials: what is tried first, what learns, and what a later attempt gives back."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from ray_jobs.search import space
from ray_jobs.search.samplers import NumberedSearch, _ByResults
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.spec import Range
from ray_jobs.spec.space import Space, fits, grid
from tests.builders import make_spec
from tests.search.problems import LOG, make_problem, outcome
from tests.search.simulation import MemoryStore, Simulation, finish


def values_of(search: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The values of the trials, by number."""
    simulation = Simulation(make_problem(search, **options), outcome)
    simulation.run()
    return list(simulation.records.points(simulation.results).values())


def test_a_grid_has_every_point_once_and_random_none_twice() -> None:
    points = {"space": {"learning_rate": [1e-4, 3e-4, 1e-3], "lora.rank": [8, 16]}, "algorithm": "grid"}
    now, results, _ = finish(make_problem(points))
    tried = [tuple(result.run.params.values()) for result in results.values() if not result.run.again]
    assert len(tried) == len(set(tried)) == 6
    assert now.winner is not None
    assert now.winner.params == {"learning_rate": 3e-4, "lora.rank": 16}
    rates = [values["learning_rate"] for values in values_of({"algorithm": "random"})]
    assert len(rates) == len(set(rates)) == 9
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)


def late_miss(search: dict[str, Any], seed: int) -> float:
    """Mean loss of the second half of 24 trials."""
    document = {"trials": 24, "parallel": 2, "seed": seed, "finalists": 1, **search}
    _, results, _ = finish(make_problem(document))
    late = [result for result in results.values() if result.run.trial >= 12 and result.run.rung == 0]
    return sum(result.loss or 0 for result in late) / len(late)


@pytest.mark.parametrize(("scheduler", "sampler"), [("none", "tpe"), ("asha", "tpe"), ("none", "gp")])
def test_a_sampler_learns_where_random_does_not(scheduler: str, sampler: str) -> None:
    """With `asha` a trial that waits at a rung counts by its result there."""
    seeds = range(1 if sampler == "gp" else 4)
    learned = sum(late_miss({"scheduler": scheduler, "sampler": sampler}, seed) for seed in seeds) / len(seeds)
    drawn = sum(late_miss({"scheduler": scheduler, "sampler": "random"}, seed) for seed in seeds) / len(seeds)
    assert learned < drawn - 0.2


def test_cma_es_stays_in_its_ranges() -> None:
    ranges = {"learning_rate": LOG, "weight_decay": {"min": 0.0, "max": 0.1}}
    tried = values_of({"space": ranges, "scheduler": "none", "sampler": "cmaes", "trials": 14})
    assert len({values["weight_decay"] for values in tried}) == 14
    assert all(0 <= values["weight_decay"] <= 0.1 and 1e-5 <= values["learning_rate"] <= 1e-2 for values in tried)


def test_winners_of_earlier_searches_are_tried_first() -> None:
    known = {"learning_rate": 2.5e-4, "lora.rank": 16}
    for search in ({}, {"algorithm": "random"}):
        first, second, *_ = values_of(search, warm=(known,))
        assert first == known
        assert second != known


def test_the_values_of_the_job_or_the_nearest_in_the_space_come_first() -> None:
    ranks = {"learning_rate": LOG, "lora.rank": [4, 12, 64], "lora.target_modules": ["all-linear", ["q_proj"]]}
    first = values_of({"space": ranks})[0]
    own = make_spec().training
    assert first["learning_rate"] == pytest.approx(own.learning_rate or 2e-4)
    assert first["lora.rank"] == min((4, 12, 64), key=lambda rank: abs(rank - own.lora.rank))
    assert values_of({"space": {"learning_rate": {"min": 0.1, "max": 0.2}}})[0] == {"learning_rate": 0.1}
    assert values_of({"algorithm": "random"})[0]["learning_rate"] != first["learning_rate"]


@pytest.mark.parametrize("algorithm", ["asha", "random"])
def test_a_number_keeps_its_values_when_its_trial_died_before_its_result(algorithm: str) -> None:
    """A trial may have left checkpoints under its number."""
    problem, store = make_problem({"parallel": 1, "algorithm": algorithm}), MemoryStore()
    store.put_json("search/points/0000.json", {"learning_rate": 7e-4, "lora.rank": 8})
    _, results, _ = finish(problem, store=store)
    assert results["0000-0"].run.params == {"learning_rate": 7e-4, "lora.rank": 8}


@pytest.mark.parametrize("algorithm", ["asha", "random"])
def test_the_values_of_a_trial_are_recorded_before_it_trains(algorithm: str) -> None:
    store = MemoryStore()

    def make(run: TrialSegment) -> Result:
        assert store.get_json(f"search/points/{run.trial:04d}.json") == run.params
        return outcome(run)

    finish(make_problem({"algorithm": algorithm}), make, store)


def test_a_whole_trial_counts_as_whole_while_tune_still_saves_it() -> None:
    """Optuna hears of a trial's end only after that."""
    problem, results = make_problem(), dict[str, Result]()
    sampler = _ByResults(problem, results)
    study = optuna.create_study(sampler=sampler)
    params = study.ask(space.distributions(problem.space)).params
    for rung, until in enumerate((3, 9, 27)):
        run = TrialSegment(trial=0, rung=rung, params=params, until=until)
        results[run.name] = outcome(run)
        study.ask(space.distributions(problem.space))
        seen = sampler._view(study).trials[0]
        assert seen.state.name == ("COMPLETE" if until == 27 else "PRUNED")
    assert seen.value == results["0000-2"].loss


def test_a_model_of_the_values_does_not_see_a_failed_trial_and_tpe_does() -> None:
    """Its mark, a billion, would flatten a Gaussian process."""
    for sampler, state in (("gp", "FAIL"), ("tpe", "COMPLETE")):
        problem = make_problem({"scheduler": "none", "sampler": sampler, "trials": 3, "parallel": 1})
        simulation = Simulation(problem, lambda run: outcome(run, "lost" if run.trial == 1 else "ok"))
        simulation.run()
        seen = simulation.sampling.sampler
        assert isinstance(seen, NumberedSearch)
        assert [trial.state.name for trial in seen._optuna._ot_study.trials] == ["COMPLETE", state, "COMPLETE"]


def test_a_grid_of_an_earlier_version_is_finished_point_by_point() -> None:
    points = {"space": {"learning_rate": [1e-4, 3e-4, 1e-3], "lora.rank": [8, 16]}, "algorithm": "grid"}
    problem, store = make_problem(points), MemoryStore()
    for trial, params in enumerate(grid(problem.space)[:3]):
        run = TrialSegment(trial=trial, rung=0, params=params, until=27)
        Simulation(problem, outcome, store).records.add(outcome(run))
    _, results, _ = finish(problem, store=store)
    tried = [tuple(result.run.params.values()) for result in results.values() if not result.run.again]
    assert len(tried) == len(set(tried)) == 6


def test_results_of_a_search_of_an_earlier_version_are_known_points() -> None:
    """It recorded no points, and one of its trials had no result yet."""
    problem, store = make_problem(), MemoryStore()
    for trial in (0, 1, 3):
        run = TrialSegment(trial=trial, rung=0, params={"learning_rate": 1e-3 / (trial + 1), "lora.rank": 8}, until=3)
        Simulation(problem, outcome, store).records.add(outcome(run))
    _, results, begun = finish(problem, store=store)
    assert not {"0000-0", "0001-0", "0003-0"} & set(begun)
    assert results["0003-0"].run.params["learning_rate"] == 1e-3 / 4
    assert len({result.run.trial for result in results.values()}) == 9


@pytest.mark.parametrize("algorithm", ["asha", "tpe", "random"])
def test_sampling_ends_when_the_expected_gain_is_too_small(algorithm: str) -> None:
    search = {"algorithm": algorithm, "trials": 60, "parallel": 1, "finalists": 1, "budget": {"gain_below": 50.0}}
    if algorithm == "random":
        search["sampler"] = "tpe"
        search["scheduler"] = "none"
        del search["algorithm"]
    now, results, _ = finish(make_problem(search))
    assert 10 <= len({result.run.trial for result in results.values()}) < 20
    assert "expected to gain" in now.why


def test_two_metrics_make_a_front() -> None:
    def make(run: TrialSegment) -> Result:
        return outcome(run).model_copy(update={"tokens": 1000 + 100 * run.params["lora.rank"], "seconds": 1.0})

    problem = make_problem({"metric": ["loss", "tokens_per_s"], "trials": 12})
    now, results, _ = finish(problem, make)
    assert now.winner is not None
    simulation = Simulation(problem, make)
    simulation.run(until=6)
    search = simulation.sampling.sampler
    assert isinstance(search, NumberedSearch)
    study = search._optuna._ot_study  # paused trials teach the sampler, too
    assert sum(trial.state.name == "COMPLETE" for trial in study.sampler._view(study).trials) >= 5
    assert results[now.winner.name].loss == min(r.loss or 9 for r in results.values() if r.run.until == 27)


def test_values_of_lists_and_whole_numbers_survive_optuna() -> None:
    wide: Space = {
        "lora.rank": Range(min=4, max=64, scale="log"),
        "lora.target_modules": (["q_proj"], "all-linear"),
        "learning_rate": Range(min=1e-5, max=1e-3, scale="log"),
    }
    document = {name: value.model_dump() if isinstance(value, Range) else list(value) for name, value in wide.items()}
    for algorithm in ("asha", "random"):
        for values in values_of({"space": document, "trials": 12, "algorithm": algorithm}):
            assert isinstance(values["lora.rank"], int)
            assert fits(wide, values)
    assert not fits(wide, {**values, "lora.rank": 128})
    assert not fits(wide, {"lora.rank": 8})


def test_the_default_space_suits_method_and_data() -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    lora = space.default_space(make_spec(), config, supervised=1000)
    full = space.default_space(make_spec(training={"method": "full"}), config, supervised=1000)
    rate, slow = lora["learning_rate"], full["learning_rate"]
    assert isinstance(rate, Range)
    assert isinstance(slow, Range)
    assert rate.min == pytest.approx(10 * slow.min)
    assert lora["lora.rank"] == (8, 16)
    assert space.default_space(make_spec(), config, supervised=10**9)["lora.rank"] == (64,)
    frozen = space.default_space(make_spec(training={"method": "frozen"}), config, supervised=10)
    assert frozen["trainable_blocks"] == (1, 2)
