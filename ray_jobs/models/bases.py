"""Base models: from any source to a prepared, immutable copy in the store.

Owns the sources (hub id, `s3://`, local directory, GGUF file) and `bases/{digest}/`: safetensors, config and tokenizer
only. Workers and the endpoint read that copy, so nothing depends on the source again. Does not load models for a task.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.digests import json_digest, tree_digest
from ray_jobs.errors import ModelError
from ray_jobs.models import base_files
from ray_jobs.models.load import check_architecture
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.model import base_name
from ray_jobs.storage import ProgressFn, Store, Workspace
from ray_jobs.storage.transfer import sha256_of
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.positions import longest_sequence

_KEPT = (".safetensors", ".json", ".txt", ".model", ".jinja", ".spm", ".vocab")
"""Files of a base that are copied: weights without code, and the tokenizer. Never pickles or Python files."""

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w.-]+)?$")


@dataclass(frozen=True)
class Base:
    """A prepared base in the store."""

    digest: str
    name: str
    """Its name at the endpoint."""
    architecture: str

    folder: str = "bases"
    """Where its copy is: the team's, or the catalogue's."""

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.digest}"


def is_local(store: Store, source: str) -> bool:
    """Whether the source is a directory or file of this machine."""
    if not source or source.startswith("s3://") or catalogue.find(store, source) is not None:
        return False
    return Path(source).expanduser().exists()


def fingerprint(store: Store, source: str) -> str:
    """A value that changes with a source, without reading it whole. Raises ModelError where it is missing."""
    if (entry := catalogue.find(store, source)) is not None:
        return entry.digest
    if source.startswith("s3://"):
        folder, name = _split_gguf(source)
        found = [(i.key, i.size_bytes, i.etag) for i in store.at(folder).list("") if name is None or i.key == name]
        if not found:
            raise ModelError(f"base_model {source} is empty; upload the model there, or correct the address")
        return json_digest(found, ensure_ascii=True)
    path = Path(source).expanduser()
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return json_digest([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files], ensure_ascii=True)
    if source.startswith((".", "/", "~")) or not _HUB_ID.match(source):
        raise ModelError(
            f"base_model {source!r} is neither an existing path (seen from {Path.cwd()}), an s3:// address nor a hub "
            "id such as org/model"
        )
    return _ask_hub(source, download=False)


def prepare(store: Workspace, source: str, task: str, *, progress: ProgressFn | None = None) -> Base:
    """Copy a base into the store in its prepared form, once. Raises ModelError where it cannot do the task.

    A name in the catalogue needs no copy, and takes precedence over a path or hub id of the same name.
    """
    if (entry := catalogue.find(store, source)) is not None:
        if task not in entry.tasks:
            able = ", ".join(entry.tasks)
            raise ModelError(f"the base {source!r} ({entry.architecture}) cannot do task: {task}; it does {able}")
        return Base(entry.digest, entry.name, entry.architecture, catalogue.BASES)
    with _local(store, source, progress) as directory:
        config = base_files.read_config(source, directory)
        check_architecture(config, task)
        base_files.check(source, directory, config, (task,))
        return _copy(store, source, directory, config, "bases", progress)


def _copy(
    store: Store, source: str, directory: Path, config: Mapping[str, Any], folder: str, progress: ProgressFn | None
) -> Base:
    """Copy a base's directory into a folder of the store, once."""
    with tempfile.TemporaryDirectory(prefix="kitae-base-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        files = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != "manifest.json"]
        kept = [p for p in files if p.suffix in _KEPT]
        for path in kept:
            target = tree / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:  # another file system
                shutil.copyfile(path, target)
        digest = _tree_digest(tree)
        base = Base(digest, base_name(source), str((config.get("architectures") or ["?"])[0]), folder)
        if store.read_manifest(base.key) is None:
            store.commit(base.key, store.upload_tree(tree, base.key, progress=progress), {"source": source})
        return base


def add(
    store: Store,
    source: str,
    name: str | None = None,
    *,
    engine: Mapping[str, Any] | None = None,
    progress: ProgressFn | None = None,
) -> CatalogueEntry:
    """Prepare a base and add it to the catalogue, for every task it can do. Raises ModelError where it can do none.

    `engine`: options of its engine that differ from the defaults (`catalogue.set_engine`).
    """
    catalogue.require_free(store, name or base_name(source))
    with _local(store, source, progress) as directory:
        config = base_files.read_config(source, directory)
        tasks, why = [], []
        for task in (name for name, task in TASKS.items() if task.base is not None):
            try:
                check_architecture(config, task)
                base_files.require_served(config, task)
                tasks.append(task)
            except ModelError as error:
                why.append(str(error))
        if not tasks:
            raise ModelError(f"{source} can be fine-tuned for no task", details=why)
        base_files.check(source, directory, config, tasks)
        base = _copy(store, source, directory, config, catalogue.BASES, progress)
    longest = longest_sequence(config)
    entry = CatalogueEntry(
        name=name or base.name,
        digest=base.digest,
        source=source,
        architecture=base.architecture,
        tasks=tuple(tasks),
        max_tokens=longest,
    )
    length = min(entry.max_tokens or entry.serving.max_model_len, entry.serving.max_model_len)
    return catalogue.add(store, catalogue.with_engine(entry, {"max_model_len": length, **(engine or {})}))


@contextmanager
def _local(store: Store, source: str, progress: ProgressFn | None) -> Iterator[Path]:
    """The source as a directory of safetensors on this machine."""
    with tempfile.TemporaryDirectory(prefix="kitae-source-") as scratch:
        if source.startswith("s3://"):
            folder, name = _split_gguf(source)
            place = store.at(folder)
            directory = Path(scratch) / "download"
            for info in place.list(""):
                wanted = name is None or info.key == name or not info.key.endswith(".gguf")
                if wanted and (Path(info.key).suffix in (*_KEPT, ".gguf")):
                    (directory / info.key).parent.mkdir(parents=True, exist_ok=True)
                    place.download_file(info.key, directory / info.key, progress=progress)
            path = directory / name if name else directory
        elif Path(source).expanduser().exists():
            path = Path(source).expanduser()
        else:
            path = Path(_ask_hub(source, download=True))
        if path.suffix == ".gguf":
            converted = Path(scratch) / "converted"
            convert_gguf(path, converted)
            path = converted
        yield path


def convert_gguf(path: Path, directory: Path) -> None:
    """Write a GGUF file's weights, dequantised to fp32, with its tokenizer and chat template, as a usual model.

    fp32, since a 4-bit weight is a scale times a small number plus an offset, which bf16 would round once more. Raises
    ModelError for a file that cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except Exception as error:  # the reader raises many classes, all for an unreadable file
        raise ModelError(f"{path.name} is not a GGUF file that can be read: {error}") from error
    _restore_pretokenizer(path, tokenizer)
    config = loaded.config
    # With it, transformers refuses to save, and vLLM expects a quantised file.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A fresh module of the same class: the loaded one is still marked as quantised.
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    ends = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id")}
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is half typed
        **{name: token for name, token in ends.items() if token is not None}
    )
    model.save_pretrained(str(directory), safe_serialization=True)
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.save_pretrained(str(directory))


def _restore_pretokenizer(path: Path, tokenizer: Any) -> None:
    """Split digits one by one first where a GGUF file has `tokenizer.ggml.pre: smollm`.

    transformers ignores the field for a GPT-2-like tokenizer; the difference shows where spaces precede a number.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(path)).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        text = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])


def _split_gguf(source: str) -> tuple[str, str | None]:
    """An s3:// address as (prefix, name of its GGUF file or None)."""
    if source.endswith(".gguf"):
        folder, _, name = source.rpartition("/")
        return folder, name
    return source, None


def _ask_hub(source: str, *, download: bool) -> str:
    """The revision of a hub id, or the directory of its download. Raises ModelError."""
    from huggingface_hub import HfApi, snapshot_download

    repo, _, revision = source.partition("@")
    try:
        if download:
            allow = [f"*{suffix}" for suffix in _KEPT]
            return snapshot_download(repo, revision=revision or None, allow_patterns=allow)
        return str(HfApi().model_info(repo, revision=revision or None).sha)
    except Exception as error:  # the hub client raises many classes, all for an unavailable model
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ModelError(
            f"base_model {source!r} is no local path, and the hub does not provide it{offline}: "
            f"{type(error).__name__}. Check the name, set HF_TOKEN for a gated model, or name a directory or an s3:// "
            "address"
        ) from error


def _tree_digest(tree: Path) -> str:
    files = [path for path in tree.rglob("*") if path.is_file()]
    return tree_digest((path.relative_to(tree).as_posix(), bytes.fromhex(sha256_of(path))) for path in files)
