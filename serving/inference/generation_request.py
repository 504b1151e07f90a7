"""The fields of `/v1/chat/completions` and `/v1/completions`, and which of them go together.

Owns the allow-list: OpenAI's fields and the engine's, each with its bounds. What an engine refuses for any model is
refused here, before a model is resolved: an engine's own refusal speaks of its internals. Does not know which model
answers: the context length and token ids are the engine's to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.http.fields import (
    FieldType,
    anything,
    array,
    boolean,
    either,
    integer,
    known_fields,
    mapping,
    number,
    one_of,
    text,
    wrong,
)
from serving.inference.constraints import Constraint, constraints_of
from serving.inference.messages import MESSAGES, TOOL_CHOICE, TOOLS, check_messages, check_tools

MAX_CHOICES = 16
MAX_SEQUENCES = 128
"""Prompts × choices of one request."""
MAX_LOGPROBS = 20
"""vLLM's default `max_logprobs`."""
_TEXT = 4 * 2**20  # the body's own limit is at most this
_TOKENS = 2**20
_TOKEN_ID = integer(0, 2**24)
_ANY_TEXT = text(512)
_GREEDY_BELOW = 1e-5
"""Temperature under which vLLM takes the most likely token."""

CONSTRAINTS = anything(2**17, 96)
"""Bounds of a field with a constraint before `constraints` reads it."""

IGNORED: dict[str, FieldType] = {
    "user": _ANY_TEXT,
    "store": boolean(),
    "metadata": mapping(text(512), 16),
    "service_tier": _ANY_TEXT,
    "safety_identifier": _ANY_TEXT,
    "prompt_cache_key": _ANY_TEXT,
    "prompt_cache_retention": _ANY_TEXT,
    "prompt_cache_options": anything(4096, 4),
    "verbosity": one_of("low", "medium", "high"),
    "prediction": anything(_TEXT, 8),
    "modalities": array(one_of("text"), 1),
    "request_id": _ANY_TEXT,  # replaced: a client that reuses an id must not affect its other request
    "session_id": _ANY_TEXT,
    "include_reasoning": boolean(),
}
"""Fields that real clients send and that do not change the answer."""
_SAMPLING: dict[str, FieldType] = {
    "n": integer(1, MAX_CHOICES),
    "max_tokens": integer(1, _TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "top_k": integer(-1, 2**20),
    "min_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 10, above=True),
    "seed": integer(-(2**63), 2**63 - 1),
    "logit_bias": mapping(number(-100, 100), 1024, keys=r"[0-9]{1,8}"),
    "stop": either(text(256, 1), array(text(256, 1), 4, 0)),  # vLLM's limit
    "stop_token_ids": array(_TOKEN_ID, 64, 0),
    "include_stop_str_in_output": boolean(),
    "ignore_eos": boolean(),
    "min_tokens": integer(0, _TOKENS),
    "skip_special_tokens": boolean(),
    "spaces_between_special_tokens": boolean(),
    "truncate_prompt_tokens": integer(1, _TOKENS),
    "truncation_side": one_of("left", "right"),
    "prompt_logprobs": integer(0, MAX_LOGPROBS),
    "allowed_token_ids": array(_TOKEN_ID, 4096),
    "bad_words": array(text(128, 1), 64, 0),
    "add_special_tokens": boolean(),
    "return_token_ids": boolean(),
    "return_tokens_as_token_ids": boolean(),
    "cache_salt": text(1024, 1),
    "echo": boolean(),
    "stream": boolean(),
    "response_format": CONSTRAINTS,
    "structured_outputs": CONSTRAINTS,
}
_STREAM_OPTIONS: dict[str, FieldType] = {
    "include_usage": boolean(),
    "continuous_usage_stats": boolean(),
    "include_obfuscation": boolean(),
}
_MODEL = text(512, 1)

CHAT_FIELDS: dict[str, FieldType] = {
    "model": _MODEL,
    "messages": MESSAGES,
    **_SAMPLING,
    "max_completion_tokens": integer(1, _TOKENS),
    "logprobs": boolean(),
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "stream_options": anything(256, 1),
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": boolean(),
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "add_generation_prompt": boolean(),
    "continue_final_message": boolean(),
    "chat_template_kwargs": anything(4096, 4),
    "documents": array(mapping(text(_TEXT), 8), 64),
    **IGNORED,
}
_MAX_IDS = 2**17
_IDS = array(_TOKEN_ID, _MAX_IDS)
COMPLETION_FIELDS: dict[str, FieldType] = {
    "model": _MODEL,
    "prompt": either(text(_TEXT, 1), array(either(text(_TEXT, 1), _TOKEN_ID, _IDS), _MAX_IDS)),
    **_SAMPLING,
    "logprobs": integer(0, MAX_LOGPROBS),
    "best_of": integer(1, MAX_CHOICES),
    "stream_options": anything(256, 1),
    **{name: IGNORED[name] for name in ("user", "request_id", "session_id", "store", "metadata", "service_tier")},
}

_REFUSED = {
    "priority": "the endpoint shares an engine fairly between teams",
    "use_beam_search": "send n with a temperature for several answers",
    "prompt_embeds": "send text or token ids",
    "kv_transfer_params": "one engine reads the prompt and answers it",
    "ec_transfer_params": "one engine reads the prompt and answers it",
    "vllm_xargs": "the engines have no extensions",
    "thinking_token_budget": "limit the answer with max_tokens",
    "repetition_detection": "send repetition_penalty",
    "guided_json": "send structured_outputs",
    "guided_regex": "send structured_outputs",
    "guided_choice": "send structured_outputs",
    "guided_grammar": "send structured_outputs",
}
_CHAT_REFUSED = _REFUSED | {
    "functions": "send tools",
    "function_call": "send tool_choice",
    "audio": "the models read and write text",
    "web_search_options": "the models have no search",
    "moderation": "the endpoint has no moderation",
    "chat_template": "a model is asked with the template that it was trained with",
    "media_io_kwargs": "the models read text",
    "mm_processor_kwargs": "the models read text",
}
_COMPLETION_REFUSED = _REFUSED | {"suffix": "the models continue a text and do not fill one in"}


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request."""

    model: str
    body: dict[str, Any]
    """What the engine gets, without the model."""
    stream: bool
    include_usage: bool
    """Whether the client wants a stream's usage event."""
    prompts: int
    choices: int
    """Choices of each prompt."""
    max_tokens: int | None
    """Most tokens of each choice. None: what the context leaves."""
    constraints: list[Constraint]
    """What is to be compiled first."""

    @property
    def sequences(self) -> int:
        """Answers to generate."""
        return self.prompts * self.choices


def parse_chat(body: Mapping[str, Any]) -> GenerationRequest:
    """Validate a chat completion. Raises ApiError 400 that names the field."""
    given = known_fields(body, CHAT_FIELDS, _CHAT_REFUSED, required=["messages"])
    check_messages(given["messages"])
    check_tools(given)
    limit, other = given.get("max_completion_tokens"), given.get("max_tokens")
    if limit is not None and other is not None and limit != other:
        raise wrong("max_tokens", f"max_tokens is {other} and max_completion_tokens is {limit}; send one of them")
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise wrong("top_logprobs", "top_logprobs needs logprobs: true")
    continues = given.get("continue_final_message", False)
    if continues and given.get("add_generation_prompt") is not False:
        raise wrong("continue_final_message", "continue_final_message needs add_generation_prompt: false")
    if continues and given["messages"][-1]["role"] != "assistant":
        raise wrong("continue_final_message", "continue_final_message needs a last message of the assistant")
    return _parsed(given, "messages", 1, limit if limit is not None else other)


def parse_completion(body: Mapping[str, Any]) -> GenerationRequest:
    """Validate a text completion. Raises ApiError 400 that names the field."""
    given = known_fields(body, COMPLETION_FIELDS, _COMPLETION_REFUSED, required=["prompt"])
    prompt, prompts = given["prompt"], 1
    if isinstance(prompt, list):
        kinds = {type(item) for item in prompt}
        if len(kinds) > 1:
            raise wrong("prompt", "prompt is a list of different types; send texts, token ids, or lists of token ids")
        prompts = 1 if kinds == {int} else len(prompt)
    best_of = given.pop("best_of", None)
    if best_of not in (None, given.get("n", 1)):
        raise wrong("best_of", f"best_of is {best_of}; the endpoint returns every answer: send n instead")
    return _parsed(given, "prompt", prompts, given.get("max_tokens", 16))  # OpenAI's default


def _parsed(given: dict[str, Any], prompt_field: str, prompts: int, max_tokens: int | None) -> GenerationRequest:
    choices = given.get("n", 1)
    if prompts * choices > MAX_SEQUENCES:
        what = f"{prompts} prompts with n {choices} are {prompts * choices} answers"
        raise wrong(prompt_field, f"{what}; one request may have {MAX_SEQUENCES}: send several")
    if choices > 1 and given.get("temperature", 1.0) < _GREEDY_BELOW:
        raise wrong("n", f"n is {choices} at temperature 0, where all answers are equal: send n 1, or a temperature")
    stream = given.get("stream", False)
    options = given.get("stream_options")
    if options is not None:
        if not stream:
            raise wrong("stream_options", "stream_options needs stream: true")
        options = known_fields(options, _STREAM_OPTIONS, {}, "stream_options")
        options.pop("include_obfuscation", None)
    if stream and given.get("prompt_logprobs"):
        raise wrong("prompt_logprobs", "prompt_logprobs is not possible with stream: true")
    if max_tokens is not None and given.get("min_tokens", 0) > max_tokens:
        raise wrong("min_tokens", f"min_tokens is {given['min_tokens']}; max_tokens is only {max_tokens}")
    if "truncation_side" in given and "truncate_prompt_tokens" not in given:
        raise wrong("truncation_side", "truncation_side needs truncate_prompt_tokens")
    model = given.get("model")
    if model is None:
        raise wrong("model", "model is missing: name one of /v1/models")
    constraints = constraints_of(given)
    body = {name: value for name, value in given.items() if name not in IGNORED and name != "model"}
    if stream:
        body["stream_options"] = (options or {}) | {"include_usage": True}
    usage = bool((options or {}).get("include_usage"))
    return GenerationRequest(model, body, stream, usage, prompts, choices, max_tokens, constraints)
