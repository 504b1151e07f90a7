"""A classifier's head: which weights belong to it, and how a new one is initialised so that it can be learnt.

transformers puts a dense layer with tanh between the encoder and the classes. Drawn at random over an encoder whose
first-token features hardly vary, it passes on almost nothing and training stays at the majority class. A new one
therefore starts as the standardisation of those features on a sample of the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAMPLE_ROWS = 64
"""Number of training rows that the features are standardised over."""


def head_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Prefixes of the weights of a classifier's head, its pooler among them; none for a causal model."""
    if not type(model).__name__.endswith("Classification"):
        return ()
    base = str(getattr(model, "base_model_prefix", ""))
    names = [name for name, _ in model.named_parameters()]
    outer = {name.split(".")[0] + "." for name in names if name.split(".")[0] != base}
    pooler = {f"{base}.pooler." for name in names if name.startswith(f"{base}.pooler.")}
    return tuple(sorted(outer | pooler))


def new_weights(model: torch.nn.Module, directory: Path) -> list[str]:
    """The head's weights that a model directory's files lack, or have in another shape."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  # not a dict
    head = head_names(model)
    named = [(name, list(weight.shape)) for name, weight in model.named_parameters() if head and name.startswith(head)]
    # A base without a head names its weights without the model's own prefix.
    return [name for name, shape in named if shape not in (shapes.get(name), shapes.get(name.split(".", 1)[-1]))]


def draw(model: torch.nn.Module, directory: Path, seed: int, *, keep_pooler: bool = False) -> None:
    """Draw the head's weights that the files lack from `seed` alone, as transformers does: normal, biases zero.

    `keep_pooler` keeps a standardised pooler and draws the other weights.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in new_weights(model, directory):
            weight = weights[name]
            if weight.ndim >= 2:
                value = torch.empty(weight.shape).normal_(0.0, deviation, generator=generator)
            else:
                value = torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0)
            if not (keep_pooler and name.startswith(_pooling_layer(model)[1] or name + " ")):
                weight.copy_(value)


def reorder(model: torch.nn.Module, order: Sequence[int]) -> None:
    """Put the classes of a head into another order: class i becomes what class `order[i]` was."""
    import torch

    if list(order) == list(range(len(order))):
        return
    head = head_names(model)
    outputs = [
        (name, one) for name, one in model.named_parameters() if name.startswith(head) and len(one) == len(order)
    ]
    last = outputs[-1][0].rpartition(".")[0]
    with torch.no_grad():
        for name, weight in outputs:
            if name.rpartition(".")[0] == last:
                weight.copy_(weight[list(order)].clone())


def standardise_new_pooler(
    model: torch.nn.Module, directory: Path, run_sample: Callable[[torch.nn.Module], object]
) -> bool:
    """Start a pooler that the base's files lack as `tanh((features - mean) / deviation)`.

    `run_sample` puts `SAMPLE_ROWS` training rows through the model. Returns False, and changes nothing, where the model
    has no such layer or the files have it.
    """
    import torch

    dense, prefix = _pooling_layer(model)
    if dense is None or f"{prefix}weight" not in new_weights(model, directory):
        return False
    seen: list[torch.Tensor] = []
    handle = dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            run_sample(model)
    finally:
        handle.remove()
        model.train(was_training)
    features_BH = torch.cat([part.reshape(-1, dense.in_features) for part in seen])
    deviation_H = features_BH.std(dim=0).clamp_min(1e-4)
    with torch.no_grad():
        dense.weight.copy_(torch.diag(1.0 / deviation_H))
        dense.bias.copy_(-features_BH.mean(dim=0) / deviation_H)
    return True


def _pooling_layer(model: torch.nn.Module) -> tuple[torch.nn.Linear | None, str]:
    """The square layer before the classes (BERT's pooler, RoBERTa's classifier.dense), and its weights' prefix."""
    import torch

    base = str(getattr(model, "base_model_prefix", ""))
    for prefix in (f"{base}.pooler.dense", "classifier.dense"):
        try:
            module = model.get_submodule(prefix)
        except AttributeError:
            continue
        if isinstance(module, torch.nn.Linear) and module.in_features == module.out_features:
            return module, f"{prefix}."
    return None, ""
