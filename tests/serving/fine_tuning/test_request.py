"""A create request resolved to a job file: OpenAI's hyperparameters, Kitae's sections, and all errors at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.report import RowReport
from ray_jobs.registry.catalogue import CatalogueEntry
from serving.files.stored_files import FileRecord
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.request import auto_batch_size, auto_epochs, merged, resolve
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.http.ids import new_id

ENTRY = CatalogueEntry(
    name="tiny", digest="b" * 16, source="x", architecture="LlamaForCausalLM", tasks=("chat",), max_tokens=4096
)


MULTIPLIED = {"learning_rate_multiplier": 2}


def file_of(count: int = 50, **facts: Any) -> FileRecord:
    report = {"task": "chat", "rows": count, "duplicates": 0} | facts.pop("report", {})
    given = {"id": "file-1", "purpose": "fine-tune"} | facts
    return FileRecord(
        team="a", key_id="k", filename="rows.jsonl", bytes=1, created_at=0, key="files/a/file-1/rows.jsonl",
        report=RowReport(**report), **given,
    )  # fmt: skip


def ask(
    body: dict[str, Any], *, training: FileRecord | None = None, validation: FileRecord | None = None, **more: Any
) -> ApiJob:
    request = openai_types.CreateFineTuningJob.model_validate({"model": "tiny", "training_file": "file-1"} | body)
    files = {request.training_file: training or file_of()}
    if validation is not None:
        files[str(request.validation_file)] = validation
    arguments: dict[str, Any] = {
        "identifier": new_id("ftjob", now_s=1000.0), "team": "a", "key_id": "k", "files": files,
        "uri": "s3://b/{}".format, "bases": {"tiny": ENTRY}, "defaults": {},
    } | more  # fmt: skip
    return resolve(request, **arguments)


def refusal_of(body: dict[str, Any], **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(body, **more)
    assert caught.value.status == 400
    return caught.value


def test_a_minimal_request() -> None:
    resolved = ask({})
    spec = resolved.job_spec()
    assert (spec.name, spec.team, spec.task, spec.base_model) == (resolved.id, "a", "chat", "tiny")
    assert spec.data.train == "s3://b/files/a/file-1/rows.jsonl"
    assert (spec.training.method, spec.training.epochs, spec.training.batch_size) == ("lora", 3, 6)
    assert spec.training.publish_checkpoints
    assert resolved.hyperparameters == {"n_epochs": 3, "batch_size": 6, "learning_rate_multiplier": 1.0}


@pytest.mark.parametrize(
    ("examples", "epochs"), [(10, 10), (33, 3), (34, 3), (4, 25), (100, 3), (8_333, 3), (8_334, 2), (30_000, 1)]
)
def test_epochs_for_auto(examples: int, epochs: int) -> None:
    assert auto_epochs(examples) == epochs


@given(st.integers(1, 10**7))
def test_auto_is_within_what_the_api_allows(examples: int) -> None:
    assert 1 <= auto_epochs(examples) <= 50
    assert 1 <= auto_batch_size(examples) <= 16


def test_hyperparameters_of_the_method_override_top_level_ones() -> None:
    new = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "learning_rate_multiplier": 0.5}}}
    spec = ask({"method": new, "hyperparameters": {"n_epochs": 2, "batch_size": 3}}).job_spec()
    assert (spec.training.epochs, spec.training.batch_size) == (5, 3)
    assert spec.training.learning_rate == pytest.approx(1e-4)  # half of LoRA's


def test_sections_override_hyperparameters_and_defaults() -> None:
    resolved = ask(
        {"training": {"epochs": 7, "lora": {"rank": 4}}, "lora_rank": 8, "search": {"trials": 5}, "priority": 3},
        defaults={"training": {"epochs": 9, "precision": "fp32"}, "compute": {"workers": 2}},
    )
    spec = resolved.job_spec()
    assert (spec.training.epochs, spec.training.lora.rank, spec.training.lora.alpha) == (7, 4, 16)
    assert (spec.training.precision, spec.compute.workers, spec.priority) == ("fp32", 2, 3)
    assert spec.search is not None
    assert spec.search.trials == 5
    assert resolved.hyperparameters["n_epochs"] == 7


def test_search_is_a_section_or_a_switch() -> None:
    assert ask({"search": True}).job_spec().search is not None
    assert ask({"search": {}}).job_spec().search is not None
    assert ask({"search": False}).job_spec().search is None


def test_a_method_by_its_name() -> None:
    spec = ask({"method": "full"}).job_spec()
    assert spec.training.method == "full"
    assert spec.training.learning_rate is None


def test_max_tokens_is_at_least_the_longest_row() -> None:
    assert ask({}, training=file_of(report={"longest_tokens": 90})).job_spec().data.max_tokens == 1024
    spec = ask({}, training=file_of(report={"longest_tokens": 3000})).job_spec()
    assert (spec.data.max_tokens, spec.training.micro_batch_tokens) == (3000, 3000)


def test_all_invalid_fields_are_reported_at_once() -> None:
    body = {
        "model": "tinny", "training_file": "file-2", "validation_file": "file-3",
        "method": {"type": "dpo"}, "metadata": {"k" * 65: "v", "w": "v" * 513}, "data": {"train": "/etc/passwd"},
    }  # fmt: skip
    error = refusal_of(body, training=file_of(purpose="batch"), validation=file_of(purpose="evals"))
    params = [detail["param"] for detail in error.details]
    for param in ("method.type", "metadata", "metadata.w", "model", "training_file", "validation_file", "data.train"):
        assert param in params, param
    assert error.param == "method.type"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"training": {"epoch": 3}}, "training.epoch", "did you mean 'epochs'"),
        ({"training": {"learning_rate": -1}, "hyperparameters": MULTIPLIED}, "training.learning_rate", "greater"),
        ({"search": {"space": {"learning_rat": [1]}}}, "search.space.learning_rat", "did you mean"),
        ({"search": {"space": {"base_model": ["tiny", "other"]}}}, "search.space.base_model", "'other'"),
        ({"serving": {"max_model_len": 1}}, "serving.max_model_len", "64"),
        ({"data": {"max_tokens": "long"}}, "data.max_tokens", "whole number"),
        ({"task": "text_classification"}, "model", "does not support text_classification"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named(body: dict[str, Any], param: str, words: str) -> None:
    error = refusal_of(body)
    assert error.param == param
    assert words in error.message


WANDB = {"type": "wandb", "wandb": {"project": "p", "name": "mine", "entity": "us", "tags": ["a", "b"]}}


def test_an_integration_with_wandb_is_the_jobs_tracking() -> None:
    defaults = {"tracking": {"tensorboard": False, "wandb": {"project": "q", "base_url": "https://wandb.example"}}}
    resolved = ask({"integrations": [WANDB]}, offers_wandb=True, defaults=defaults)
    tracking = resolved.job_spec().tracking
    assert tracking.wandb is not None
    assert tracking.wandb.model_dump() == {
        "project": "p", "name": "mine", "entity": "us", "tags": ("a", "b"), "mode": "online",
        "base_url": "https://wandb.example",
    }  # fmt: skip
    assert (tracking.tensorboard, tracking.mlflow) == (False, None)
    assert resolved.integrations == [WANDB]
    assert ask({}, offers_wandb=True).integrations is None
    assert ask({}).job_spec().tracking.wandb is None


def test_an_operators_entity_wins_over_a_requests() -> None:
    defaults = {"tracking": {"wandb": {"project": "q", "entity": "operators"}}}
    wandb = ask({"integrations": [WANDB]}, offers_wandb=True, defaults=defaults).job_spec().tracking.wandb
    assert wandb is not None
    assert (wandb.project, wandb.entity) == ("p", "operators")


def test_an_endpoint_without_a_key_refuses_integrations_and_none_takes_two() -> None:
    error = refusal_of({"integrations": [WANDB]})
    assert (error.param, "has not turned it on (KITAE_WANDB)" in error.message) == ("integrations", True)
    error = refusal_of({"integrations": [WANDB, WANDB]}, offers_wandb=True)
    assert (error.param, error.message) == ("integrations", "integrations: it has 2 integrations; at most 1")


def test_fewer_than_ten_rows_are_refused() -> None:
    assert "at least 10" in refusal_of({}, training=file_of(9)).message
    assert ask({}, training=file_of(10)).job_spec().training.epochs == 10


def test_rows_longer_than_the_model_are_named_unless_they_are_dropped_or_truncated() -> None:
    long = file_of(report={"model": "tiny", "longest_tokens": 9000, "too_long": (3, 8)})
    assert "maximum of 4096 tokens" in refusal_of({}, training=long).message
    spec = ask({"data": {"too_long": "drop"}}, training=long).job_spec()
    assert (spec.data.max_tokens, spec.data.too_long) == (4096, "drop")


def test_merging_keeps_values_of_either_document() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}


def test_a_job_that_asks_for_more_than_the_engine_has_is_a_400() -> None:
    """The engine of a base is shared by all teams: nothing is trained that it could not serve."""
    sections = {"serving": {"max_model_len": 65536}, "training": {"method": "lora", "lora": {"rank": 256}}}
    refused = refusal_of(sections)
    assert [each["param"] for each in refused.details] == ["serving.max_model_len", "training.lora.rank"]


def test_a_job_for_another_team_says_whose_files_it_uses() -> None:
    refused = refusal_of({"team": "a", "validation_file": "file-2"})
    assert refused.param == "validation_file"
    assert "'file-2' does not exist in team a: files belong to the team whose key uploaded them" in refused.message
    assert refusal_of({"validation_file": "file-2"}).message.endswith("the file 'file-2' does not exist")


def test_columns_that_the_upload_named_are_the_jobs() -> None:
    mapping = {"prompt": "質問", "completion": "回答"}
    named = file_of(report={"columns": mapping})
    assert ask({}, training=named).job_spec().data.columns == mapping
    assert ask({}).job_spec().data.columns == {}
    assert ask({"data": {"columns": {"prompt": "Q"}}}, training=named).job_spec().data.columns == {"prompt": "Q"}
    refused = refusal_of({"validation_file": "file-2"}, training=named, validation=file_of(id="file-2"))
    assert (refused.param, "other columns" in refused.message) == ("validation_file", True)
