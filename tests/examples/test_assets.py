"""The examples' models and rows: how they are read, checked and installed. Nothing is downloaded here."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples import assets
from ray_jobs.errors import MachineError
from ray_jobs.spec import load_spec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS

HERE = assets.DEFAULT_DIRECTORY
PACKAGES = [value for value in vars(assets).values() if isinstance(value, assets.Package)]


# ---- packages ---------------------------------------------------------------------------------------------------


def test_every_package_is_pinned_by_version_and_hash() -> None:
    assert len(PACKAGES) >= 7
    for package in PACKAGES:
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256), package.name
        assert package.version in package.file, package.name
        assert package.licence
    assert len({package.sha256 for package in PACKAGES}) == len(PACKAGES)


def test_every_asset_is_in_a_group_once() -> None:
    for name, group in assets.GROUPS.items():
        keys = [asset.store_key for asset in group]
        assert len(set(keys)) == len(keys), name
    assert {asset.name for group in assets.GROUPS.values() for asset in group} == {
        asset.name for asset in assets.GROUPS["all"]
    }


@pytest.fixture
def package() -> assets.Package:
    content = b"what was asked for"
    import hashlib

    return assets.Package("thing", "1.0", "thing-1.0.whl", hashlib.sha256(content).hexdigest(), "MIT")


def answer_with(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace pip by a shell script."""
    monkeypatch.setattr(assets, "pip_download", lambda package, directory: ["sh", "-c", script])


def test_a_package_is_fetched_once(tmp_path: Path, package: assets.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "printf 'what was asked for' > thing-1.0.whl")
    path = assets.fetch(package, tmp_path)
    answer_with(monkeypatch, "exit 1")
    assert assets.fetch(package, tmp_path) == path
    assert [file.name for file in tmp_path.iterdir()] == ["thing-1.0.whl"]


def test_another_file_is_refused(tmp_path: Path, package: assets.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "printf 'something else' > thing-1.0.whl")
    with pytest.raises(MachineError, match=f"not {package.sha256}"):
        assets.fetch(package, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_registry_that_fails(tmp_path: Path, package: assets.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "echo no such version >&2; exit 1")
    with pytest.raises(MachineError, match=r"thing 1\.0 could not be downloaded") as caught:
        assets.fetch(package, tmp_path)
    assert caught.value.details == ("no such version",)
    monkeypatch.setattr(assets, "pip_download", lambda package, directory: ["no-such-client"])
    with pytest.raises(MachineError, match="not installed"):
        assets.fetch(package, tmp_path)


def test_pip_downloads_one_hash_and_installs_nothing(tmp_path: Path) -> None:
    command = assets.pip_download(assets.DJANGO, tmp_path)
    assert "download" in command
    assert "--no-deps" in command
    assert assets.DJANGO.sha256 in (tmp_path / "requirement.txt").read_text()


def test_a_result_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(_downloads: Path, result: Path) -> None:
        result.mkdir()
        (result / "half").write_text("x")
        raise MachineError("disk full")

    def succeed(_downloads: Path, result: Path) -> None:
        result.mkdir(mode=0o700)
        (result / "whole").write_text("x")

    with pytest.raises(MachineError):
        assets.bring([assets.Asset("model", "files/model", fail)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]
    assets.bring([assets.Asset("model", "files/model", succeed)], tmp_path)
    assets.bring([assets.Asset("model", "files/model", fail)], tmp_path)  # exists: not made again
    assert (tmp_path / "model" / "whole").is_file()
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_two_concurrent_callers_make_an_asset_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def slowly(_downloads: Path, result: Path) -> None:
        made.append(result)
        time.sleep(0.2)
        result.mkdir()
        (result / "weights").write_text("all of them")

    model = assets.Asset("model", "files/model", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: assets.bring([model], tmp_path), range(2)))
    assert len(made) == 1


def test_upload_is_repeatable_and_replaces_changed_assets(tmp_path: Path, store: Workspace) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    rows.write_text('{"text": "はい", "label": "x"}\n', encoding="utf-8")
    made = [
        assets.Asset("model", "files/bases/model", _unused),
        assets.Asset("rows.jsonl", "files/data/r.jsonl", _unused),
    ]
    assets.upload(store, made, tmp_path)
    first = store.read_manifest("files/bases/model")
    assets.upload(store, made, tmp_path)
    assert store.read_manifest("files/bases/model") == first
    assert store.get("files/data/r.jsonl") == rows.read_bytes()
    (model / "config.json").write_text('{"a": 1}')
    assets.upload(store, made, tmp_path)
    second = store.read_manifest("files/bases/model")
    assert second is not None
    assert second != first
    assert store.get("files/bases/model/config.json") == b'{"a": 1}'


def _unused(_downloads: Path, _result: Path) -> None:
    raise AssertionError("an upload makes nothing")


def test_the_command_explains_itself() -> None:
    import sys

    shown = subprocess.run(
        [sys.executable, "-m", "examples.assets", "--help"], capture_output=True, text=True, check=True
    )
    assert "chat" in shown.stdout
    assert "--into" in shown.stdout


# ---- job files --------------------------------------------------------------------------------------------------


def test_the_job_files_name_uploaded_assets() -> None:
    files = sorted(Path("examples").glob("*.yaml"))
    assert files
    keys = {asset.store_key for asset in assets.GROUPS["all"]}
    for file in files:
        spec = load_spec(file)
        for address in (spec.base_model, *spec.data.sources):
            assert address.removeprefix("s3://kitae/") in keys, file


# ---- downloaded assets ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (HERE / "smollm2-135m-instruct").is_dir(), reason="python -m examples.assets chat has not run")
def test_the_chat_assets_fit_together() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE / "smollm2-135m-instruct")
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    rows = [json.loads(line) for line in (HERE / "faq_chat.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 100
    for row in rows:
        assert TASKS["chat"].check_row(row) == []
        text = str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        assert text.endswith("<|im_end|>\n")
        assert len(tokenizer(text)["input_ids"]) <= load_spec(Path("examples/faq_chat.yaml")).data.max_tokens


@pytest.mark.skipif(
    not (HERE / "multilingual-e5-small").is_dir(), reason="python -m examples.assets reviews has not run"
)
def test_the_encoder_matches_japanese_and_english() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = HERE / "multilingual-e5-small"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False)

    def embed(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden_BTH = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][..., None]
        mean_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        return torch.nn.functional.normalize(mean_BH, dim=-1)

    passages = ["パスワードは設定画面から再設定できます。", "明日は晴れるでしょう。", "Tokyo is the capital of Japan."]
    queries = ["How do I reset my password?", "天気予報", "日本の首都はどこですか？"]
    similarity_QP = embed([f"query: {text}" for text in queries]) @ embed([f"passage: {text}" for text in passages]).T
    assert similarity_QP.argmax(1).tolist() == [0, 1, 2]
