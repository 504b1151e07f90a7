"""The endpoint's fields against vLLM's own request models, in a process that imports vllm but starts no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from serving.inference.generation_request import CHAT_FIELDS, COMPLETION_FIELDS, IGNORED, parse_chat, parse_completion
from tests.serving.engine_probe import CHAT, COMPLETIONS, USER
from tests.serving.hostile_constraints import with_schema, with_tool

pytestmark = pytest.mark.heavy

ANSWERED: dict[str, Any] = {
    "role": "assistant",
    "content": "a",
    "refusal": None,
    "annotations": [],
    "reasoning_content": "r",
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"stop": ["a", "b"], "logit_bias": {"50256": -100}, "seed": 7, "top_k": -1, "top_p": 1, "min_p": 0},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}, "user": "u"},
    {"logprobs": True, "top_logprobs": 20, "n": 16, "temperature": 0.7},
    {"max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 3, "ignore_eos": True},
    {"response_format": {"type": "json_object"}},
    with_schema({"type": "object"}),
    with_tool({"type": "object"}) | {"tool_choice": "none"},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    {"structured_outputs": {"choice": ["a"]}},
    {"structured_outputs": {"regex": "a"}},
    {"structured_outputs": {"json": {}}},
    {"structured_outputs": {"json_object": True}},
    {"messages": [USER, ANSWERED, USER]},
    {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ]
    },
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, USER]},
    {"messages": [USER, ANSWERED], "continue_final_message": True, "add_generation_prompt": False},
    {"documents": [{"text": "a"}], "chat_template_kwargs": {"x": 1}, "reasoning_effort": "none", "bad_words": ["a"]},
    {"prompt_logprobs": 2, "echo": True, "truncate_prompt_tokens": 5, "truncation_side": "left", "cache_salt": "x"},
]
TEXTS: list[dict[str, Any]] = [
    {},
    {"prompt": ["a", "b"], "n": 2},
    {"prompt": [1, 2]},
    {"prompt": [[1], [2]]},
    {"best_of": 1},
]
SCRIPT = """
import json, sys
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from serving.inference.engine_errors import invalid_request
models = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
found = {"fields": {name: sorted(model.model_fields) for name, model in models.items()}, "errors": []}
for method, body in json.load(sys.stdin):
    try:
        models[method].model_validate(body | {"model": "m", "request_id": "r"}).to_sampling_params(10, {})
        found["errors"].append(None)
    except Exception as error:
        found["errors"].append(invalid_request(error, body))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """vLLM's fields, and its verdict on each accepted body, then on each hostile one."""
    bodies = [("chat", parse_chat({"model": "m", "messages": [USER]} | given).body) for given in ACCEPTED]
    bodies += [("completions", parse_completion({"model": "m", "prompt": "x"} | given).body) for given in TEXTS]
    bodies += [("chat", {"messages": [USER]} | given) for given in CHAT.values()]
    bodies += [("completions", {"prompt": "x"} | given) for given in COMPLETIONS.values()]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["errors"]) == len(bodies)
    return answer


def test_every_field_that_is_sent_on_is_one_of_vllms(found: dict[str, Any]) -> None:
    """vLLM ignores a field that it does not know."""
    assert CHAT_FIELDS.keys() - IGNORED.keys() <= set(found["fields"]["chat"])
    assert COMPLETION_FIELDS.keys() - IGNORED.keys() - {"best_of"} <= set(found["fields"]["completions"])
    assert len(CHAT_FIELDS.keys() - IGNORED.keys()) > 35


def test_vllm_accepts_what_the_endpoint_accepts(found: dict[str, Any]) -> None:
    accepted = found["errors"][: len(ACCEPTED) + len(TEXTS)]
    assert accepted == [None] * len(accepted)


def test_what_vllm_refuses_is_the_callers_without_internals(found: dict[str, Any]) -> None:
    refused = [error for error in found["errors"][len(ACCEPTED) + len(TEXTS) :] if error is not None]
    assert len(refused) >= 10
    for error in refused:
        assert error["code"] == 400
        for inside in ("vllm", "parameter=", "pydantic", "--", "object is not", "literal"):
            assert inside not in error["message"], error
