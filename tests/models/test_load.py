"""Loading bases: what is refused, what is trained, what is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ray_jobs import models
from ray_jobs.errors import MachineError, ModelError
from ray_jobs.models import bases, heads
from ray_jobs.spec import TrainingSection
from ray_jobs.storage import Workspace
from tests.models import tiny_models


def attach(directory: Path, task: str = "chat", **training: object) -> torch.nn.Module:
    labels = [] if task == "chat" else ["no", "yes"]
    base = models.load_base(directory, task, labels, torch.float32, seed=0)
    return models.attach(base, TrainingSection.model_validate(training), task)


def test_the_wrong_architecture_is_refused_for_the_task(tmp_path: Path) -> None:
    encoder = tiny_models.save_encoder(tmp_path / "encoder")
    causal = tiny_models.save_causal(tmp_path / "causal")
    with pytest.raises(ModelError, match=r"BertModel, and task: chat needs one that ends in ForCausalLM"):
        models.load_base(encoder, "chat", [], torch.float32, seed=0)
    with pytest.raises(ModelError, match="LlamaForCausalLM, and task: text_classification"):
        models.load_base(causal, "text_classification", ["a", "b"], torch.float32, seed=0)


def test_missing_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ModelError, match="9 weights of LlamaForCausalLM are missing"):
        models.load_base(causal, "chat", [], torch.float32, seed=0)
    (causal / "model.safetensors").rename(causal / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        models.load_base(causal, "chat", [], torch.float32, seed=0)


def test_each_method_trains_what_it_says(tmp_path: Path) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    encoder = tiny_models.save_encoder(tmp_path / "encoder")
    everything = set(models.trainable(attach(causal, method="full")))
    assert len(everything) == len(dict(attach(causal, method="full").named_parameters()))
    last_block = set(models.trainable(attach(causal, method="frozen", trainable_blocks=1)))
    assert last_block == {name for name in everything if name.startswith("model.layers.2.")}
    head = set(models.trainable(attach(encoder, "text_classification", method="frozen")))
    assert head == {f"{layer}.{part}" for layer in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")}
    assert all("lora_" in name for name in models.trainable(attach(causal, method="lora")))
    adapted = models.trainable(attach(encoder, "text_classification", method="lora"))
    assert all("lora_" in name or ".modules_to_save." in name for name in adapted)
    for part in ("classifier", "pooler"):
        assert any(f".{part}.modules_to_save." in name for name in adapted)
        assert not any(part in name and "lora_" in name for name in adapted)


def test_methods_that_do_not_fit_say_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    with pytest.raises(ModelError, match="trainable_blocks is 9, and the base model has 3"):
        attach(causal, method="frozen", trainable_blocks=9)
    # One name that fits does not hide one that does not.
    with pytest.raises(ModelError, match=r"fits no layer; the linear layers are .*q_proj"):
        attach(causal, method="lora", lora={"target_modules": ["query"]})
    # One name that fits does not hide one that does not.
    with pytest.raises(ModelError, match=r"target_modules: v_prj, out fits no layer; the linear layers are .*q_proj"):
        attach(causal, method="lora", lora={"target_modules": ["q_proj", "v_prj", "out"]})
    # The head is a layer, and gets no adapter.
    encoder = tiny_models.save_encoder(tmp_path / "encoder")
    with pytest.raises(ModelError, match=r"target_modules: classifier fits no layer"):
        attach(encoder, "text_classification", method="lora", lora={"target_modules": ["classifier"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="qlora needs a CUDA GPU"):
        models.load_base(causal, "chat", [], torch.float32, seed=0, four_bit=True)


def test_a_published_model_answers_as_the_one_in_memory(tmp_path: Path) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    tokenizer = models.load_processor(causal, "chat")
    ids = torch.tensor([[5, 6, 7, 8]])
    for method, base in (("lora", causal), ("full", None)):
        model = attach(causal, method=method)
        with torch.no_grad():
            for parameter in models.trainable(model).values():
                parameter.add_(0.05)
            model.eval()
            expected = model(input_ids=ids).logits
            published = tmp_path / method
            models.save_published(model, tokenizer, published)
            again = models.load_published(published, base, "chat", [], torch.float32)
            assert torch.equal(again(input_ids=ids).logits, expected)
        suffixes = {path.suffix for path in published.iterdir()}
        assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}


def test_a_base_is_copied_once_without_code(store: Workspace, tmp_path: Path) -> None:
    causal = tiny_models.save_causal(tmp_path / "Tiny Causal")
    (causal / "modeling_custom.py").write_text("raise SystemExit")
    (causal / "weights.bin").write_bytes(b"pickle")
    base = bases.prepare(store, str(causal), "chat")
    assert base.name == "tiny-causal"
    assert bases.prepare(store, str(causal), "chat") == base
    copied = {path.name for path in store.fetch(base.key).iterdir()}
    assert "model.safetensors" in copied
    assert copied.isdisjoint({"modeling_custom.py", "weights.bin"})


def test_a_base_from_s3_and_a_changed_source(store: Workspace, tmp_path: Path) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    local = bases.prepare(store, str(causal), "chat")
    store.upload_tree(causal, "files/causal")
    source = store.uri("files/causal")
    assert bases.prepare(store, source, "chat").digest == local.digest
    before = bases.fingerprint(store, source)
    tiny_models.save_causal(causal, seed=1)
    store.delete_tree("files/causal")
    store.upload_tree(causal, "files/causal")
    assert bases.fingerprint(store, source) != before


@pytest.mark.parametrize(
    ("source", "said"),
    [("no/such/dir/at/all", "neither an existing path"), ("s3://{bucket}/nothing", "nothing is empty")],
)
def test_a_missing_base_is_an_error(store: Workspace, source: str, said: str) -> None:
    bucket = store.uri().removeprefix("s3://").split("/")[0]
    with pytest.raises(ModelError, match=said):
        bases.fingerprint(store, source.format(bucket=bucket))


def test_an_unavailable_hub_id_says_what_to_do(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match="the hub does not provide it"):
        bases.fingerprint(store, "org/model")


def test_a_pooler_that_the_files_lack_starts_standardised(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    encoder = tiny_models.save_encoder(tmp_path / "encoder")
    ids = torch.arange(60).reshape(20, 3)

    def pooled(model: torch.nn.Module) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = model.get_submodule("bert.pooler.dense").register_forward_hook(lambda *args: seen.append(args[2]))
        with torch.no_grad():
            model.eval()(input_ids=ids)
        handle.remove()
        return seen[0]

    def start() -> tuple[bool, torch.nn.Module]:
        model = models.load_base(encoder, "text_classification", ["a", "b"], torch.float32, seed=0)
        return heads.standardise_new_pooler(model, encoder, lambda m: m(input_ids=ids)), model

    assert start()[0] is False  # the files have one: it stays unchanged
    weights = load_file(encoder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, encoder / "model.safetensors", metadata={"format": "pt"})
    standardised, model = start()
    assert standardised
    assert torch.allclose(pooled(model).mean(0), torch.zeros(32), atol=1e-3)
    assert torch.allclose(pooled(model).std(0), torch.ones(32), atol=1e-2)


def test_a_base_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal = tiny_models.save_causal(tmp_path / "causal")
    cpu = torch.device("cpu")
    models.require_memory(causal, torch.float32, cpu)
    size = (causal / "model.safetensors").stat().st_size
    free = type("Memory", (), {"available": size - 1})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(MachineError, match=r"take 0.00 GiB, and 0.00 GiB of memory are free: choose a smaller"):
        models.require_memory(causal, torch.float32, cpu)
    models.require_memory(causal, torch.bfloat16, cpu)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_head_of_a_classifier_answers_by_name_whatever_the_order_of_its_classes(tmp_path: Path, kind: str) -> None:
    directory = tiny_models.save_classifier(tmp_path / kind, ["Positive", "neutral", "negative"], kind=kind)
    labels = ["negative", "neutral", "positive"]
    assert models.has_head(directory, "text_classification", labels)
    own = models.load_base(directory, "text_classification", ["positive", "neutral", "negative"], torch.float32, seed=0)
    sorted_ = models.load_base(directory, "text_classification", labels, torch.float32, seed=0)
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        first_3, second_3 = own.train(False)(tokens).logits[0], sorted_.train(False)(tokens).logits[0]
    assert torch.equal(first_3.flip(0), second_3)
    assert sorted_.config.id2label == dict(enumerate(labels))


def test_a_head_for_other_classes_is_no_head_for_these(tmp_path: Path) -> None:
    directory = tiny_models.save_classifier(tmp_path / "bert", ["LABEL_0", "LABEL_1"])
    assert not models.has_head(directory, "text_classification", ["no", "yes"])
