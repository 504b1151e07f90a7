"""vLLM's own rendering of a chat request, without an engine."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any


def rendered_by_engine(tokenizer: Any, messages: list[Any], tools: list[Any] | None, **variables: Any) -> str:
    """The prompt of a request. Raises ValueError where vLLM answers 400."""
    from vllm.entrypoints.chat_utils import parse_chat_messages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template

    body = copy.deepcopy({"model": "m", "messages": messages} | ({"tools": tools} if tools else {}))
    request = ChatCompletionRequest.model_validate(body)
    given: Any = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    config: Any = SimpleNamespace(
        multimodal_config=None,
        enable_prompt_embeds=False,
        revision=None,
        code_revision=None,
        trust_remote_code=False,
        hf_config=SimpleNamespace(model_type="llama"),
    )
    form = resolve_chat_template_content_format(None, given, "auto", tokenizer, model_config=config)
    conversation, _, _ = parse_chat_messages(request.messages, config, form)
    return str(
        safe_apply_chat_template(
            config, tokenizer, conversation, tools=given, tokenize=False, add_generation_prompt=True, **variables
        )
    )
