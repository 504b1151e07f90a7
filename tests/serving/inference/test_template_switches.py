"""The variables of a chat template with which a tuned model was trained, in its requests and in no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ray_jobs.registry.model import lineage_json, lineage_of
from ray_jobs.tasks.base import PromptSetting
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import ASK, make_client, make_snapshot, make_version

SWITCHES = {"enable_thinking": True}


def tuned(number: str = "1", **more: Any) -> Any:
    plain = make_version(number, **more)
    return replace(plain, lineage=replace(plain.lineage, prompts=PromptSetting(switches=SWITCHES)))


def sent(body: dict[str, Any], snapshot: Any, path: str = "/v1/chat/completions") -> Any:
    """`chat_template_kwargs` of the body that the engine gets."""
    backend = FakeBackend()
    assert make_client(backend, snapshot).post(path, json=body).status_code == 200
    ((_, _, body),) = backend.calls
    return body.get("chat_template_kwargs")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, SWITCHES),
        ({"chat_template_kwargs": {"x": 1}}, SWITCHES | {"x": 1}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"reasoning_effort": "none"}, None),
        ({"model": "base"}, None),
        ({"model": "base", "chat_template_kwargs": {"x": 1}}, {"x": 1}),
        ({"model": "other"}, None),
        ({"model": "greeter@1"}, SWITCHES),
    ],
)
def test_requests_get_the_switches_of_their_model(more: dict[str, Any], expected: Any) -> None:
    assert sent(ASK | more, make_snapshot(tuned(), make_version(name="other"))) == expected


def test_text_completions_and_full_fine_tunes() -> None:
    full = tuned(kind="full")
    assert sent(ASK, make_snapshot(full)) == SWITCHES
    body = {"model": "greeter", "prompt": "good day"}
    assert sent(body, make_snapshot(full), "/v1/completions") is None


def test_the_lineage_keeps_them_and_older_records_have_none() -> None:
    lineage = tuned().lineage
    document = lineage_json(lineage)
    assert document["prompts"] == {"switches": SWITCHES, "today": None}
    assert lineage_of(document) == lineage
    del document["prompts"]
    assert lineage_of(document).prompts == PromptSetting()
