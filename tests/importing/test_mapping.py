"""OpenAI's jobs and evals as requests to Kitae."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import eval_create_params
from pydantic import TypeAdapter

from ray_jobs.importing.mapping import (
    mapped_eval,
    mapped_job,
    parameters_of,
    proposed_base,
    with_judge,
    with_targets,
)
from serving.http.openai_types import CreateFineTuningJob
from tests.importing.openai_stub import TRAINING, VALIDATION, exact_eval, job


def hyperparameters(**given: Any) -> Any:
    mapped = mapped_job(job("ftjob-1", method=None, hyperparameters=given), {})
    return mapped.request["method"]["supervised"]["hyperparameters"], mapped.differences


def test_a_request_is_one_that_the_api_reads() -> None:
    mapped = mapped_job(job("ftjob-1", validation_file=VALIDATION), {})
    request = with_targets(mapped, "qwen3-8b", {TRAINING: "file-a", VALIDATION: "file-b"})
    read = CreateFineTuningJob.model_validate(request)
    assert (read.model, read.training_file, read.validation_file) == ("qwen3-8b", "file-a", "file-b")
    assert (read.suffix, read.seed, mapped.problems) == ("support", 42, ())


@pytest.mark.parametrize("value", ["auto", None, 0, True, "3"])
def test_hyperparameters_without_a_number_are_auto(value: object) -> None:
    found, differences = hyperparameters(n_epochs=value, batch_size=value, learning_rate_multiplier="auto")
    assert found == {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert any(each.startswith("auto:") for each in differences)
    assert not any("multiplies" in each for each in differences)


def test_every_difference_of_the_hyperparameters_is_named() -> None:
    found, differences = hyperparameters(n_epochs=60, batch_size=300, learning_rate_multiplier=0.3)
    assert found == {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": "auto"}
    text = "\n".join(differences)
    assert "n_epochs: 60 is above the maximum of 50" in text
    assert "batch_size: 300 is above the maximum of 256" in text
    assert "OpenAI's 0.3 multiplies a rate that OpenAI does not publish" in text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": {"type": "dpo", "dpo": {}}}, "method dpo: only supervised"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "its rows have a grader"),
        ({"status": "running"}, "it is running at OpenAI"),
        ({"training_file": None}, "it names no training file"),
        ({"training_file": "file-x"}, "training_file file-x does not come over: it is gone"),
        ({"validation_file": "file-x"}, "validation_file file-x does not come over: it is gone"),
    ],
)
def test_a_job_that_cannot_be_trained_again_has_the_reason(changes: dict[str, Any], problem: str) -> None:
    assert problem in "\n".join(mapped_job(job("ftjob-1", **changes), {"file-x": "it is gone"}).problems)


def test_integrations_and_full_metadata_are_said() -> None:
    pairs = {f"k{i}": "v" for i in range(16)}
    mapped = mapped_job(job("ftjob-1", metadata=pairs, integrations=[{"type": "wandb", "wandb": {}}]), {})
    assert "integrations" not in mapped.request
    assert len(mapped.request["metadata"]) == 16
    assert mapped.request["metadata"]["openai_job"] == "ftjob-1"
    assert "metadata: k15 left out" in "\n".join(mapped.differences)
    assert "integrations: left out" in "\n".join(mapped.differences)


def test_an_eval_is_as_the_api_takes_it() -> None:
    mapped = mapped_eval(exact_eval())
    TypeAdapter(eval_create_params.EvalCreateParams).validate_python(mapped.request)
    assert mapped.request["data_source_config"] == {
        "type": "custom",
        "item_schema": {"type": "object", "properties": {"answer": {"type": "string"}}},
        "include_sample_schema": True,
    }
    assert [each["name"] for each in mapped.request["testing_criteria"]] == ["same", "good"]
    assert not any("id" in each for each in mapped.request["testing_criteria"])
    assert mapped.request["metadata"] == {"openai_eval": "eval_1"}
    judged = with_judge(mapped, "qwen3-8b")["testing_criteria"]
    assert [each.get("model") for each in judged] == [None, "qwen3-8b"]
    logs = mapped_eval({"id": "eval_2", "data_source_config": {"type": "logs", "schema": {}, "metadata": {"a": "b"}}})
    assert logs.request["data_source_config"] == {"type": "logs", "metadata": {"a": "b"}}
    assert "logs read completions stored at OpenAI" in logs.differences[0]


def test_a_base_is_proposed_by_the_parameters_in_its_name() -> None:
    bases = ["smollm2-135m-instruct", "qwen3-8b", "qwen3-32b", "custom"]
    assert [parameters_of(name) for name in bases] == [1.35e8, 8e9, 3.2e10, None]
    assert proposed_base("gpt-4o-2024-08-06", bases) == "qwen3-32b"
    assert proposed_base("gpt-4o-mini-2024-07-18", bases) == "qwen3-8b"
    assert proposed_base("gpt-4.1-nano", ["smollm2-135m-instruct"]) == "smollm2-135m-instruct"
    assert proposed_base("gpt-4o", []) is None
