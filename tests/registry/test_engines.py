"""The engine of a base in the catalogue: its options are the operator's, and a job asks for no more."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.errors import ModelError
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry, engine_problems, with_engine
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.serving.api_harness import add_base

ENTRY = CatalogueEntry(
    name="tiny",
    digest="b" * 16,
    source="x",
    architecture="LlamaForCausalLM",
    tasks=("chat",),
    max_tokens=4096,
    precision="bf16",
    max_lora_rank=32,
    serving=ServingSection(max_model_len=1024, max_loras=8),
)


@pytest.mark.parametrize(
    ("sections", "fields"),
    [
        ({}, []),  # the default of 2,048 tokens asks for nothing
        ({"serving": {"max_model_len": 512, "max_loras": 8}}, []),
        ({"serving": {"max_model_len": 4096}}, ["serving.max_model_len"]),
        (
            {"serving": {"max_loras": 9, "kv_cache_gib": 500.0, "max_queued_requests": 9999}},
            ["serving.max_loras", "serving.max_queued_requests", "serving.kv_cache_gib"],
        ),
        ({"training": {"lora": {"rank": 64}}}, ["training.lora.rank"]),
        ({"training": {"precision": "fp32"}}, ["training.precision"]),
        ({"training": {"precision": "bf16"}}, []),
        ({"search": {"space": {"lora.rank": [8, 128]}}}, ["training.lora.rank"]),
        ({"search": {"space": {"lora.rank": {"min": 8, "max": 64}}}}, ["training.lora.rank"]),
        (
            {"training": {"method": "full", "precision": "fp32"}, "serving": {"max_model_len": 4096}},
            [],
        ),  # its own engine
    ],
)
def test_a_job_asks_for_no_more_than_the_engine_has(sections: dict[str, Any], fields: list[str]) -> None:
    assert [field for field, _ in engine_problems(ENTRY, make_spec(**sections))] == fields


def test_a_refusal_names_the_value_the_limit_and_who_can_raise_it() -> None:
    ((_, reason),) = engine_problems(ENTRY, make_spec(serving={"max_model_len": 4096}))
    assert "4096" in reason
    assert "1024" in reason
    assert "kitae bases engine" in reason


def test_the_operator_changes_the_options(store: Workspace) -> None:
    add_base(store, "tiny")
    changed = catalogue.set_engine(store, "tiny", {"max_model_len": 512, "max_lora_rank": 128, "precision": "fp32"})
    assert changed == catalogue.find(store, "tiny")
    assert (changed.serving.max_model_len, changed.max_lora_rank, changed.precision) == (512, 128, "fp32")
    with pytest.raises(ModelError, match="no base 'other'"):
        catalogue.set_engine(store, "other", {})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"max_model_len": 8192}, "4096 positions"),
        ({"max_loras": 0}, "max_loras"),
        ({"max_lora_rank": 1024}, "max_lora_rank"),
        ({"precision": "int4"}, "precision"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError) as caught:
        with_engine(ENTRY, changes)
    assert why in str(caught.value)
