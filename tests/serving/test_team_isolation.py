"""Another team's things get the same response as things that do not exist, and requests do not change them.

Every operation that names a thing is called with another team's name and with an unknown name.
`test_every_operation_is_probed` fails for an operation that is missing here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ray_jobs import registry
from ray_jobs.errors import RegistryError
from ray_jobs.registry import shares
from ray_jobs.storage import Workspace
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.serving.api_harness import BASE, register
from tests.serving.isolation_probes import FIELDS, HARMLESS, LISTS, NAMES_NOTHING, PROBES
from tests.serving.two_teams import ID, OURS, QUESTION, THEIRS, Team, World, two_teams

SECRETS = (THEIRS, "bravos-rows", "bravos-suffix", "bravos-metadata", "question 1000")
"""Texts of the other team that no response may contain, besides its ids."""


@pytest.fixture(scope="module")
def world(module_store: Workspace) -> Iterator[World]:
    with two_teams(module_store) as world:
        yield world


def test_every_operation_is_probed(world: World) -> None:
    document = world.operator.get("/openapi.json").json()
    operations = {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert operations.keys() == PROBES.keys() | LISTS.keys() | NAMES_NOTHING
    assert not [name for name in NAMES_NOTHING | LISTS.keys() if "{" in name]
    named = {name: fields_of(document, operation) - HARMLESS for name, operation in operations.items()}
    assert {name: fields for name, fields in named.items() if fields} == FIELDS


def fields_of(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """Return the field names of an operation's body."""
    found: set[str] = set()
    for body in operation.get("requestBody", {}).get("content", {}).values():
        schema = body["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        found |= schema["properties"].keys()
    return found


def test_no_route_is_outside_the_document(world: World) -> None:
    document = world.operator.get("/openapi.json").json()["paths"]
    assert world.server.paths() - document.keys() == {"/health", "/openapi.json"}


def unknown(name: str, theirs: Team) -> str:
    """Return an unknown name of the same form."""
    return ID.sub(lambda found: new_id("x", now_s=time.time()).removeprefix("x-"), name)


def masked(answer: httpx.Response, name: str) -> tuple[int, dict[str, str], Any]:
    """Return a response without request-specific parts and without suggested names."""
    body = answer.json()
    for holder in (body["error"], *body["error"].get("details", [])):
        text = ID.sub("ID", holder["message"].replace(name, "NAME"))
        holder["message"] = re.sub(r"; (did you mean .*\?|deployed: .*)$", "; HINT", text)
    passing = ("x-request-id", "date", "content-length")
    return (
        answer.status_code,
        {key: value for key, value in answer.headers.items() if key not in passing},
        body,
    )


def reveals_nothing(answer: httpx.Response, world: World, *, asked: str) -> None:
    """Assert that a response contains nothing of the other team except the requested name."""
    text = (answer.text + json.dumps(dict(answer.headers))).replace(asked, "")
    for found in ID.findall(asked):
        text = text.replace(found, "")
    for secret in (*SECRETS, *world.theirs.ids, world.theirs.key_id):
        assert secret not in text, secret


@pytest.mark.parametrize("operation", PROBES)
def test_another_teams_things_get_the_response_of_unknown_ones(world: World, operation: str) -> None:
    before = world.objects_of(world.theirs)
    asked = 0
    for probe in PROBES[operation]:
        for name in probe.names(world.theirs):
            other = unknown(name, world.theirs)
            mine, none = probe.ask(world.ours.client, name), probe.ask(world.ours.client, other)
            assert mine.status_code == probe.status, (name, mine.text)
            assert masked(mine, name) == masked(none, other)
            if probe.param:
                assert mine.json()["error"]["param"] == probe.param
            reveals_nothing(mine, world, asked=name)
            asked += 1
    assert asked
    assert before
    assert world.objects_of(world.theirs) == before


@pytest.mark.parametrize("operation", LISTS)
def test_lists_contain_only_the_teams_own_things(world: World, operation: str) -> None:
    path = operation.removeprefix("GET ")
    for query in LISTS[operation]:
        full = path + query.format_map(vars(world.theirs))
        answer = world.ours.client.get(full)
        assert answer.status_code == 200, answer.text
        reveals_nothing(answer, world, asked="")
    assert world.ours.client.get(path).json()["data"]
    assert THEIRS in world.theirs.client.get(path).text  # so the check above could fail


def test_probes_of_the_teams_own_things_succeed(world: World) -> None:
    """The same requests work for own things; otherwise the other tests would prove nothing."""
    client, own = world.ours.client, world.ours
    reached = 0
    for operation, probes in PROBES.items():
        if "/permissions" in operation or operation.startswith("DELETE"):  # needs an admin key
            continue
        if operation.endswith(("/cancel", "/pause", "/resume", "/complete")):
            continue
        for probe in probes[:1]:
            if operation == "POST /v1/evals/{eval_id}/runs/{run_id}":  # cancels it
                continue
            making = ("POST /v1/files", "POST /v1/fine_tuning/jobs", "POST /v1/batches")
            if operation in (*making, "POST /v1/uploads/{upload_id}/parts"):
                continue
            answer = probe.ask(client, probe.names(own)[0])
            code = (answer.json().get("error") or {}).get("code") if "json" in answer.headers["content-type"] else None
            assert answer.status_code == 200 or code == "wrong_task", (operation, answer.text)
            reached += 1
    assert reached == 26


def test_a_key_may_create_jobs_of_its_own_team_only(world: World) -> None:
    body = {"model": BASE, "training_file": world.ours.file}
    existing, unknown_team = (
        world.ours.client.post("/v1/fine_tuning/jobs", json=body | {"team": team}) for team in (THEIRS, "nowhere")
    )
    assert existing.status_code == unknown_team.status_code == 403
    assert existing.text.replace(THEIRS, "TEAM") == unknown_team.text.replace("nowhere", "TEAM")
    assert world.ours.client.post("/v1/fine_tuning/jobs", json=body | {"team": OURS, "dry_run": True}).is_success


def test_idempotency_keys_are_scoped_to_their_team(world: World) -> None:
    """Another team's `Idempotency-Key` neither finds its job nor reveals that it was used."""
    for key in ("the same", "another"):
        body = {"model": BASE, "training_file": world.ours.file, "seed": 77, "metadata": {"of": key}}
        headers = {"Idempotency-Key": f"{key} of {OURS}"}
        assert world.ours.client.post("/v1/fine_tuning/jobs", json=body, headers=headers).is_success
        answer = world.theirs.client.post(
            "/v1/fine_tuning/jobs", json=body | {"training_file": world.theirs.file}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["organization_id"] == THEIRS


def test_a_model_is_visible_while_it_is_shared(world: World) -> None:
    client, name = world.ours.client, world.theirs.model

    def answers() -> tuple[int, int, bool]:
        chat = client.post("/v1/chat/completions", json={"model": name, "messages": QUESTION})
        return chat.status_code, client.get(f"/v1/models/{name}").status_code, name in client.get("/v1/models").text

    def becomes(wanted: tuple[int, int, bool]) -> None:
        deadline = time.monotonic() + 5
        while (found := answers()) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    becomes((404, 404, False))
    for whom in ({"teams": [OURS]}, {"everyone": True}):
        shares.share(world.store, world.theirs.job, **whom)
        becomes((200, 200, True))
        # Sharing does not reveal its job or allow deleting it.
        assert client.get(f"/v1/fine_tuning/jobs/{world.theirs.job}").status_code == 404
        assert client.delete(f"/v1/models/{name}").status_code in (403, 404)
        shares.unshare(world.store, world.theirs.job)
        becomes((404, 404, False))
    assert world.theirs.client.get(f"/v1/models/{name}").status_code == 200


def test_the_operator_sees_every_model_and_its_own_teams_files_and_jobs(world: World) -> None:
    operator = world.operator
    listed = operator.get("/v1/models").text
    for team in (world.ours, world.theirs):
        assert team.model in listed
        assert operator.get(f"/v1/models/{team.model}").json()["owned_by"] in (OURS, THEIRS)
        assert operator.post("/v1/chat/completions", json={"model": team.model, "messages": QUESTION}).is_success
        assert operator.get(f"/v1/files/{team.file}").status_code == 404
        assert operator.get(f"/v1/fine_tuning/jobs/{team.job}").status_code == 404


def test_a_team_deletes_only_models_whose_name_it_owns(world: World) -> None:
    register(Workspace(world.store, THEIRS), make_spec("mixed", base_model=BASE), THEIRS)
    with pytest.raises(RegistryError, match="belongs to team"):
        register(world.our_work, make_spec("mixed", base_model=BASE), OURS)
    assert world.ours.client.delete("/v1/models/mixed").status_code == 404
    assert [version.version for version in registry.versions(Workspace(world.store, THEIRS), "mixed")] == ["1"]
    assert world.theirs.client.delete("/v1/models/mixed").status_code == 200
