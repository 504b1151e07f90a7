"""The method: which weights of a loaded base are trained, and the adapters put on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import ModelError
from ray_jobs.models.heads import head_names
from ray_jobs.spec import TrainingSection
from ray_jobs.tasks import TASKS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, training: TrainingSection, task: str) -> torch.nn.Module:
    """Make the method's weights trainable and freeze the others; new adapters follow from the job's seed alone.

    Returns the module to train. Raises ModelError where the method does not fit the model.
    """
    import torch

    torch.manual_seed(training.seed)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # transformers is half typed
    if training.method == "full":
        return model
    if training.method == "frozen":
        return _freeze(model, training, task)
    prepared: Any = model
    if training.method == "qlora":
        from peft import prepare_model_for_kbit_training

        prepared = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # PEFT has no types
            model, use_gradient_checkpointing=training.gradient_checkpointing
        )
    return _add_adapters(prepared, training, task)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that training changes, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _add_adapters(model: PreTrainedModel, training: TrainingSection, task: str) -> torch.nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model

    targets = training.lora.target_modules
    names = [name for name, _ in model.named_modules()]
    absent = [each for each in ([] if isinstance(targets, str) else targets) if not _is_layer(each, names)]
    if absent:  # PEFT would train the others without them
        raise _fits_no_layer(model, absent)
    heads = [name.rstrip(".").split(".")[-1] for name in head_names(model)]
    config = LoraConfig(
        r=training.lora.rank,
        lora_alpha=training.lora.alpha,  # type: ignore[arg-type]  # PEFT takes a float too
        lora_dropout=training.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType[TASKS[task].required_base.adapter_type],
        modules_to_save=heads or None,
        exclude_modules=[rf"{name}(\..*)?" for name in heads] or None,
    )
    try:
        adapted: torch.nn.Module = get_peft_model(model, config)
    except ValueError as error:
        raise _fits_no_layer(model, targets) from error
    return adapted


def _is_layer(target: str, names: Sequence[str]) -> bool:
    """Whether a module has this name, as PEFT compares them."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def _fits_no_layer(model: PreTrainedModel, targets: str | Sequence[str]) -> ModelError:
    kinds = ("Linear", "Conv1D")
    linear = sorted({name.split(".")[-1] for name, module in model.named_modules() if type(module).__name__ in kinds})
    shown = targets if isinstance(targets, str) else ", ".join(targets)
    return ModelError(f"training.lora.target_modules: {shown} fits no layer; the linear layers are {', '.join(linear)}")


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
