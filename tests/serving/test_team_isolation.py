"""Another team's things get the same response as things that do not exist, and requests do not change them.

Every operation that names a thing is called with another team's name and with an unknown name.
`test_every_operation_is_probed` fails for an operation that is missing here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ray_jobs.registry import shares
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, register, rows

OURS, THEIRS = "alpha", "bravo"
SECRETS = (THEIRS, "bravos-rows", "bravos-suffix", "bravos-metadata", "question 1000")
"""Texts of the other team that no response may contain, besides its ids."""
QUESTION = [{"role": "user", "content": "who are you"}]
ID = re.compile(r"(?<=[-_:])[0-9a-hjkmnp-tv-z]{26}")


@dataclass(frozen=True)
class Team:
    """One team's client and things."""

    client: httpx.Client
    key_id: str
    file: str
    result_file: str
    upload: str
    """Pending, with one part."""
    part: str
    done_upload: str
    job: str
    """A job that has succeeded."""
    running_job: str
    model: str
    """API name of its model."""

    @property
    def ids(self) -> list[str]:
        things = (self.file, self.result_file, self.upload, self.part, self.done_upload, self.job, self.running_job)
        return [ID.search(thing)[0] for thing in things if ID.search(thing)]  # type: ignore[index]  # it is one

    @property
    def models(self) -> list[str]:
        """All names of its model."""
        name = self.job
        labels = ("1", "2", "3", "champion", "ckpt-step-10", "nothing")
        api_names = [self.model, f"{self.model}:ckpt-step-10", f"ft:x:y:z:{self.job.removeprefix('ftjob-')}"]
        return [*api_names, name, *(f"{name}@{label}" for label in labels)]


@dataclass(frozen=True)
class World:
    """An endpoint with two teams and its operator."""

    server: ApiServer
    ours: Team
    theirs: Team
    operator: httpx.Client

    @property
    def store(self) -> Store:
        return self.server.store

    def objects_of(self, team: Team) -> dict[str, str]:
        """Key → etag of all objects of a team's things."""
        return {info.key: info.etag for info in self.store.list() if any(found in info.key for found in team.ids)}


@pytest.fixture(scope="module")
def world(module_store: Store) -> Iterator[World]:
    store = module_store
    add_base(store)
    with ExitStack() as stack:
        server = stack.enter_context(api_server(store, route_ttl_s=0.02))
        clients = {}
        for name, secret in (
            (OURS, api_keys.create(store, OURS, "tests")),
            (THEIRS, api_keys.create(store, THEIRS, "tests")),
        ):
            headers = {"Authorization": f"Bearer {secret[1]}"}
            clients[name] = httpx.Client(base_url=server.url, headers=headers, timeout=60)
        operator = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        for client in (*clients.values(), operator):
            stack.enter_context(client)
        yield World(server, settle(server, clients[OURS], OURS), settle(server, clients[THEIRS], THEIRS), operator)


def settle(server: ApiServer, client: httpx.Client, team: str) -> Team:
    """Create one thing of each kind for a team."""
    content = rows(12, start=1000 if team == THEIRS else 0)

    def post(path: str, **arguments: Any) -> dict[str, Any]:
        answer = client.post(path, **arguments)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def upload() -> tuple[str, str]:
        described = {"filename": f"{team}s-rows.jsonl", "purpose": "fine-tune", "bytes": len(content)}
        made = post("/v1/uploads", json=described)["id"]
        return made, post(f"/v1/uploads/{made}/parts", files={"data": content})["id"]

    file = post("/v1/files", files={"file": (f"{team}s-rows.jsonl", content)}, data={"purpose": "fine-tune"})["id"]
    done_upload, done_part = upload()
    post(f"/v1/uploads/{done_upload}/complete", json={"part_ids": [done_part]})
    pending, part = upload()
    asked = {
        "model": BASE,
        "training_file": file,
        "suffix": f"{team}s-suffix",
        "metadata": {"of": f"{team}s-metadata"},
        "evaluation": {"must_beat_base": False},
    }
    job = post("/v1/fine_tuning/jobs", json=asked, headers={"Idempotency-Key": "the same"})["id"]
    deadline = time.monotonic() + 30
    while (found := client.get(f"/v1/fine_tuning/jobs/{job}").json())["status"] != "succeeded":
        assert time.monotonic() < deadline, found
        server.run_launched()
        time.sleep(0.05)
    running = post("/v1/fine_tuning/jobs", json=asked | {"seed": 2})["id"]
    while client.get(f"/v1/fine_tuning/jobs/{running}").json()["status"] == "validating_files":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    key_id = server.store.get_json(f"teams/{team}/jobs/{job}.json")["key_id"]
    return Team(
        client,
        key_id,
        file,
        found["result_files"][0],
        pending,
        part,
        done_upload,
        job,
        running,
        found["fine_tuned_model"],
    )


# --- probes ----------------------------------------------------------------------------------------------------------

Ask = Callable[[httpx.Client, str], httpx.Response]
Named = Callable[[Team], list[str]]
"""Names of a team's things to put into a request."""


@dataclass(frozen=True)
class Probe:
    """A request that names one thing."""

    names: Named
    ask: Ask
    status: int = 404
    param: str = ""
    """The error's `param`, if it is set."""


def at(method: str, path: str, names: Named, **arguments: Any) -> Probe:
    return Probe(names, lambda client, name: client.request(method, path.replace("{}", name), **arguments))


def files(team: Team) -> list[str]:
    return [team.file, team.result_file]


def uploads(team: Team) -> list[str]:
    return [team.upload, team.done_upload]


def jobs(team: Team) -> list[str]:
    return [team.job, team.running_job]


def models(team: Team) -> list[str]:
    return team.models


def with_model(path: str, **body: Any) -> list[Probe]:
    return [Probe(models, lambda client, name: client.post(path, json={"model": name, **body}))]


def creating(field: str, names: Named, **body: Any) -> Probe:
    def ask(client: httpx.Client, name: str) -> httpx.Response:
        own = client.get("/v1/files?purpose=fine-tune&limit=1").json()["data"][0]["id"]
        return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": own, **body, field: name})

    return Probe(names, ask, status=400, param=field)


def searching(client: httpx.Client, name: str) -> httpx.Response:
    own = client.get("/v1/files?purpose=fine-tune&limit=1").json()["data"][0]["id"]
    search = {"space": {"base_model": [BASE, name]}}
    return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": own, "search": search})


def completing(client: httpx.Client, name: str) -> httpx.Response:
    """Complete the client's own upload with another team's part."""
    described = {"filename": "x.jsonl", "purpose": "fine-tune", "bytes": 1}
    upload = client.post("/v1/uploads", json=described).json()["id"]
    answer = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [name]})
    client.post(f"/v1/uploads/{upload}/cancel")
    return answer


def uploading(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": ("x.jsonl", rows())}, data={"purpose": "fine-tune", "model": name})


def reading(client: httpx.Client, name: str) -> httpx.Response:
    """Name rows by store address instead of file id."""
    return client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": name, "data": {"train": name}})


PROBES: dict[str, list[Probe]] = {
    "GET /v1/files/{file_id}": [at("GET", "/v1/files/{}", files)],
    "GET /v1/files/{file_id}/content": [at("GET", "/v1/files/{}/content", files)],
    "DELETE /v1/files/{file_id}": [at("DELETE", "/v1/files/{}", files)],
    "POST /v1/files": [Probe(models, uploading, 400, "model")],
    "POST /v1/uploads/{upload_id}/parts": [at("POST", "/v1/uploads/{}/parts", uploads, files={"data": b"x"})],
    "POST /v1/uploads/{upload_id}/complete": [
        at("POST", "/v1/uploads/{}/complete", uploads, json={"part_ids": ["part-x"]}),
        Probe(lambda team: [team.part], completing, 400, "part_ids"),
    ],
    "POST /v1/uploads/{upload_id}/cancel": [at("POST", "/v1/uploads/{}/cancel", uploads)],
    "POST /v1/fine_tuning/jobs": [
        creating("training_file", files),
        creating("validation_file", files),
        creating("model", models),
        Probe(models, searching, 400, "search.space.base_model"),
        Probe(files, reading, 400, "training_file"),
    ],
    **{
        f"{method} /v1/fine_tuning/jobs/{{job_id}}{path}": [at(method, f"/v1/fine_tuning/jobs/{{}}{path}", jobs)]
        for method, path in (
            ("GET", ""),
            ("POST", "/cancel"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("GET", "/events"),
            ("GET", "/checkpoints"),
        )
    },
    "GET /v1/models/{model}": [at("GET", "/v1/models/{}", models)],
    "DELETE /v1/models/{model}": [at("DELETE", "/v1/models/{}", models)],
    "POST /v1/chat/completions": with_model("/v1/chat/completions", messages=QUESTION),
    "POST /v1/completions": with_model("/v1/completions", prompt="who are you"),
    "POST /v1/embeddings": with_model("/v1/embeddings", input="who are you"),
    "POST /v1/classify": with_model("/v1/classify", input="who are you"),
}
LISTS = {
    "GET /v1/models": [""],
    "GET /v1/files": ["", "?purpose=fine-tune-results", "?order=asc", "?after={file}", "?order=asc&after={file}"],
    "GET /v1/fine_tuning/jobs": ["", "?after={job}", "?metadata[of]=bravos-metadata"],
}
FIELDS = {
    "POST /v1/files": {"model"},
    "POST /v1/uploads/{upload_id}/parts": {"data"},
    "POST /v1/uploads/{upload_id}/complete": {"part_ids"},
    "POST /v1/fine_tuning/jobs": {"model", "training_file", "validation_file", "search", "data", "team"},
    "POST /v1/chat/completions": {"model"},
    "POST /v1/completions": {"model"},
    "POST /v1/embeddings": {"model"},
    "POST /v1/classify": {"model"},
}
"""Body fields that can name a thing; each has a probe."""
HARMLESS = {
    *("file", "purpose", "task", "expires_after", "expires_after[anchor]", "expires_after[seconds]", "md5"),
    *("filename", "bytes", "mime_type", "suffix", "seed", "metadata", "integrations", "method"),
    *("hyperparameters", "lora_rank", "training", "compute", "evaluation", "serving", "priority", "dry_run"),
    *("messages", "prompt", "input", "stream", "n", "max_tokens", "temperature", "encoding_format"),
}
"""Body fields that cannot name a thing."""
NAMES_NOTHING = {"POST /v1/uploads", "GET /healthz", "GET /readyz", "GET /metrics"}


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
    assert world.server.paths() - document.keys() == {"/openapi.json"}


# --- responses -------------------------------------------------------------------------------------------------------


def unknown(name: str, theirs: Team) -> str:
    """Return an unknown name of the same form."""
    return ID.sub(lambda found: new_id("x").removeprefix("x-"), name)


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
        full = path + query.format(file=world.theirs.file, job=world.theirs.job)
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
        if operation.startswith("DELETE") or operation.endswith(("/cancel", "/pause", "/resume", "/complete")):
            continue
        for probe in probes[:1]:
            if operation in ("POST /v1/files", "POST /v1/fine_tuning/jobs", "POST /v1/uploads/{upload_id}/parts"):
                continue
            answer = probe.ask(client, probe.names(own)[0])
            code = (answer.json().get("error") or {}).get("code") if "json" in answer.headers["content-type"] else None
            assert answer.status_code == 200 or code == "wrong_task", (operation, answer.text)
            reached += 1
    assert reached == 10


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


def test_a_model_with_versions_of_two_teams_is_deleted_by_neither(world: World) -> None:
    for team in (OURS, THEIRS):
        register(world.store, make_spec("mixed", team=team, base_model=BASE), team)
    assert world.ours.client.delete("/v1/models/mixed").status_code == 403
    assert [info.key for info in world.store.list("models/mixed") if info.key.endswith("manifest.json")] == [
        "models/mixed/1/manifest.json",
        "models/mixed/2/manifest.json",
    ]
