"""No malformed or hostile request reaches an engine: each is a 400 that names its field, and an ordinary one is
answered right afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.inference.generation_request import CHAT_FIELDS
from tests.serving.error_shape import check_error
from tests.serving.fake_backend import FakeBackend
from tests.serving.hostile_constraints import hostile_constraints, uncompilable, with_schema, with_tool
from tests.serving.hostile_requests import BODIES, CHAT, COMPLETIONS, RESPONSES, USER, Hostile, hostile_requests
from tests.serving.routing import ADAPTERS, make_client, make_snapshot, make_version

REQUESTS = hostile_requests() + hostile_constraints()
INTERNALS = re.compile(
    r"pydantic|vllm|jinja|traceback|literal\[|function-|validationerror|https?://|site-packages|--[a-z]", re.IGNORECASE
)
CODES = {"invalid_request", "unknown_field", "unsupported", "invalid_constraint", "previous_response_not_found"}


@dataclass(frozen=True)
class Endpoint:
    client: TestClient
    backend: FakeBackend

    def refusal(self, path: str, body: Any) -> Any:
        """The error of a request, which reached no engine."""
        before = len(self.backend.calls)
        response: Any = self.client.post(path, json=body)
        assert len(self.backend.calls) == before, "the request reached an engine"
        error = check_error(response)
        assert error.status == 400
        assert error.code in CODES
        assert error.param is not None
        assert not INTERNALS.search(response.text), response.text
        return error


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    backend = FakeBackend()
    classifier = make_version("1", name="spam", task="text_classification", kind="predictor")
    snapshot = make_snapshot(*(version for versions in ADAPTERS.versions.values() for version in versions), classifier)
    with make_client(backend, snapshot) as client:
        yield Endpoint(client, backend)


def test_there_are_enough() -> None:
    assert len(REQUESTS) >= 400
    assert {request.path for request in REQUESTS} == set(BODIES)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_hostile_request_is_a_400_that_names_its_field(endpoint: Endpoint, request_: Hostile) -> None:
    error = endpoint.refusal(request_.path, request_.body)
    assert error.param == request_.param, error.message


@pytest.mark.parametrize("request_", uncompilable(), ids=str)
def test_a_constraint_that_does_not_compile_is_a_400_that_names_it(endpoint: Endpoint, request_: Hostile) -> None:
    """Also one that stops a decoder: it is compiled and followed in a process with limits."""
    error = endpoint.refusal(request_.path, request_.body)
    assert (error.param, error.code) == (request_.param, "invalid_constraint"), error.message


def test_an_ordinary_request_is_answered_right_afterwards(endpoint: Endpoint) -> None:
    for path in BODIES.keys() - {RESPONSES}:  # the id of a response has the time of a store, which is not here
        assert endpoint.client.post(path, json=BODIES[path]).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {name: None for name in CHAT_FIELDS if name not in ("model", "messages")},
        {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "s"},
        {"prompt_cache_key": "k", "parallel_tool_calls": True, "reasoning_effort": "low", "verbosity": "low"},
        {"modalities": ["text"], "prediction": {"type": "content", "content": "a"}},
        {"stop": "a"},
        {"stop": ["a", "b"], "logit_bias": {"50256": -100}, "seed": 7, "top_k": -1, "top_p": 1, "min_p": 0},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"logprobs": True, "top_logprobs": 20, "n": 16, "temperature": 0.7},
        {"max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 3},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        with_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        with_tool({"type": "object", "properties": {"city": {"type": "string"}}}) | {"tool_choice": "none"},
        {"structured_outputs": {"choice": ["yes", 'n"o']}},
        {"structured_outputs": {"regex": r"[0-9]{3}-[0-9]{4}"}},
        {"structured_outputs": {"grammar": 'root ::= "a" root | "b"'}},
        {"messages": [USER, {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}]},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}, USER]},
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "3"},
            ]
        },
    ],
    ids=str,
)
def test_what_real_clients_send_is_accepted(endpoint: Endpoint, change: dict[str, Any]) -> None:
    before = len(endpoint.backend.calls)
    assert endpoint.client.post(CHAT, json=BODIES[CHAT] | change).status_code == 200
    ((_, _, sent),) = endpoint.backend.calls[before:]
    assert not {"user", "store", "metadata", "service_tier", "prediction"} & sent.keys()
    assert None not in sent.values()


SCALARS = st.none() | st.booleans() | st.integers(-3, 30) | st.floats(-3, 3) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "role", "content", "json", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(fields=st.dictionaries(st.sampled_from(sorted({*CHAT_FIELDS, "prompt", "best_of", "zzz"})), VALUES, max_size=6))
def test_any_fields_together_are_answered_or_refused(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    """Related fields with odd values: an engine gets the request, or the caller a 400."""
    for path in (CHAT, COMPLETIONS):
        for body in (BODIES[path] | fields, fields):
            response: Any = endpoint.client.post(path, json=body)
            if response.status_code != 200:
                error = check_error(response)
                assert error.status in (400, 404)
                assert error.code in CODES | {"model_not_found"}
                assert not INTERNALS.search(response.text)
