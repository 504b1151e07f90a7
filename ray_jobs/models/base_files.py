"""The files of a base model, checked before anything is copied: what training or the engine could not load is refused.

Owns the findings, which are reported together. Reads headers, not weights. Does not know sources (`bases`).
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ray_jobs.errors import ModelError
from ray_jobs.models.imports import import_transformers
from ray_jobs.models.load import load_processor
from ray_jobs.tasks import TASKS

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight$")
_QUANTISED_WEIGHT = (".qweight", ".qzeros", ".weight_packed", ".quant_map")
_VLLM_S = 300.0
_SHOWN = 5


Shapes = Mapping[str, tuple[int, ...]]
"""Tensor → its shape."""


def read_config(source: str, directory: Path) -> dict[str, Any]:
    """The configuration of a base. Raises ModelError with every file that cannot be read."""
    if problems := _pointers(directory) or _broken_json(directory):
        raise _refused(source, problems)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config


def check(source: str, directory: Path, config: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Raise ModelError with every reason why a base cannot be trained or served for these tasks."""
    shapes, problems = _weights(directory)
    problems += _architecture(config)
    problems += _quantised(directory, config, shapes)
    problems += _tokenizer(directory, config, shapes, tasks)
    if problems:
        raise _refused(source, problems)


def _refused(source: str, problems: Sequence[str]) -> ModelError:
    return ModelError(f"{source} cannot be a base model: {len(problems)} problem(s)", details=problems)


def require_served(config: Mapping[str, Any], task: str) -> None:
    """Raise ModelError for a base whose architecture the engine does not have, if the task needs the engine."""
    if not TASKS[task].generates:
        return
    names = [str(name) for name in config.get("architectures") or []]
    if not set(names) & _served_architectures():
        raise ModelError(
            f"vLLM does not serve {', '.join(names)}, so a model for task: {task} could not be called: choose a base "
            "with an architecture that it serves"
        )


def _pointers(directory: Path) -> list[str]:
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        return ["it is a LoRA adapter, without its base's weights: merge it into its base and save the whole model"]
    if not (directory / "config.json").is_file():
        return ["it has no config.json: name the directory that holds a model in the format of transformers"]
    found = []
    for path in sorted(directory.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    found.append(
                        f"{path.name} is a git-lfs pointer, not the file: run `git lfs pull` in the repository"
                    )
    return found


def _broken_json(directory: Path) -> list[str]:
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            found.append(f"{path.name} is not UTF-8 text: download it again")
        except json.JSONDecodeError as error:
            found.append(f"{path.name} is not JSON ({error.msg}, line {error.lineno}): download it again")
        except RecursionError:
            found.append(f"{path.name} is nested too deeply")
        else:
            if path.name == "config.json" and not isinstance(document, dict):
                found.append("config.json holds no object: download it again")
    return found


def _weights(directory: Path) -> tuple[Shapes, list[str]]:
    """Read the headers of all weights. The problems: truncated files, missing shards, missing tensors."""
    found: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    inside: dict[str, set[str]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:  # checks that the tensors fill the file exactly
                inside[path.name] = set(file.keys())
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError):
            size_bytes = path.stat().st_size
            found.append(f"{path.name} is truncated or damaged ({size_bytes:,} bytes): download it again")
            inside[path.name] = set()
    if (directory / _INDEX).is_file():
        found += _missing_of_index(directory, inside)
    elif _WEIGHTS not in inside:
        found += _missing_of_names(inside)
    return shapes, found


def _missing_of_index(directory: Path, inside: Mapping[str, set[str]]) -> list[str]:
    """Shards and tensors that the index names and that do not exist."""
    index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        return [f"{_INDEX} has no weight_map: download it again"]
    shards = sorted(set(places.values()))
    missing = [f"{shard} is missing, and {_INDEX} names it: download it" for shard in shards if shard not in inside]
    absent = [name for name, shard in places.items() if inside.get(shard) and name not in inside[shard]]
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        missing.append(f"{len(absent)} weights are not in the files that {_INDEX} names: {shown}")
    return missing


def _missing_of_names(inside: Mapping[str, set[str]]) -> list[str]:
    """Why weights without `model.safetensors` and without an index cannot be loaded."""
    if not inside:
        pickles = "pickled weights (.bin, .pt) are not read since they can run code"
        return [f"it has no .safetensors weights; {pickles}: convert them with the model's own tools first"]
    shards = [match for name in inside if (match := _SHARD.fullmatch(name))]
    if shards:
        wanted = {
            f"{m['stem']}-{number:05d}-of-{m['count']}.safetensors"
            for m in shards
            for number in range(1, int(m["count"]) + 1)
        }
        missing = sorted(wanted - inside.keys())
        return [f"{_INDEX} is missing: download it"] + [f"{name} is missing: download it" for name in missing[:_SHOWN]]
    return [f"its weights are in {', '.join(sorted(inside)[:_SHOWN])}, not in {_WEIGHTS}: save it with transformers"]


def _architecture(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in import_transformers().CONFIG_MAPPING:
        return []
    if config.get("auto_map"):
        return [f"its model_type {kind!r} needs the model's own code, which never runs here: choose another base"]
    return [f"its model_type {kind!r} is not one of transformers' models: choose another base"]


def _quantised(directory: Path, config: Mapping[str, Any], shapes: Shapes) -> list[str]:
    described = config.get("quantization_config") or config.get("compression_config")
    method = described.get("quant_method", "?") if isinstance(described, dict) else None
    if method is None and (directory / "quantize_config.json").is_file():
        method = "gptq"
    if method is None and any(name.endswith(_QUANTISED_WEIGHT) for name in shapes):
        method = "an unknown method"
    if method is None:
        return []
    return [f"it is quantised with {method}, and adapters need whole weights: choose the model before quantisation"]


def _tokenizer(directory: Path, config: Mapping[str, Any], shapes: Shapes, tasks: Sequence[str]) -> list[str]:
    task = next((task for task in tasks if TASKS[task].required_base.processor_class == "AutoTokenizer"), None)
    if task is None:
        return []
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return [f"it has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}): copy its files beside the weights"]
    try:
        tokenizer = load_processor(directory, task)
    except ModelError as error:
        return ["its tokenizer cannot be read: download its files again" if error.__cause__ else error.message]
    except Exception:  # noqa: BLE001  # tokenizers and transformers raise many classes for a damaged file
        return ["its tokenizer cannot be read: download its files again"]
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        return ["its tokenizer is empty: download its files again"]
    rows, largest = _embedding_rows(config, shapes), max(vocabulary.values())
    if rows is None or largest < rows:
        return []
    over = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    shown = ", ".join(repr(token) for _, token in over[:_SHOWN])
    return [
        f"its tokenizer has {largest + 1:,} ids and its embedding {rows:,} rows, so {len(over)} tokens have no weights "
        f"({shown}): use the tokenizer of this model, or resize the embedding"
    ]


def _embedding_rows(config: Mapping[str, Any], shapes: Shapes) -> int | None:
    found = [shape[0] for name, shape in shapes.items() if len(shape) == 2 and _EMBEDDING.search(name)]
    if found:
        return max(found)
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) else None


@functools.cache
def _served_architectures() -> frozenset[str]:
    """Names of vLLM's architectures, from a process of its own: importing vllm takes half a GiB. Raises ModelError."""
    code = "import json; from vllm import ModelRegistry; print(json.dumps(sorted(ModelRegistry.get_supported_archs())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_VLLM_S, check=False)
    try:
        return frozenset(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        raise ModelError(
            "vLLM, which would serve the model, cannot be loaded on this machine: "
            + (done.stderr.strip()[-300:] or "?")
        ) from None
