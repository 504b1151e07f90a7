"""Real chat templates of current model families, from the `trl` wheel, each with a tokenizer that knows its tokens."""

from __future__ import annotations

import json
import re
from importlib.metadata import files
from pathlib import Path
from typing import Any

from tests.models import tiny_models

_ENDS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "gemma": ["<end_of_turn>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "smolvlm": ["<end_of_utterance>"],
    "llama3": ["<|eot_id|>", "<|eom_id|>"],
    "llava_next": ["</s>"],
    "muse_glimmer": ["<|eot|>", "<|eom|>"],
    "phi3": ["<|end|>"],
    "": ["<|im_end|>"],
}
"""Beginning of a family's name → tokens at which its models stop, as their generation_config.json lists them."""
_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tokens of the families that use them, but no special ones."""
_SPECIAL = re.compile(r"<[|｜][^|｜<>\s'\"]+[|｜]?>|<[a-z_]+\|>")


def templates() -> dict[str, str]:
    """Family → template."""
    found = {path.stem: path for path in files("trl") or () if path.suffix == ".jinja"}
    return {
        name: path.read_text(encoding="utf-8") for name, path in sorted(found.items()) if not name.endswith("_training")
    }


def ends_of(family: str) -> list[str]:
    return next(ends for prefix, ends in _ENDS.items() if family.startswith(prefix))


def tokenizer_of(family: str, template: str, directory: Path) -> Any:
    """A small tokenizer in which the template's special tokens are tokens, saved with the family's end tokens."""
    from transformers import AutoTokenizer

    tokenizer = tiny_models.save_tokenizer(directory, chat_template=template)
    ends = ends_of(family)
    special = sorted({*_SPECIAL.findall(template), *ends, "<bos>"})
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": ends[0], "bos_token": "<bos>"})
    marks = [mark for mark in _MARKS if mark in template]
    # Llama 3.2's template does not write this token, which its tokenizer has.
    tokenizer.add_tokens([*marks, "<|python_tag|>"] if family.startswith("llama3") else marks)
    tokenizer.save_pretrained(str(directory))
    config = {"eos_token_id": [tokenizer.convert_tokens_to_ids(end) for end in ends]}
    (directory / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(directory))
