"""Schedulers and samplers: which words mean what, and which pairs are refused, with those that can be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.spec.search import SearchSection

RANGE = {"min": 1e-5, "max": 1e-3, "scale": "log"}
RANGES = {"learning_rate": RANGE, "weight_decay": {"min": 0.0, "max": 0.1}}
LISTS = {"learning_rate": [1e-4, 1e-3], "lora.rank": [8, 16]}


@pytest.mark.parametrize(
    ("section", "scheduler", "sampler"),
    [
        ({}, "asha", "tpe"),
        ({"algorithm": "asha"}, "asha", "tpe"),
        ({"algorithm": "tpe"}, "none", "tpe"),
        ({"algorithm": "random"}, "none", "random"),
        ({"algorithm": "grid", "space": LISTS}, "none", "grid"),
        ({"algorithm": "pbt"}, "pbt", "random"),
        ({"scheduler": "pb2"}, "pb2", "random"),
        ({"scheduler": "hyperband"}, "hyperband", "tpe"),
        ({"sampler": "random"}, "asha", "random"),
        ({"scheduler": "asha", "sampler": "grid", "space": LISTS}, "asha", "grid"),
        ({"scheduler": "none", "sampler": "cmaes", "space": RANGES}, "none", "cmaes"),
    ],
)
def test_an_algorithm_is_a_scheduler_and_a_sampler(section: dict[str, Any], scheduler: str, sampler: str) -> None:
    found = SearchSection.model_validate(section)
    assert (found.schedules, found.samples) == (scheduler, sampler)
    assert SearchSection.model_validate(found.model_dump()) == found  # as stored


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"algorithm": "tpe", "scheduler": "asha"}, "algorithm: tpe sets scheduler and sampler"),
        ({"scheduler": "pbt", "sampler": "tpe"}, "needs sampler: random; sampler: tpe needs scheduler: asha"),
        ({"scheduler": "pb2", "sampler": "gp"}, "needs sampler: random; sampler: gp needs scheduler: asha"),
        ({"scheduler": "pbt", "space": {"lora.rank": [8, 16]}}, "space has none of them"),
        ({"scheduler": "pb2", "space": LISTS}, "pb2 needs a range .*scheduler: pbt takes lists too"),
        ({"sampler": "grid"}, "grid needs space, with a list of values"),
        ({"sampler": "grid", "space": RANGES}, "learning_rate, weight_decay has a range; sampler: random, tpe"),
        ({"scheduler": "none", "sampler": "cmaes"}, "the default space has lists"),
        ({"scheduler": "none", "sampler": "cmaes", "space": LISTS}, "learning_rate, lora.rank has a list"),
        ({"scheduler": "none", "sampler": "cmaes", "space": {"learning_rate": RANGE}}, "at least two fields"),
        ({"sampler": "cmaes", "space": RANGES}, "needs scheduler: none; scheduler: asha takes sampler: tpe"),
        ({"scheduler": "none", "sampler": "cmaes", "space": RANGES, "metric": ["loss", "tokens_per_s"]}, "one metric"),
        ({"metric": ["loss", "tokens_per_s"], "budget": {"gain_below": 0.1}}, "needs one metric"),
        ({"metric": ["loss", "loss"]}, "names loss twice"),
        ({"metric": []}, "at least 1"),
        ({"space": {}}, "space is empty"),
        ({"scheduler": "bohb"}, "asha_stopping"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_with_those_that_can(section: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        SearchSection.model_validate(section)
