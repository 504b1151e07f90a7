"""Models in directories: a base loaded for a task, checked, in the job's number format; a registered model's files.

`bases.py` brings the directories. `trust_remote_code` is off everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.engine import Dtype, cpu_hardware
from ray_jobs.errors import MachineError, ModelError
from ray_jobs.models import heads
from ray_jobs.models.imports import import_transformers
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.positions import longest_sequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ModelError where it is missing."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} is not a model: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no object")
    return config


def longest_read(directory: Path | None) -> int | None:
    """Tokens that the model in a directory reads at once. None: there is no model, or it has no limit."""
    if directory is None or not (directory / "config.json").is_file():
        return None
    return longest_sequence(load_config(directory))


def check_architecture(config: dict[str, Any], task: str) -> None:
    """Raise ModelError where a model cannot do the task."""
    names = [str(name) for name in config.get("architectures") or []]
    needs = TASKS[task].required_base
    wanted, excluded = needs.architectures, needs.excluded_architectures
    if not any(name.endswith(wanted) and not name.endswith(excluded) for name in names):
        have = ", ".join(names) or "no architecture in its config.json"
        raise ModelError(
            f"the base model is {have}, and task: {task} needs one that ends in {' or '.join(wanted)}; choose another "
            "base_model or another task"
        )


def fetch_base(store: Workspace, key: str) -> Path | None:
    """A base's copy on this machine. None for the empty key of a task that has no base."""
    return store.fetch(key) if key else None


def load_processor(directory: Path | None, task: str) -> Any:
    """The tokenizer or image processor of a model directory; None without a directory.

    Raises ModelError where the directory lacks it, or lacks a chat template that the task needs.
    """
    if directory is None:
        return None
    needs = TASKS[task].required_base
    auto: Any = getattr(import_transformers(), needs.processor_class)
    try:
        processor = auto.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        noun = "tokenizer" if needs.processor_class == "AutoTokenizer" else "processor"
        raise ModelError(f"the base model has no {noun} that can be read: {error}") from error
    if needs.chat_template and not processor.chat_template:
        raise ModelError(
            "the base model has no chat template, so conversations cannot be written for it: start from its instruct "
            "version, or put a chat_template.jinja beside its tokenizer"
        )
    return processor


def load_base(
    directory: Path,
    task: str,
    labels: Sequence[str],
    dtype: torch.dtype,
    *,
    seed: int,
    four_bit: bool = False,
    dropout: bool = True,
) -> PreTrainedModel:
    """A base model for a task, on the CPU, with every weight from the files except a new head.

    A new head is drawn from `seed`, the same on every worker. `four_bit` loads NF4 weights (Dettmers et al. 2023,
    arXiv:2305.14314) on the current GPU. `dropout` False turns the model's own off, in training too. Raises ModelError
    for a wrong architecture, missing or misshapen weights and weights that are not safetensors, and MachineError where
    4-bit weights cannot be computed with.
    """
    import torch

    config = load_config(directory)
    check_architecture(config, task)
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} has no .safetensors weights; pickled weights are not read: convert them first")
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    needs = TASKS[task].required_base
    auto: Any = getattr(import_transformers(), needs.auto_class)
    if needs.head:
        options |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    if not dropout:
        options |= {name: 0.0 for name, value in config.items() if "drop" in name and isinstance(value, float)}
    if four_bit:
        _require_4bit()
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers is half typed
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": torch.cuda.current_device()}
    try:
        model, report = auto.from_pretrained(str(directory), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the base model cannot be loaded: {error}") from error
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    head = heads.head_names(model)
    lacking = [k for k in [*report["missing_keys"], *mismatched] if not k.startswith(head)]
    if lacking:
        raise ModelError(
            f"{len(lacking)} weights of {type(model).__name__} are missing or misshapen in the base model's files",
            details=sorted(lacking)[:20],
        )
    loaded: PreTrainedModel = model
    heads.draw(loaded, directory, seed)
    if needs.head and (order := _order_of_own_head(config, task, labels)) is not None:
        heads.reorder(loaded, order)
    return loaded


def save_published(model: torch.nn.Module, processor: Any, directory: Path) -> None:
    """Write what is registered. `processor` None: the task has none."""
    whole: Any = model
    if hasattr(whole, "save_pretrained"):
        # PEFT would otherwise ask the hub whether the vocabulary was changed.
        options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        whole.save_pretrained(str(directory), safe_serialization=True, **options)
    else:
        from safetensors.torch import save_model

        directory.mkdir(parents=True, exist_ok=True)
        save_model(model, str(directory / "model.safetensors"))
    if processor is not None:
        processor.save_pretrained(str(directory))


def load_published(directory: Path, base: Path | None, task: str, labels: Sequence[str], dtype: torch.dtype) -> Any:
    """Read what `save_published` wrote: an adapter over `base`, or (None) a whole model. In evaluation mode."""
    model: Any
    if TASKS[task].base is None:
        from safetensors.torch import load_model

        model = TASKS[task].new_model(labels, seed=0)
        load_model(model, str(directory / "model.safetensors"))
    elif base is None:
        model = load_base(directory, task, labels, dtype, seed=0)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(base, task, labels, dtype, seed=0), str(directory))
    return model.train(False)


def has_head(directory: Path, task: str, labels: Sequence[str]) -> bool:
    """True where a base can do the task untrained: with its own head, or with one for these labels."""
    return not TASKS[task].has_new_head or _order_of_own_head(load_config(directory), task, labels) is not None


def _order_of_own_head(config: dict[str, Any], task: str, labels: Sequence[str]) -> list[int] | None:
    """For each label its place among the classes of the base's own head, by name; None where that is for others."""
    ending = TASKS[task].required_base.auto_class.removeprefix("AutoModel")
    classes = {int(number): str(name).strip().casefold() for number, name in (config.get("id2label") or {}).items()}
    own, wanted = [classes[number] for number in sorted(classes)], [label.casefold() for label in labels]
    is_classifier = any(name.endswith(ending) for name in config.get("architectures") or [])
    if not is_classifier or sorted(own) != sorted(wanted) or len(set(own)) != len(own):
        return None
    return [own.index(label) for label in wanted]


def _require_4bit() -> None:
    """Raise MachineError where 4-bit weights cannot be computed with."""
    import importlib.util

    import torch

    lacking = []
    if not torch.cuda.is_available():
        lacking.append("a CUDA GPU")
    if importlib.util.find_spec("bitsandbytes") is None:
        lacking.append("the package bitsandbytes")
    if lacking:
        raise MachineError(
            f"training.method: qlora needs {' and '.join(lacking)}, which this machine lacks; use method: lora "
            "here, or a worker with a GPU"
        )


def resolve_precision(spec: JobSpec) -> torch.dtype:
    """Number format of the weights in a forward pass. `auto` is bf16 only where the hardware computes it natively: a
    CPU that emulates it is several times slower than in fp32."""
    import torch

    if spec.training.precision == "fp32":
        return torch.float32
    if spec.training.precision == "bf16":
        return torch.bfloat16
    if spec.compute.gpus_per_worker:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_hardware().native_bf16
    return torch.bfloat16 if native else torch.float32


def precision_name(spec: JobSpec) -> Dtype:
    """`resolve_precision` as `fp32` or `bf16`."""
    return "bf16" if "bfloat16" in str(resolve_precision(spec)) else "fp32"


def require_memory(directory: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raise MachineError where a base's weights alone exceed the free memory."""
    import psutil
    import torch

    config = load_config(directory)
    halves = str(config.get("dtype") or config.get("torch_dtype") or "float32") in ("bfloat16", "float16")
    stored = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    needed = stored * dtype.itemsize / (2 if halves else 4)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise MachineError(
            f"the base model's weights take {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB of memory are free: "
            "choose a smaller base_model, method: qlora, or a machine with more memory"
        )
