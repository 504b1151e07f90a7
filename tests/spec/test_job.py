"""The job file: validation, its messages, and the digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import SpecError
from ray_jobs.spec import (
    ComputeSection,
    EvaluationSection,
    ServingSection,
    SpecSection,
    json_schema,
    load_spec,
    parse_spec,
)
from ray_jobs.spec.identity import one_spelling
from ray_jobs.spec.sections import ParitySection

GOOD: dict[str, Any] = {"name": "a", "task": "chat", "base_model": "org/base", "data": {"train": "rows.jsonl"}}


def problems(**fields: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec({**GOOD, **fields})
    return list(caught.value.details)


def test_all_problems_are_reported_together_with_the_nearest_name() -> None:
    found = problems(training={"lerning_rate": 1, "epochs": 0}, nme="b", compute={"zero_stage": 7})
    assert len(found) == 4
    assert any("training.lerning_rate" in p and "'learning_rate'" in p for p in found)
    assert any("training.epochs" in p and "is 0" in p for p in found)
    assert any(p.startswith("nme") and "'name'" in p for p in found)


def test_impossible_combinations_are_reported_together() -> None:
    stage, parameters, size = problems(
        compute={"offload": "optimizer_and_parameters", "zero_stage": 1}, training={"micro_batch_tokens": 8}
    )
    assert "zero_stage 2 or 3" in stage
    assert "zero_stage: 3" in parameters
    assert "micro_batch_tokens is 8" in size


LOG = {"min": 1e-5, "max": 1e-3, "scale": "log"}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"lerning_rate": [1e-4]}}, "search.space.lerning_rate: no field of training has this name; did you"),
        ({"space": {"lora.rank": {"min": 8, "max": 4}}}, "search.space.lora.rank: the range from 8 to 4 is empty"),
        ({"space": {"lora.rank": []}}, "search.space.lora.rank: has 0 entries; at least 1"),
        ({"space": {"learning_rate": LOG | {"min": 0}}}, "a log range cannot begin at 0"),
        ({"space": {"epochs": [1, 0]}}, "search.space.epochs: is 0; it must be at least 1"),
        (
            {"space": {"lora.rank": {"min": 1, "max": 9000}}},
            "search.space.lora.rank: is 9000.0; it must be at most 512",
        ),
        ({"space": {"method": ["lora", "lore"]}}, "search.space.method: is 'lore'; it must be 'full', 'lora'"),
        ({"space": {}}, "search: space is empty"),
        ({"metric": "accuracy"}, "search.metric: chat has no 'accuracy'; it has loss and token_accuracy"),
        ({"budget": {"money": 5}}, "search.budget: money needs price_per_hour"),
        ({"algorithm": "grid", "space": {"learning_rate": LOG}}, "grid needs lists of values, and learning_rate has"),
        ({"algorithm": "grid"}, "grid needs space"),
        ({"trials": 0}, "search.trials: is 0; it must be at least 1"),
    ],
)
def test_an_impossible_search_is_refused(search: dict[str, Any], message: str) -> None:
    (found,) = problems(search=search)
    assert message in found


def test_with_values_sets_nested_fields() -> None:
    space = {"lora.rank": {"min": 4, "max": 64}, "base_model": ["org/base", "org/other"], "learning_rate": LOG}
    spec = parse_spec({**GOOD, "search": {"space": space}})
    trial = spec.with_values({"lora.rank": 32.0, "base_model": "org/other", "learning_rate": 3e-4})
    assert (trial.training.lora.rank, trial.training.learning_rate, trial.base_model) == (32, 3e-4, "org/other")
    assert trial.search is None
    assert trial.training.epochs == spec.training.epochs


def test_compute_is_no_part_of_the_job_id() -> None:
    one = parse_spec(GOOD)
    assert one.job_id == parse_spec({**GOOD, "compute": {"workers": 4}}).job_id
    assert one.job_id != parse_spec({**GOOD, "training": {"epochs": 7}}).job_id
    assert one.job_id == parse_spec({**GOOD, "training": {"epochs": 3}}).job_id  # the default, written out


def test_the_digest_depends_on_team_and_suffix_but_not_on_priority() -> None:
    one = parse_spec(GOOD)
    assert one.digest() == "3d8944cc100caa74"  # computed before these fields existed: a stored job keeps its id
    assert one.digest() == parse_spec({**GOOD, "team": None, "suffix": None, "priority": 0}).digest()
    assert one.digest() == parse_spec({**GOOD, "priority": 7}).digest()
    assert one.digest() == parse_spec({**GOOD, "training": {"publish_checkpoints": False}}).digest()
    others: list[dict[str, Any]] = [
        {"team": "a"},
        {"team": "b"},
        {"suffix": "A model"},
        {"training": {"publish_checkpoints": True}},
    ]
    assert len({one.digest(), *(parse_spec({**GOOD, **other}).digest() for other in others)}) == 5


@pytest.mark.parametrize(
    "other",
    [
        {"evaluation": {"must_beat_base": False, "parity": {"prompts": 3}}},
        {"serving": {"max_model_len": 512}},
        {"suffix": "for the shop"},
        {"compute": {"workers": 4}},
        {"priority": 5},
        {"tracking": {"tensorboard": False}},
        {"training": {"checkpoints_to_keep": 5, "publish_checkpoints": True}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_follows_the_training_is_no_part_of_its_identity(other: dict[str, Any]) -> None:
    one, changed = parse_spec(GOOD), parse_spec({**GOOD, **other})
    assert one.job_id == changed.job_id
    assert one.identity != parse_spec({**GOOD, **other, "training": {"epochs": 7}}).identity


def test_a_path_has_one_identity_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, linked = tmp_path / "here", tmp_path / "linked"
    (here / "sub").mkdir(parents=True)
    linked.symlink_to(here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    ways = ["rows.csv", "./rows.csv", "sub/../rows.csv", f"{here}/rows.csv", f"{here}//rows.csv", "~/rows.csv"]
    ways += [f"{linked}/rows.csv", "../here/rows.csv"]
    assert {one_spelling(way) for way in ways} == {"rows.csv"}
    assert {one_spelling(way) for way in ("../rows", f"{tmp_path}/rows/", "sub/../../rows")} == {f"{tmp_path}/rows"}
    assert {one_spelling(way) for way in ("s3://bucket/rows", "s3://bucket/rows/")} == {"s3://bucket/rows"}
    assert [one_spelling(way) for way in ("", "org/base", "./org/base/")] == ["", "org/base", "org/base"]

    def identity(path: str) -> str:
        rows = [{"source": path, "max_rows": 5}, path]
        data = {"train": rows, "held_out": path, "test": path, "clean": {"drop_rows": path}}
        space = {"base_model": [path, "org/other"]}
        return parse_spec({**GOOD, "base_model": path, "data": data, "search": {"space": space}}).identity

    assert len({identity(way) for way in ways}) == 1
    assert identity("other.csv") != identity("rows.csv")


@pytest.mark.parametrize("field", [{"team": "Team A"}, {"priority": 101}, {"suffix": ""}, {"suffix": "x" * 65}])
def test_an_invalid_team_priority_or_suffix_is_refused(field: dict[str, Any]) -> None:
    (problem,) = problems(**field)
    assert problem.startswith(f"{next(iter(field))}: ")


def test_a_stored_spec_of_another_version_is_read() -> None:
    stored = {**GOOD, "training": {"epochs": 2, "gone": 1}, "gone": {"a": 1}}
    assert parse_spec(stored, stored=True).training.epochs == 2
    assert any("gone" in problem for problem in problems(gone={"a": 1}))


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "a list"), ("a: [", "not readable YAML"), (None, "no job file"), ("", "NoneType")]
)
def test_a_file_that_is_not_a_job_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=message):
        load_spec(path)


def test_the_schema_describes_every_field() -> None:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for name, field in section["properties"].items():
            assert field.get("description") or "$ref" in field or "enum" in field, name


def test_a_spec_is_frozen() -> None:
    spec = parse_spec(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "b"  # type: ignore[misc]


def test_tracking_is_no_part_of_a_jobs_id() -> None:
    plain = parse_spec(GOOD)
    tracking = {"tensorboard": False, "mlflow": {"tracking_uri": "sqlite:///m.db"}, "wandb": {"project": "p"}}
    tracked = parse_spec({**GOOD, "tracking": tracking})
    assert tracked.job_id == plain.job_id
    assert tracked.with_values({"lora.rank": 4}).tracking == tracked.tracking
    assert plain.tracking.model_dump() == {"tensorboard": True, "mlflow": None, "wandb": None}


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter2@mlflow.example",
        "https://hunter2@mlflow.example",
        "https://mlflow.example/?token=hunter2",
        "https://mlflow.example/#hunter2",
        r"https:\\me:hunter2@mlflow.example",
        "https:/me:hunter2@mlflow.example",
        "//me:hunter2@mlflow.example",
        "me:hunter2@mlflow.example",
        "hunter2",
        "file:///hunter2",
        "http://[hunter2",
        "https://me:hunter2@\u2100/x",
        "postgresql://me:hunter2@db.example/mlflow",
        "postgresql://me:hun/hunter2@db.example/mlflow",
        "postgresql://me@db.example/mlflow?sslpassword=hunter2",
        "mssql+pyodbc:///?odbc_connect=PWD%3Dhunter2",
        "hunter2" * 200,
        ["https://me:hunter2@mlflow.example"],
    ],
)
def test_a_uri_that_may_hold_credentials_is_refused_without_repeating_it(uri: Any) -> None:
    sections: list[dict[str, Any]] = [
        {"mlflow": {"tracking_uri": uri}}, {"wandb": {"project": "p", "base_url": uri}}, {"mlflow": uri},
    ]  # fmt: skip
    for tracking in sections:
        with pytest.raises(SpecError) as caught:
            parse_spec({**GOOD, "tracking": tracking})
        assert "hunter2" not in f"{caught.value.details} {caught.value.__cause__}"
    if isinstance(uri, str) and len(uri) < 1024:
        (problem,) = problems(tracking=sections[0])
        assert "without a password" in problem
        assert "MLFLOW_TRACKING_PASSWORD" in problem


@pytest.mark.parametrize(
    "uri",
    ["https://mlflow.example:5000/a", "sqlite:////data/m.db", "sqlite://", "postgresql+psycopg://me@db:5432/mlflow"],
)
def test_a_uri_without_credentials_is_accepted(uri: str) -> None:
    parse_spec({**GOOD, "tracking": {"mlflow": {"tracking_uri": uri}}})


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ({"mlflow": {}}, "tracking.mlflow.tracking_uri: required"),
        ({"wandb": {"project": "p", "mode": "disabled"}}, "tracking.wandb.mode: must be 'online' or 'offline'"),
        ({"wandb": {"project": "p", "api_key": "k"}}, "tracking.wandb.api_key: unknown field"),
        ({"mflow": {}}, "tracking.mflow: unknown field; did you mean 'mlflow'"),
        (
            {"mlflow": {"tracking_url": "x", "tracking_uri": "sqlite://"}},
            "tracking.mlflow.tracking_url: unknown field; did you mean 'tracking_uri'",
        ),
        (
            {"wandb": {"project": "p", "base_url": "sqlite://"}},
            "tracking.wandb.base_url: it must be an http(s) address",
        ),
    ],
)
def test_a_wrong_tracking_section_is_refused(tracking: dict[str, Any], message: str) -> None:
    (problem,) = problems(tracking=tracking)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 1e-4}, "learning_rate: unknown field; write training: {learning_rate: …}"),
        ({"training.learning_rate": 1e-4}, "training.learning_rate: unknown field; write training: {learning_rate: …}"),
        ({"rank": 8}, "rank: unknown field; write training: {lora: {rank: …}}"),
        ({"training": {"workers": 2}}, "training.workers: unknown field; write compute: {workers: …}"),
        ({"data": "rows.csv"}, "data: is 'rows.csv'; it must be an object, such as data: {train: …}"),
        ({"search": {"budget": 3}}, "search.budget: is 3; it must be an object, such as budget: {hours: …}"),
        ({"name": "鍛えモデル"}, "name: is '鍛えモデル'; it must be lower-case letters, digits, "),
    ],
)
def test_a_field_in_the_wrong_place_names_the_right_one(fields: dict[str, Any], message: str) -> None:
    (problem,) = problems(**fields)
    assert problem.startswith(message)


@pytest.mark.parametrize("section", [ComputeSection, ServingSection, EvaluationSection, ParitySection])
def test_every_number_that_costs_a_machine_something_has_an_upper_bound(section: type[SpecSection]) -> None:
    for name, schema in section.model_json_schema()["properties"].items():
        for kind in schema.get("anyOf", [schema]):
            if kind.get("type") in ("integer", "number") and "enum" not in kind:
                assert {"maximum", "exclusiveMaximum"} & kind.keys(), name
