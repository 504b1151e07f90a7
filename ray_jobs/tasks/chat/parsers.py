"""How a base writes tool calls and reasoning, and so which of vLLM's parsers read them back.

Found from its chat template: by the marks that it writes around a call, and by what it writes for an answer without
reasoning. Names are vLLM's (`--tool-call-parser`, `--reasoning-parser`). Does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ray_jobs.errors import DataError
from ray_jobs.tasks.chat.messages import Message
from ray_jobs.tasks.chat.template import render, template_of
from ray_jobs.tasks.chat.turns import trained_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ToolParser = Literal[
    "none",
    "deepseek_v3",
    "deepseek_v31",
    "gemma4",
    "glm45",
    "glm47",
    "hermes",
    "kimi_k2",
    "lfm2",
    "ling3",
    "llama3_json",
    "minimax_m2",
    "mistral",
    "muse_glimmer",
    "openai",
    "qwen3_coder",
    "seed_oss",
]
ReasoningParser = Literal[
    "none", "deepseek_r1", "gemma4", "glm45", "minimax_m2", "muse_glimmer", "nemotron_v3", "openai_gptoss", "qwen3"
]

_TOOL_FORMATS: tuple[tuple[tuple[str, ...], ToolParser], ...] = (
    (("<|tool_call>",), "gemma4"),
    (("<arg_key>", "<|role_end|>"), "ling3"),
    (("{function-name}<arg_key>",), "glm47"),
    (("<arg_key>",), "glm45"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<function=",), "qwen3_coder"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<atem:",), "muse_glimmer"),
    (("<|channel|>commentary",), "openai"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("]<]minimax[>[",), "none"),  # vLLM's needs an extension that its CPU build lacks
    (("<tool_call>",), "hermes"),
    (("<|start_header_id|>", '"parameters": '), "llama3_json"),
)
"""Marks that are all in a template → the parser of its calls; the first that fits."""
_REASONING_FORMATS: tuple[tuple[tuple[str, ...], ReasoningParser], ...] = (
    (("<|channel>",), "gemma4"),
    (("<|channel|>analysis",), "openai_gptoss"),
    (("to=self",), "muse_glimmer"),
)
"""As above, for formats whose parser also reads an answer without reasoning."""
_THINK_FORMATS: tuple[tuple[tuple[str, ...], ReasoningParser], ...] = (
    (("<arg_key>",), "glm45"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<｜Assistant｜>",), "deepseek_r1"),
    ((), "qwen3"),
)
"""As above, for `<think>`: a text without `</think>` is reasoning for these parsers."""
_OPEN, _CLOSED = "<think>", "</think>"
_SWITCH = "enable_thinking"

_QUESTION: Message = {"role": "user", "content": "?"}
_ANSWER: Message = {"role": "assistant", "content": "!"}
_TOOL: Message = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True)
class Parsers:
    """What an engine is given to read a base's answers."""

    tool: ToolParser | None
    """None: the template writes no calls that a parser reads."""
    reasoning: ReasoningParser | None
    """None: reasoning, if there is any, stays in the text."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template that a request without them gets. The prompt is the same; the parser needs them."""


def parsers_of(
    tokenizer: PreTrainedTokenizerBase, *, tool: ToolParser | None = None, reasoning: ReasoningParser | None = None
) -> Parsers:
    """The parsers for a base. `tool`, `reasoning`: the operator's choice; `none` for no parser.

    Raises ModelError for a base without a chat template.
    """
    found = Parsers(_tool_parser(tokenizer), *_reasoning_parser(tokenizer))
    chosen_tool = found.tool if tool is None else tool
    chosen_reasoning = found.reasoning if reasoning is None else reasoning
    return Parsers(
        None if chosen_tool == "none" else chosen_tool,
        None if chosen_reasoning == "none" else chosen_reasoning,
        found.switches,
    )


def _tool_parser(tokenizer: PreTrainedTokenizerBase) -> ToolParser | None:
    template = template_of(tokenizer, [_TOOL])
    if "tools" not in template:
        return None
    return next((name for marks, name in _TOOL_FORMATS if all(mark in template for mark in marks)), None)


def _reasoning_parser(tokenizer: PreTrainedTokenizerBase) -> tuple[ReasoningParser | None, Mapping[str, Any]]:
    template = template_of(tokenizer)
    for marks, name in _REASONING_FORMATS:
        if all(mark in template for mark in marks):
            return name, {}
    if _CLOSED not in template:
        return None, {}
    parser = next(name for marks, name in _THINK_FORMATS if all(mark in template for mark in marks))
    try:
        prompt = render(tokenizer, [_QUESTION], generate=True).rstrip()
    except DataError:
        return None, {}
    try:
        (turn,) = trained_turns(tokenizer, [_QUESTION, _ANSWER], None)
    except DataError:  # with another switch it may write an answer without reasoning
        return (parser if prompt.endswith(_OPEN) else None), {}
    if _CLOSED in tokenizer.decode(list(turn.answer_ids)):
        return parser, {}
    if prompt.endswith(_CLOSED) and _SWITCH in template:
        return parser, {_SWITCH: False}
    return None, {}
