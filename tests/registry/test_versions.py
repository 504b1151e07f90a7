"""The registry: claimed numbers, publishable files, aliases, and the model card."""

from __future__ import annotations

import json
import math
import pickle
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from ray_jobs import registry
from ray_jobs.errors import ConflictError, CorruptObject, RegistryError
from ray_jobs.registry.model import Lineage, ModelVersion, base_name
from ray_jobs.storage import Workspace
from tests.builders import make_spec

T = TypeVar("T")


def safetensors(values: list[float]) -> bytes:
    """A file of the safetensors format with one float32 tensor."""
    size = 4 * len(values)
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values)


def weights(directory: Path, *, value: float = 1.0, adapter: bool = True) -> Path:
    directory.mkdir(parents=True)
    if adapter:
        (directory / "adapter_config.json").write_text('{"r": 8}')
    (directory / "adapter_model.safetensors").write_bytes(safetensors([value] * 16))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def make_lineage(**changes: object) -> Lineage:
    lineage = Lineage(
        dataset_digest="d" * 16,
        base_digest="b" * 16,
        spec=make_spec(base_model="org/Small-Model.gguf"),
        code_version="0.1.0",
        job_id="greeter-1",
        metrics={"held_out_loss": 1.5, "base_held_out_loss": 2.25},
    )
    return replace(lineage, **changes)  # type: ignore[arg-type]  # any field


def register(store: Workspace, directory: Path, digest: str = "x", **changes: object) -> ModelVersion:
    return registry.register(store, "greeter", directory, lineage=make_lineage(**changes), lineage_digest=digest)


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_version_round_trips(store: Workspace, tmp_path: Path) -> None:
    made = register(store, weights(tmp_path / "w"))
    assert (made.name, made.version, made.task, made.kind) == ("greeter", "1", "chat", "adapter")
    assert (made.base_name, made.base_digest) == ("small-model", "b" * 16)
    assert registry.get(store, "greeter@1") == made
    assert registry.versions(store, "greeter") == [made]
    assert registry.names(store) == ["greeter"]
    tree = store.fetch(made.key)
    assert (tree / "adapter_model.safetensors").read_bytes() == safetensors([1.0] * 16)
    json.dumps(made.as_json())


@pytest.mark.parametrize(
    ("base_model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("s3://bucket/bases/Qwen2.5_7B/", "qwen2.5_7b"),
        ("models/My Model.Q4.GGUF", "my-model.q4"),
        ("基", "base"),
    ],
)
def test_base_name(base_model: str, name: str) -> None:
    assert base_name(base_model) == name


def test_the_kind_of_a_version(store: Workspace, tmp_path: Path) -> None:
    full = weights(tmp_path / "full", adapter=False)
    assert register(store, full, "full").kind == "full"
    classifier = make_spec(task="text_classification")
    made = register(store, full, "head", spec=classifier, labels=("悪い", "良い"))
    assert (made.kind, made.labels) == ("predictor", ("悪い", "良い"))


def test_the_same_lineage_is_the_same_version(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    first = register(store, directory)
    assert register(store, directory, created_at="2030-01-01T00:00:00+00:00") == first
    assert register(store, directory, "another").version == "2"
    assert [version.version for version in registry.versions(store, "greeter")] == ["1", "2"]


def test_an_interrupted_registration_resumes_under_its_number(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = weights(tmp_path / "w")

    def lost(*_: object) -> None:
        raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "commit", lost)
        with pytest.raises(ConnectionAbortedError):
            register(store, directory)
    assert registry.versions(store, "greeter") == []
    assert registry.names(store) == []
    with pytest.raises(RegistryError):
        registry.get(store, "greeter@1")
    assert register(store, directory, "another").version == "2"
    assert register(store, directory).version == "1"


def test_sixteen_concurrent_registrations_get_sixteen_numbers(store: Workspace, tmp_path: Path) -> None:
    directories = [weights(tmp_path / str(number), value=number) for number in range(16)]
    made = at_once(16, lambda number: register(store, directories[number], f"digest {number}"))
    assert sorted(int(version.version) for version in made) == list(range(1, 17))
    for number, version in enumerate(made):
        assert (store.fetch(version.key) / "adapter_model.safetensors").read_bytes() == safetensors([number] * 16)


def test_eight_registrations_of_one_lineage_make_one_version(store: Workspace, tmp_path: Path) -> None:
    directories = [weights(tmp_path / str(number)) for number in range(8)]
    made = at_once(8, lambda number: register(store, directories[number], "same", created_at=f"202{number}-01-01"))
    assert {version.version for version in made} == {"1"}
    assert len(set(map(repr, made))) == 1
    assert store.fetch("models/greeter/1").is_dir()


def test_versions_are_ordered_by_number(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    for number in range(10):
        register(store, directory, f"digest {number}")
    assert registry.get(store, "greeter").version == "10"


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "a/training_args.bin", "run.py", "LICENSE"]
)
def test_only_weights_and_text_are_published(store: Workspace, tmp_path: Path, name: str) -> None:
    directory = weights(tmp_path / "w")
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RegistryError, match="safetensors") as caught:
        register(store, directory)
    assert [detail.partition(":")[0] for detail in caught.value.details] == [name]
    assert list(store.list()) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors", "vocab.txt"])
def test_a_renamed_pickle_is_refused(store: Workspace, tmp_path: Path, name: str) -> None:
    directory = weights(tmp_path / "w")
    (directory / name).write_bytes(pickle.dumps({"a": [1.0] * 100}))
    with pytest.raises(RegistryError, match=name):
        register(store, directory)


def test_all_refused_files_are_named_together(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    whole = safetensors([1.0] * 100)
    (directory / "cut.safetensors").write_bytes(whole[:-1])
    (directory / "long.safetensors").write_bytes(whole + b"!")
    (directory / "empty.safetensors").write_bytes(b"")
    (directory / "optimizer.pt").write_bytes(b"")
    with pytest.raises(RegistryError) as caught:
        register(store, directory)
    assert len(caught.value.details) == 4


def test_a_directory_without_weights_is_refused(store: Workspace, tmp_path: Path) -> None:
    directory = tmp_path / "w"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match="no weights"):
        register(store, directory)
    with pytest.raises(RegistryError, match="no directory"):
        register(store, tmp_path / "absent")


def test_a_metric_that_is_not_a_number_is_refused(store: Workspace, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="held_out_loss is nan"):
        register(store, weights(tmp_path / "w"), metrics={"held_out_loss": math.nan})
    assert list(store.list()) == []


@pytest.mark.parametrize("name", ["Greeter", "", "a/b", "-a", "a" * 49, "..", "a b", "名"])
def test_names_that_cannot_be_keys_are_refused(store: Workspace, tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="cannot be a model's name"):
        registry.register(store, name, weights(tmp_path / "w"), lineage=make_lineage(), lineage_digest="x")


def test_changed_weights_are_not_fetched(store: Workspace, tmp_path: Path) -> None:
    made = register(store, weights(tmp_path / "w"))
    store.put(f"{made.key}/adapter_model.safetensors", safetensors([2.0] * 16))
    with pytest.raises(CorruptObject, match="adapter_model"):
        store.fetch(made.key)


# ---- aliases ------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_its_champion_else_the_newest(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    for digest in "abc":
        register(store, directory, digest)
    assert registry.get(store, "greeter").version == "3"
    registry.set_alias(store, "greeter", "champion", "1")
    registry.set_alias(store, "greeter", "trial", "2")
    assert registry.get(store, "greeter").version == "1"
    assert registry.get(store, "greeter@champion").version == "1"
    assert registry.get(store, "greeter@trial").version == "2"
    assert registry.aliases(store, "greeter") == {"champion": "1", "trial": "2"}
    registry.delete_alias(store, "greeter", "champion")
    assert registry.get(store, "greeter").version == "3"


def test_one_of_many_conditional_moves_of_an_alias_wins(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    for number in range(8):
        register(store, directory, str(number))

    def move(expected: str | None) -> list[str]:
        def claim(number: int) -> str | None:
            try:
                registry.set_alias(store, "greeter", "champion", str(number + 1), expected=expected)
            except ConflictError:
                return None
            return str(number + 1)

        return [won for won in at_once(8, claim) if won is not None]

    (first,) = move(None)
    assert registry.aliases(store, "greeter") == {"champion": first}
    # A move to the present version changes nothing and may succeed.
    winners = [won for won in move(first) if won != first]
    assert len(winners) == 1
    assert registry.aliases(store, "greeter") == {"champion": winners[0]}
    assert store.get_json("aliases/greeter/champion.json")["previous"] == first


@pytest.mark.parametrize(
    ("alias", "version", "message"),
    [
        ("champion", "9", "has no '9'"),
        ("3", "1", "cannot be a number"),
        ("Up", "1", "lower-case"),
        ("a", "b", "number"),
    ],
)
def test_invalid_aliases_are_refused(store: Workspace, tmp_path: Path, alias: str, version: str, message: str) -> None:
    register(store, weights(tmp_path / "w"))
    with pytest.raises(RegistryError, match=message):
        registry.set_alias(store, "greeter", alias, version)
    assert registry.aliases(store, "greeter") == {}


def test_unknown_models_versions_and_aliases_name_the_known_ones(store: Workspace, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no model 'greeter'"):
        registry.get(store, "greeter")
    register(store, weights(tmp_path / "w"))
    registry.set_alias(store, "greeter", "champion", "1")
    with pytest.raises(RegistryError, match="did you mean 'greeter'"):
        registry.get(store, "greter")
    with pytest.raises(RegistryError, match="has no '2'; it has: 1, champion"):
        registry.get(store, "greeter@2")
    with pytest.raises(RegistryError, match="has no 'champoin'"):
        registry.get(store, "greeter@champoin")
    with pytest.raises(RegistryError, match="names no version"):
        registry.get(store, "greeter@")


# ---- deleting -----------------------------------------------------------------------------------------------------


def test_the_number_of_a_deleted_version_is_not_reused(store: Workspace, tmp_path: Path) -> None:
    directory = weights(tmp_path / "w")
    register(store, directory, "a")
    register(store, directory, "b")
    registry.delete_version(store, "greeter", "2")
    assert [version.version for version in registry.versions(store, "greeter")] == ["1"]
    assert [info.key for info in store.list("models/greeter/2")] == []
    assert register(store, directory, "b").version == "3"


@pytest.mark.parametrize("name", ["greeter/", "/greeter", "greeter//", "", "."])
def test_a_model_is_found_by_its_exact_name_alone(store: Workspace, tmp_path: Path, name: str) -> None:
    """Some stores merge slashes, so a name with one more would reach another model's keys."""
    version = register(store, weights(tmp_path / "w")).version
    registry.set_alias(store, "greeter", "champion", version)
    assert registry.versions(store, name) == []
    for ref in (name, f"{name}@{version}", f"{name}@champion"):
        with pytest.raises(RegistryError, match="no model"):
            registry.get(store, ref)


def test_the_target_of_an_alias_is_not_deleted(store: Workspace, tmp_path: Path) -> None:
    register(store, weights(tmp_path / "w"))
    registry.set_alias(store, "greeter", "champion", "1")
    with pytest.raises(RegistryError, match="champion"):
        registry.delete_version(store, "greeter", "1")
    assert registry.get(store, "greeter").version == "1"


# ---- the card -----------------------------------------------------------------------------------------------------


def test_the_model_card(store: Workspace, tmp_path: Path) -> None:
    labels = ("spam | ham", "`ok`")
    spec = make_spec(task="text_classification", base_model='org/a: "b"')
    made = register(store, weights(tmp_path / "w"), spec=spec, labels=labels)
    card = (store.fetch(made.key) / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": 'org/a: "b"',
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["kitae", "lora"],
    }
    assert "| held out loss | 1.5 | 2.25 |" in body
    assert "base held out loss" not in body
    assert "0. `spam | ham`" in body
    for origin in ("d" * 16, "b" * 16, "greeter-1", "0.1.0", made.lineage.created_at):
        assert f"`{origin}`" in body
    job = json.loads(body.partition("````json\n")[2].partition("\n````")[0])
    assert job["data"] == {"train": "s3://bucket/rows.jsonl"}
    assert Lineage(**{**vars(made.lineage), "spec": make_spec(**{**job, "name": "greeter"})}) == made.lineage


def test_claims_of_deleted_numbers_go_and_no_number_is_used_twice(store: Workspace, tmp_path: Path) -> None:
    for number in range(1, 6):
        register(store, weights(tmp_path / str(number), value=number), f"lineage-{number}")
    for number in (2, 3, 5):
        registry.delete_version(store, "greeter", str(number))
    assert register(store, weights(tmp_path / "6", value=6), "lineage-6").version == "6"
    claims = [info.key.rpartition("/")[2] for info in store.list("models/greeter/claims")]
    assert claims == ["1.json", "4.json", "5.json", "6.json"], "the highest number keeps its claim"
    assert register(store, tmp_path / "3", "lineage-3").version == "7"
