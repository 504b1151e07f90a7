"""The longest sequence of models of several kinds, from their configurations."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from ray_jobs.tasks.positions import longest_sequence


@pytest.mark.parametrize(
    ("kind", "options", "longest"),
    [
        ("bert", {}, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("xlm-roberta", {"max_position_embeddings": 8194, "pad_token_id": 1}, 8192),
        ("gpt2", {"n_positions": 300}, 300),
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gemma3", {"text_config": {"max_position_embeddings": 777, "model_type": "gemma3_text"}}, 777),
        ("bloom", {}, None),
        ("t5", {}, None),
    ],
)
def test_the_longest_sequence_of_a_model(kind: str, options: dict[str, Any], longest: int | None) -> None:
    assert longest_sequence(AutoConfig.for_model(kind, **options).to_dict()) == longest


def test_a_configuration_without_a_number_sets_no_limit() -> None:
    assert longest_sequence({"max_position_embeddings": None, "n_positions": "many"}) is None
    assert longest_sequence({"max_position_embeddings": -1}) is None
