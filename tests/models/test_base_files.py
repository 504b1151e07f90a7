"""A base that cannot be trained or served is refused before anything of it is stored, with the reason and the fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from ray_jobs.errors import ModelError
from ray_jobs.models import bases
from ray_jobs.registry import owners
from ray_jobs.storage import Store
from tests.models.tiny_models import save_causal, save_encoder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tmp_path_factory.mktemp("good"))


@pytest.fixture
def base(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "base"))


def change(path: Path, **fields: Any) -> None:
    document = json.loads(path.read_text())
    document.update(fields)
    path.write_text(json.dumps(document))


def sharded(base: Path) -> dict[str, str]:
    """Save the weights as two shards with an index."""
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(weights)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name] for name in names if places[name] == file}, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_shard(base: Path) -> None:
    sharded(base)
    (base / "model-00002-of-00002.safetensors").unlink()


def drop_index(base: Path) -> None:
    sharded(base)
    (base / "model.safetensors.index.json").unlink()


def name_absent_weight(base: Path) -> None:
    places = sharded(base) | {"model.layers.9.w": "model-00001-of-00002.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def point(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def no_tokenizer(base: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()


def more_tokens(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|new|>", "<|newer|>"])
    tokenizer.save_pretrained(base)


def pack(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name.replace(".weight", ".qweight")] = weights.pop(name)
    save_file(weights, base / "model.safetensors", {"format": "pt"})


def only_pickles(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def adapter(base: Path) -> None:
    (base / "config.json").rename(base / "adapter_config.json")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda base: truncate(base / "model.safetensors"),
        r"model.safetensors is truncated .* download it again",
    ),
    "empty weights": (lambda base: (base / "model.safetensors").write_bytes(b""), "model.safetensors is truncated"),
    "not weights": (lambda base: (base / "model.safetensors").write_text("<html>"), "model.safetensors is truncated"),
    "pointer": (lambda base: point(base / "model.safetensors"), "model.safetensors is a git-lfs pointer.*git lfs pull"),
    "pointer to the tokenizer": (lambda base: point(base / "tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
    "missing shard": (drop_shard, "model-00002-of-00002.safetensors is missing, and .* names it"),
    "missing index": (drop_index, r"model.safetensors.index.json is missing"),
    "missing weight": (name_absent_weight, "1 weights are not in the files .*: model.layers.9.w"),
    "other name": (
        lambda base: (base / "model.safetensors").rename(base / "consolidated.safetensors"),
        "not in model.safetensors",
    ),
    "pickles": (only_pickles, "no .safetensors weights; pickled weights"),
    "broken config": (
        lambda base: (base / "config.json").write_text('{"architectures": ['),
        r"config.json is not JSON .*line 1",
    ),
    "config of bytes": (lambda base: (base / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is not UTF-8"),
    "config of a list": (lambda base: (base / "config.json").write_text("[]"), "config.json holds no object"),
    "broken tokenizer config": (
        lambda base: (base / "tokenizer_config.json").write_text("{"),
        "tokenizer_config.json is not JSON",
    ),
    "no config": (lambda base: (base / "config.json").unlink(), "it has no config.json"),
    "adapter": (adapter, "it is a LoRA adapter, without its base's weights"),
    "gptq": (
        lambda base: change(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised with gptq",
    ),
    "awq": (
        lambda base: change(base / "config.json", quantization_config={"quant_method": "awq"}),
        "quantised with awq",
    ),
    "gptq in a file of its own": (lambda base: (base / "quantize_config.json").write_text("{}"), "quantised with gptq"),
    "packed weights": (pack, "quantised with an unknown method"),
    "no tokenizer": (no_tokenizer, "it has no tokenizer"),
    "broken tokenizer": (lambda base: (base / "tokenizer.json").write_text('{"model": 1}'), "tokenizer"),
    "no chat template": (lambda base: (base / "chat_template.jinja").unlink(), "has no chat template"),
    "tokenizer larger than the embedding": (
        more_tokens,
        r"its tokenizer has \d+ ids and its embedding \d+ rows, so 2 tokens.*<\|new\|>",
    ),
    "own code": (
        lambda base: change(base / "config.json", model_type="foo", auto_map={"AutoModel": "m.M"}),
        "own code",
    ),
    "unknown type": (
        lambda base: change(base / "config.json", model_type="foo"),
        "'foo' is not one of transformers' models",
    ),
    "unknown to vLLM": (
        lambda base: change(base / "config.json", architectures=["FooForCausalLM"]),
        "vLLM does not serve FooForCausalLM",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_base_that_cannot_be_served_is_refused_before_anything_is_stored(store: Store, base: Path, what: str) -> None:
    spoil, reason = BROKEN[what]
    spoil(base)
    with pytest.raises(ModelError, match=f"(?s){reason}") as refused:
        bases.add(store, str(base), "tiny")
    assert str(refused.value).startswith(str(base))  # as given, also where it was downloaded
    assert not list(store.list())


def test_all_that_is_wrong_is_said_at_once(store: Store, base: Path) -> None:
    truncate(base / "model.safetensors")
    no_tokenizer(base)
    change(base / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError) as refused:
        bases.add(store, str(base), "tiny")
    assert len(refused.value.details) == 3


def test_what_can_be_served_is_added(store: Store, base: Path, tmp_path: Path) -> None:
    whole = bases.add(store, str(base), "whole")
    sharded(base)
    assert bases.add(store, str(base), "in-shards").digest != whole.digest
    (tmp_path / "encoder").mkdir()
    assert bases.add(store, str(save_encoder(tmp_path / "encoder"))).name == "encoder"


def test_a_name_that_no_base_can_have_is_refused_before_anything_is_stored(store: Store, base: Path) -> None:
    with pytest.raises(ModelError, match="cannot name a base"):
        bases.add(store, str(base), "Not A Name")
    owners.claim(store, "greeter", owners.Claim(team="blue"))
    stored = [info.key for info in store.list()]
    with pytest.raises(ModelError, match="a model of team 'blue'"):
        bases.add(store, str(base), "greeter")
    assert [info.key for info in store.list()] == stored
