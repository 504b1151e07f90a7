"""Tool calls of an answer, read as the endpoint reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.tasks.chat.messages import Message
from ray_jobs.tasks.chat.parsers import ToolParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Call = tuple[str, Any]
"""A function's name and its arguments; the arguments None if they are not JSON."""


def calls_of(message: Message) -> list[Call]:
    """The calls of a message in canonical form."""
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]


def read_calls(
    tokenizer: PreTrainedTokenizerBase, parser: ToolParser, tools: Sequence[Message], answer_ids: Sequence[int]
) -> list[Call]:
    """The calls in generated tokens, by vLLM's parser. Imports vLLM."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    body = {"messages": [{"role": "user", "content": "?"}], "tools": list(tools), "tool_choice": "auto"}
    request = ChatCompletionRequest.model_validate({"model": "m", **body})
    reader = ToolParserManager.get_tool_parser(parser)(tokenizer, request.tools)
    asked = reader.adjust_request(request.model_copy())
    text = tokenizer.decode(list(answer_ids), skip_special_tokens=asked.skip_special_tokens)
    found = reader.extract_tool_calls(str(text), request)
    return [(each.function.name, _parsed(each.function.arguments)) for each in found.tool_calls]


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None
