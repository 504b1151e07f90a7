"""Sends bodies to an engine's replica, past the endpoint's own checks, and prints what comes back.

    python tests/serving/engine_probe.py APPLICATION MODEL

Prints a JSON list of [name, error or null], and as its last item whether vllm or torch was imported here:
unpickling an exception of theirs imports them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT: dict[str, dict[str, Any]] = {
    "no tools": {"tools": []},
    "a choice without tools": {"tool_choice": "auto"},
    "an automatic choice": {"tools": [TOOL], "tool_choice": "auto"},
    "a broken tool": {"tools": [{"type": "function"}], "tool_choice": "required"},
    "a tool that is a text": {"tools": ["f"], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "top logprobs alone": {"top_logprobs": 3},
    "stream options alone": {"stream_options": {"include_usage": True}},
    "no schema": {"response_format": {"type": "json_schema"}},
    "two kinds": {"structured_outputs": {"json": {}, "regex": "a"}},
    "no kind": {"structured_outputs": {}},
    "a broken grammar": {"structured_outputs": {"grammar": "root ::= "}},
    "a broken message": {"messages": [{"role": "user", "content": [{"type": "wizard"}]}]},
    "broken arguments": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            },
        ]
    },
    "unknown tokens": {"logit_bias": {"99999999": 1}},
    "too many tokens": {"max_tokens": 100_000},
    "a long prompt": {"messages": [{"role": "user", "content": "word " * 20_000}]},
    "a tuple": {"structured_outputs": {"json": {"type": "array", "items": [{"type": "string"}]}}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "negative logprobs": {"logprobs": -2},
    "2,000 prompts": {"prompt": ["hello"] * 2000},
    "a mixed prompt": {"prompt": ["hello", 3]},
    "an unknown token": {"prompt": [99_999_999]},
    "a suffix": {"suffix": "end"},
}


async def main(application: str, model: str) -> list[Any]:
    import ray
    from ray import serve

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    engine = serve.get_app_handle(application).options(stream=True)
    found: list[Any] = []
    for method, cases, body in (
        ("chat", CHAT, {"messages": [USER]}),
        ("completions", COMPLETIONS, {"prompt": "hello"}),
    ):
        for name, change in cases.items():
            for stream in (False, True):
                asked = {"model": model, "max_tokens": 4, "stream": stream, "request_id": f"{name} {stream}"} | body
                chunks = [chunk async for chunk in getattr(engine, method).remote(asked | change)]
                errors = [chunk["error"] for chunk in chunks if isinstance(chunk, dict) and "error" in chunk]
                found.append([name, errors[0] if errors else None])
    found.append([module for module in ("vllm", "torch", "pydantic_core._pydantic_core") if module in sys.modules])
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
