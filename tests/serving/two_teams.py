"""An endpoint with two teams, each of which has one thing of each kind."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, rows

OURS, THEIRS = "alpha", "bravo"


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
    completion: str
    """A stored chat completion."""
    response: str
    """A stored response."""
    eval: str
    run: str
    """A run of it that has completed."""
    item: str
    """The run's output item."""
    batch_file: str
    batch: str
    """A batch that has ended."""
    output_file: str

    @property
    def ids(self) -> list[str]:
        things = [self.file, self.result_file, self.upload, self.part, self.done_upload, self.job, self.running_job]
        things += [self.completion, self.response, self.eval, self.run, self.batch_file, self.batch, self.output_file]
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
    def store(self) -> Workspace:
        return self.server.store

    @property
    def our_work(self) -> Workspace:
        """Where our pods work."""
        return Workspace(self.store, OURS)

    def objects_of(self, team: Team) -> dict[str, str]:
        """Key → etag of all objects of a team's things."""
        return {info.key: info.etag for info in self.store.root.list() if any(found in info.key for found in team.ids)}


@contextmanager
def two_teams(store: Workspace) -> Iterator[World]:
    """Run an endpoint with both teams until the block ends."""
    add_base(store)
    with ExitStack() as stack:
        server = stack.enter_context(api_server(store, route_ttl_s=0.02))

        def client(key: str) -> httpx.Client:
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=server.url, headers=headers, timeout=60))

        # Both before the first request: a key newer than the latest listing may be unknown for a moment.
        keys = {team: api_keys.create(store, team, "tests")[1] for team in (OURS, THEIRS)}
        ours, theirs = (settle(server, client(key), team) for team, key in keys.items())
        yield World(server, ours, theirs, client(KEY))


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
    model = found["fine_tuned_model"]
    asked = {"model": model, "store": True, "metadata": {"of": f"{team}s-metadata"}}
    said = [{"role": "user", "content": f"{team}s-rows"}]
    completion = post("/v1/chat/completions", json=asked | {"messages": said})["id"]
    response = post("/v1/responses", json=asked | {"input": f"{team}s-rows"})["id"]
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
        model,
        completion,
        response,
        *settle_eval(post, client, team),
        *settled_batch(client, team),
    )


def settle_eval(post: Callable[..., dict[str, Any]], client: httpx.Client, team: str) -> tuple[str, str, str]:
    """Create an eval with a completed run. Returns their ids, and that of its output item."""
    texts = {"input": "{{ item.text }}", "reference": f"{team}s-rows"}
    asked = {
        "name": f"{team}s-eval",
        "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
        "testing_criteria": [{"type": "string_check", "name": "exact", "operation": "eq", **texts}],
    }
    made = post("/v1/evals", json=asked)["id"]
    source = {"type": "file_content", "content": [{"item": {"text": f"{team}s-rows"}}]}
    asked = {"name": f"{team}s-run", "data_source": {"type": "jsonl", "source": source}}
    run = post(f"/v1/evals/{made}/runs", json=asked)["id"]
    deadline = time.monotonic() + 30
    while client.get(f"/v1/evals/{made}/runs/{run}").json()["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return made, run, client.get(f"/v1/evals/{made}/runs/{run}/output_items").json()["data"][0]["id"]


def settled_batch(client: httpx.Client, team: str) -> tuple[str, str, str]:
    """Run a batch to its end; returns its input file, itself and its output file."""
    path = "/v1/chat/completions"
    line = {"custom_id": f"{team}s-line", "method": "POST", "url": path, "body": {"model": BASE, "messages": QUESTION}}
    content = (f"{team}s-lines.jsonl", json.dumps(line))
    file = client.post("/v1/files", files={"file": content}, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file, "endpoint": path, "completion_window": "24h", "metadata": {"of": f"{team}s-lines"}}
    batch = client.post("/v1/batches", json=asked).json()["id"]
    deadline = time.monotonic() + 30
    while (found := client.get(f"/v1/batches/{batch}").json())["status"] != "completed":
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return file, batch, found["output_file_id"]
