"""The models themselves: load a base for a task, choose what is trained, and save what is published.

Works on local directories only; where they come from is `bases.py`. `trust_remote_code` is off everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.engine import Dtype, cpu_hardware
from ray_jobs.errors import MachineError, ModelError
from ray_jobs.models import heads
from ray_jobs.models.heads import head_modules, head_names
from ray_jobs.spec import JobSpec, TrainingSection
from ray_jobs.tasks import TASKS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ModelError where there is none."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} is not a model: it has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no object")
    return config


def check_architecture(config: dict[str, Any], task: str) -> None:
    """Raises ModelError where a model cannot do the task."""
    names = [str(name) for name in config.get("architectures") or []]
    needs = TASKS[task].required_base
    wanted, excluded = needs.architectures, needs.excluded_architectures
    if not any(name.endswith(wanted) and not name.endswith(excluded) for name in names):
        have = ", ".join(names) or "no architecture in its config.json"
        raise ModelError(
            f"the base model is {have}, and task: {task} needs one that ends in {' or '.join(wanted)}; choose another "
            "base_model or another task"
        )


def load_tokenizer(directory: Path, task: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises ModelError without one, or without a chat template the task needs."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the base model has no tokenizer that can be read: {error}") from error
    if TASKS[task].required_base.chat_template and not tokenizer.chat_template:
        raise ModelError(
            "the base model has no chat template, so conversations cannot be written for it: start from its instruct "
            "version, or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


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
    """A base model for a task, on the CPU, with every weight from the files but a classifier's new head.

    A new head is drawn from `seed`, the same on every worker. `four_bit` loads NF4 weights (Dettmers et al. 2023,
    arXiv:2305.14314) on the current GPU, or raises MachineError where that cannot be. Without `dropout` the model's
    own is off in training too. Raises ModelError for a wrong architecture, for missing or misshapen weights and for
    weights that are not safetensors.
    """
    import torch
    import transformers

    config = load_config(directory)
    check_architecture(config, task)
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} has no .safetensors weights; pickled weights are not read: convert them first")
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    needs = TASKS[task].required_base
    auto: Any = getattr(transformers, needs.auto_class)
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
        require_4bit()
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": torch.cuda.current_device()}
    try:
        model, report = auto.from_pretrained(str(directory), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the base model cannot be loaded: {error}") from error
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    head = head_names(model)
    lacking = [k for k in [*report["missing_keys"], *mismatched] if not k.startswith(head)]
    if lacking:
        raise ModelError(
            f"{len(lacking)} weights of {type(model).__name__} are missing or misshapen in the base model's files",
            details=sorted(lacking)[:20],
        )
    loaded: PreTrainedModel = model
    heads.draw(loaded, directory, seed)
    return loaded


def has_dropout(training: TrainingSection) -> bool:
    """Whether the base's own dropout is on in training: only where its weights are trained. Frozen ones are used as
    they are, and an adapter has a dropout of its own."""
    return training.method == "full"


def attach(model: PreTrainedModel, training: TrainingSection, task: str) -> torch.nn.Module:
    """Make the method's weights trainable and freeze the others; adapters are drawn from the job's seed alone.

    Returns the module to train. Raises ModelError where the method does not fit the model.
    """
    import torch

    torch.manual_seed(training.seed)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]
    if training.method == "full":
        return model
    if training.method == "qlora":
        from peft import prepare_model_for_kbit_training

        prepared: Any = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=training.gradient_checkpointing
        )
        return _add_adapters(prepared, training, task)
    if training.method == "frozen":
        return _freeze(model, training, task)
    return _add_adapters(model, training, task)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that are trained, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_published(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write what is registered: an adapter (with its head) or a whole model, as safetensors, and the tokenizer."""
    whole: Any = model
    # PEFT would otherwise ask the hub whether the vocabulary was changed.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    whole.save_pretrained(str(directory), safe_serialization=True, **options)
    tokenizer.save_pretrained(str(directory))


def load_published(
    directory: Path, base: Path | None, task: str, labels: Sequence[str], dtype: torch.dtype
) -> PreTrainedModel:
    """Read what `save_published` wrote: an adapter over `base`, or (None) a whole model. In evaluation mode."""
    if base is None:
        model = load_base(directory, task, labels, dtype, seed=0)
    else:
        from peft import PeftModel

        whole: Any = PeftModel.from_pretrained(load_base(base, task, labels, dtype, seed=0), str(directory))
        model = whole
    model.train(False)
    return model


def resolve_precision(spec: JobSpec) -> torch.dtype:
    """The dtype of the weights in a forward pass. `auto` is bf16 only where the hardware computes it natively: a CPU
    that emulates it is several times slower than in fp32."""
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
    """The same by our own name."""
    return "bf16" if "bfloat16" in str(resolve_precision(spec)) else "fp32"


def has_head(directory: Path, task: str, labels: Sequence[str]) -> bool:
    """True where a base can do the task untrained: with its own head, or with one for these labels."""
    if not TASKS[task].has_new_head:
        return True
    config = load_config(directory)
    classifier = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
    return classifier and sorted((config.get("id2label") or {}).values()) == sorted(labels)


def require_memory(directory: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raises MachineError where a base's weights alone do not fit into the memory that is free."""
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


def require_4bit() -> None:
    """Raises MachineError where 4-bit weights cannot be computed with."""
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


def _add_adapters(model: PreTrainedModel, training: TrainingSection, task: str) -> torch.nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model

    targets = training.lora.target_modules
    config = LoraConfig(
        r=training.lora.rank,
        lora_alpha=training.lora.alpha,  # type: ignore[arg-type]  # PEFT takes a float too
        lora_dropout=training.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType[TASKS[task].required_base.adapter_type],
        modules_to_save=head_modules(model) or None,
        exclude_modules=[rf"{name}(\..*)?" for name in head_modules(model)] or None,
    )
    try:
        adapted: torch.nn.Module = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.split(".")[-1] for n, m in model.named_modules() if type(m).__name__ == "Linear"})
        raise ModelError(
            f"training.lora.target_modules {targets!r} fits no layer; the linear layers are {', '.join(linear)}"
        ) from error
    return adapted


def _freeze(model: PreTrainedModel, training: TrainingSection, task: str) -> torch.nn.Module:
    head = head_names(model)
    if not TASKS[task].has_new_head:
        blocks = block_prefixes(model)
        if training.trainable_blocks > len(blocks):
            raise ModelError(
                f"training.trainable_blocks is {training.trainable_blocks}, and the base model has {len(blocks)} blocks"
            )
        head = tuple(blocks[-training.trainable_blocks :])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    return model


def block_prefixes(model: torch.nn.Module) -> list[str]:
    """Name prefixes of the transformer blocks: the longest list of equal modules."""
    import torch

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of transformer blocks; use method: full or lora")
    name, module = max(lists, key=lambda item: len(item[1]))
    return [f"{name}.{i}." for i in range(len(module))]
