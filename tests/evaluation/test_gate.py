"""The gate: chance does not pass, a better model does, and too few rows are not judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ray_jobs.errors import GateError
from ray_jobs.evaluation.champion import Champion
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.evidence import lacking_evidence
from ray_jobs.evaluation.gate import gate, reason_champion_stays, reason_not_judged
from ray_jobs.evaluation.paired import compare, intervals
from ray_jobs.training.scoring import RowScores
from tests.training import harness

SPEC = harness.make_spec()
WITHOUT_GATE = harness.make_spec(evaluation={"must_beat_base": False})


def rows_of(losses: np.ndarray, counts: np.ndarray | None = None) -> RowScores:
    counts = np.ones(len(losses)) if counts is None else counts
    return RowScores(losses * counts, counts, np.zeros(len(losses)))


def evaluation(tuned: RowScores, base: RowScores, lacking: str = "") -> Evaluation:
    return Evaluation(
        candidate_key="k", is_adapter=False, lora_rank=None, dtype="fp32", base={"loss": base.total().loss},
        tuned={"loss": tuned.total().loss}, base_is="the base model", test_rows=len(tuned.losses_R),
        parity_prompts=(), comparison=compare(tuned, base, "the base model"), lacking=lacking,
    )  # fmt: skip


def passes(found: Evaluation) -> bool:
    try:
        gate(found, SPEC)
    except GateError:
        return False
    return True


@pytest.mark.parametrize("rows", [20, 100])
def test_two_models_that_are_the_same_pass_in_at_most_17_of_200_draws(rows: int) -> None:
    random = np.random.default_rng(rows)
    passed = 0
    for _ in range(200):
        counts = random.integers(1, 60, rows).astype(float)
        shared = random.gamma(2.0, 1.0, rows)
        tuned, base = (rows_of(shared + random.normal(0, 0.3, rows), counts) for _ in range(2))
        passed += passes(evaluation(tuned, base))
    assert passed <= 17


def test_a_model_that_equals_its_base_does_not_pass() -> None:
    scores = rows_of(np.random.default_rng(0).gamma(2.0, 1.0, 50))
    assert not passes(evaluation(scores, scores))


@pytest.mark.parametrize("rows", [20, 200])
def test_a_model_that_is_better_on_every_row_passes(rows: int) -> None:
    base = rows_of(np.random.default_rng(1).gamma(2.0, 1.0, rows))
    assert passes(evaluation(rows_of(base.losses_R - 0.1), base))


def test_a_difference_within_chance_is_refused_with_its_interval() -> None:
    random = np.random.default_rng(2)
    base = rows_of(random.gamma(2.0, 1.0, 40))
    tuned = rows_of(base.losses_R + random.normal(0, 1, 40))
    tuned = rows_of(tuned.losses_R - (tuned.losses_R.mean() - base.losses_R.mean()) - 0.02)
    with pytest.raises(
        GateError, match=r"not by more than chance \(95% interval of the difference -0\.\d+ to \+0\.\d+"
    ):
        gate(evaluation(tuned, base), SPEC)


def test_too_few_rows_are_not_judged_and_pass_unjudged() -> None:
    base = rows_of(np.ones(3))
    found = evaluation(rows_of(np.full(3, 2.0)), base, lacking_evidence(3, None))
    gate(found, SPEC)
    assert "the test side has 3 rows, and a comparison needs 20: bring about 200 rows in all" in found.lacking
    assert reason_not_judged(found, SPEC) == found.lacking
    assert reason_not_judged(found, WITHOUT_GATE) == ""


@pytest.mark.parametrize(
    ("labels", "judged"),
    [
        (["a"] * 20, False),
        (["a"] * 96 + ["b"] * 4, False),
        (["a"] * 15 + ["b"] * 5, True),
        (["a"] * 50 + ["b"] * 50 + ["rare"], True),
        ([str(i) for i in range(100)], False),
    ],
)
def test_two_labels_need_five_rows_each(labels: list[str], judged: bool) -> None:
    assert (lacking_evidence(len(labels), labels) == "") is judged


def test_a_loss_that_is_no_number_is_refused_even_without_a_judgement() -> None:
    found = evaluation(rows_of(np.full(3, math.nan)), rows_of(np.ones(3)), "few")
    for spec in (SPEC, WITHOUT_GATE):
        with pytest.raises(GateError, match="test loss is nan"):
            gate(found, spec)


def test_a_record_of_an_earlier_version_is_judged_by_its_losses() -> None:
    found = evaluation(rows_of(np.ones(8)), rows_of(np.full(8, 2.0)))
    former = Evaluation.model_validate(found.model_dump(exclude={"comparison", "lacking", "intervals", "baselines"}))
    gate(former, SPEC)
    with pytest.raises(GateError, match="is not below that of the base model"):
        gate(former.model_copy(update={"tuned": {"loss": 2.0}}), SPEC)


def test_intervals_hold_the_truth_in_about_95_percent_of_draws() -> None:
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        scores = RowScores(random.gamma(2.0, 0.5, 60), np.ones(60), (random.random(60) < 0.7).astype(float))
        found = intervals(scores, "accuracy")
        held += found["loss"][0] <= 1.0 <= found["loss"][1] and found["accuracy"][0] <= 0.7 <= found["accuracy"][1]
    assert held >= 165


def test_examples_of_one_row_are_one_observation() -> None:
    scores = RowScores(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.0]), np.array([0.0, 1.0, 1.0]))
    found = scores.by_row([7, 9, 7])
    assert (found.losses_R.tolist(), found.counts_R.tolist(), found.correct_R.tolist()) == ([5, 2], [2, 2], [1, 1])
    assert found.total() == scores.total()


def test_a_champion_that_was_not_compared_stays() -> None:
    base = rows_of(np.full(40, 2.0))
    better = evaluation(rows_of(np.full(40, 1.0)), base)
    assert reason_champion_stays(better, SPEC, None) == ""
    assert "version 3, which became the champion meanwhile" in reason_champion_stays(better, SPEC, "3")
    assert reason_champion_stays(better, WITHOUT_GATE, "3") == ""
    other_base = better.model_copy(update={"champion": Champion(version="3", key="k", incomparable="another base")})
    assert "version 3 cannot be compared with the new one: another base" in reason_champion_stays(other_base, SPEC, "3")
    beside = compare(rows_of(np.full(40, 1.0)), rows_of(np.full(40, 1.5)), "the champion, 3")
    compared = better.model_copy(update={"champion": Champion(version="3", key="k"), "beside_champion": beside})
    assert reason_champion_stays(compared, SPEC, "3") == ""
