"""The real model of the endpoint's tests, and adapters that visibly change its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples import assets

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in [
        ("What is the capital of France?", "The capital of France is Paris, on the river Seine."),
        ("How do I install a package on Debian?", "Run apt-get install and the name of the package, as root."),
        ("東京はどこの国の首都ですか。", "東京は日本の首都です。"),
        ("Name three colours.", "Red, green and blue."),
    ]
]


def smollm2() -> Path:
    """Directory of SmolLM2-135M-Instruct, downloaded once."""
    asset = assets.GROUPS["chat"][0]
    assets.bring([asset], assets.DEFAULT_DIRECTORY)
    return (assets.DEFAULT_DIRECTORY / asset.name).resolve()


def with_adapter(base: Path, *, seed: int) -> Any:
    """A PEFT model in fp32: the base with a LoRA adapter whose B is not zero, like a trained one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    return adapted.eval()
