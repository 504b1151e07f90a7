"""API names (`ft:…`) of fine-tuned models."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.registry import api_names
from serving.access.auth import OPERATOR
from serving.http.errors import ApiError
from serving.inference.router import resolve
from tests.serving.fake_backend import FakeBackend
from tests.serving.inference.rollouts import API_NAME, JOB, ask
from tests.serving.routing import make_client, make_snapshot, make_version


def test_an_api_name_contains_base_team_suffix_and_id() -> None:
    version = make_version(name=JOB, team="support")
    assert api_names.tuned_name(JOB, "base", "support", "faq") == f"ft:base:support:faq:{JOB[6:]}"
    assert api_names.api_name(version, checkpoint="ckpt-step-8") == f"ft:base:support::{JOB[6:]}:ckpt-step-8"
    assert api_names.api_name(make_version()) == "greeter"


@given(st.text(max_size=64), st.none() | st.integers(1, 10**6), st.from_regex(r"[a-z0-9]{4,26}", fullmatch=True))
def test_an_api_name_maps_back_to_its_model_for_any_suffix(suffix: str, step: int | None, job: str) -> None:
    checkpoint = None if step is None else f"ckpt-step-{step}"
    name = api_names.tuned_name(f"ftjob-{job}", "base", "support", suffix, checkpoint)
    assert api_names.registry_ref(name) == f"ftjob-{job}" + (f"@{checkpoint}" if checkpoint else "")


@pytest.mark.parametrize(
    "name", ["greeter", "greeter@2", "ft:a:b:c", "ft:a:b:c:D", "ft:a:b:c:d:e", "ft:a:b:c:d:ckpt-step-"]
)
def test_other_names_are_not_api_names(name: str) -> None:
    assert api_names.registry_ref(name) == name


TUNED = make_snapshot(
    *(make_version(number, name=JOB, team="support") for number in ("1", "2", "3")),
    aliases={JOB: {"champion": "3", "ckpt-step-4": "1", "ckpt-step-12": "2"}},
)


def test_models_created_through_the_api_are_listed_by_api_name_with_their_checkpoints() -> None:
    names = TUNED.names(OPERATOR)
    assert names == ["base", API_NAME, f"{API_NAME}:ckpt-step-4", f"{API_NAME}:ckpt-step-12"]
    assert [resolve(TUNED, name, OPERATOR).public_name for name in names] == names


@pytest.mark.parametrize(
    ("asked", "exact", "shown"),
    [
        (API_NAME, f"{JOB}@3", API_NAME),
        (f"ft:other:words:here:{JOB[6:]}", f"{JOB}@3", API_NAME),
        (f"{API_NAME}:ckpt-step-4", f"{JOB}@1", f"{API_NAME}:ckpt-step-4"),
        (JOB, f"{JOB}@3", API_NAME),
        (f"{JOB}@3", f"{JOB}@3", API_NAME),
        (f"{JOB}@2", f"{JOB}@2", f"{API_NAME}:ckpt-step-12"),
    ],
)
def test_an_api_name_resolves_and_is_the_public_name(asked: str, exact: str, shown: str) -> None:
    route = resolve(TUNED, asked, OPERATOR)
    assert (route.adapter, route.public_name) == (exact, shown)


@pytest.mark.parametrize("missing", [f"{API_NAME}:ckpt-step-5", "ft:base:support::unknown"])
def test_an_unknown_api_name_is_not_found(missing: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(TUNED, missing, OPERATOR)
    assert caught.value.status == 404


def test_responses_streams_and_model_cards_use_the_api_name() -> None:
    said = f'"model": "{JOB}@3"'
    backend = FakeBackend()
    with make_client(backend, TUNED) as client:
        assert ask(client, API_NAME).json()["model"] == API_NAME
        events = [
            line.removeprefix("data: ") for line in ask(client, API_NAME, text=said, stream=True).text.splitlines()
        ]
        chunks = [json.loads(event) for event in events if event.startswith("{")]
        assert {chunk["model"] for chunk in chunks} == {API_NAME}
        assert " ".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).strip() == said
        assert client.get(f"/v1/models/{JOB}").json()["id"] == API_NAME
        assert API_NAME in [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert {body["model"] for _, _, body in backend.calls} == {f"{JOB}@3"}
    assert backend.closed == len(backend.calls)
