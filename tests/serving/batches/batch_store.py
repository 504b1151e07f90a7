"""Batches on a store in memory, with a stand-in for the endpoint that answers their lines."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.storage import Workspace
from ray_jobs.tenancy.api_keys import Limits
from ray_jobs.tenancy.audit import Actor
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.access.auth import OPERATOR, Caller
from serving.access.in_process import Answer
from serving.batches.ending import Ending
from serving.batches.runner import BatchRunner
from serving.batches.service import Batches
from serving.batches.work import Pace
from serving.files.stored_files import Files
from serving.http.batch_types import BatchObject, CreateBatch
from tests.serving.api_harness import NoTokens
from tests.storage.memory_store import MemoryClient, memory_store

TEAM = "blue"
CHAT = "/v1/chat/completions"
ACTOR = Actor(name="tests", via="api")
MAX_LINE = 2000


def request_line(name: str, **changes: Any) -> dict[str, Any]:
    """A line of an input file; `name` is its custom_id."""
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {name}"}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body} | changes


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def echo(body: dict[str, Any]) -> Answer:
    """An answer with one token read and two generated."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return Answer(200, "r", {"said": body["messages"][0]["content"], "usage": usage})


@dataclass(eq=False)
class BatchWorld:
    """A store with batches, their service, and runners that can be killed."""

    respond: Any = echo
    pace: Pace = field(default_factory=lambda: Pace(lines=16, every_s=0.02, retry_s=0.001))
    quotas: TeamQuotas = field(default_factory=TeamQuotas)
    store: Workspace = field(init=False)
    client: MemoryClient = field(init=False)
    asked: Counter[str] = field(default_factory=Counter)
    """Question → how often it was asked."""

    def __post_init__(self) -> None:
        self.store, self.client = memory_store(team=TEAM)
        self.files = Files(self.store, NoTokens(self.store), self.quotas)
        self.batches = Batches(self.store, self.files)

    @property
    def clock_s(self) -> float:
        return self.client.clock.at_s

    def pass_time(self, seconds: float) -> None:
        self.client.clock.at_s += seconds

    def upload(self, content: bytes, team: str = TEAM, purpose: str = "batch") -> str:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)
            return self.files.create(team, "k", Path(file.name), filename="in.jsonl", purpose=purpose).id

    def create(self, content: bytes, *, caller: Caller | None = None, team: str = TEAM, **fields: Any) -> BatchObject:
        caller = caller or Caller(OPERATOR.key_id, team, Limits(), admin=True)
        given = {"input_file_id": self.upload(content, caller.team), "endpoint": CHAT, "completion_window": "24h"}
        body = CreateBatch.model_validate(given | fields)
        return self.batches.create(body, caller, ACTOR, key=None, retried=False)

    def get(self, batch: BatchObject, team: str = TEAM) -> BatchObject:
        return self.batches.get(team, batch.id)

    def cancel(self, batch: BatchObject) -> BatchObject:
        return self.batches.cancel(TEAM, batch.id, ACTOR, retried=False)

    def runner(self) -> BatchRunner:
        """A runner as another process has it: with a store client of its own."""
        store, _ = memory_store(self.client, team=TEAM)
        files = Files(store, NoTokens(store), self.quotas)
        runner = BatchRunner(store, Ending(store, files, MAX_LINE), self._post, every_s=0.02, pace=self.pace)
        self.batches.wake = runner.wake
        return runner

    async def run_until(self, done: Callable[[], bool], seconds: float = 20.0) -> None:
        """Run one runner until a condition holds, then stop it."""
        stop = asyncio.Event()
        running = asyncio.create_task(self.runner().run(stop))
        async with asyncio.timeout(seconds):
            while not done():
                await asyncio.sleep(0.005)
        stop.set()
        await running

    async def run_to_end(self, batch: BatchObject) -> BatchObject:
        await self.run_until(lambda: self.is_over(batch))
        return self.get(batch)

    def is_over(self, batch: BatchObject) -> bool:
        return batch.id not in self.batches.store.get_json(f"open-batches/{TEAM}.json")["batches"]

    def lines_of(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """custom_id → the line of an output file, which must have each once."""
        if file_id is None:
            return {}
        content = b"".join(self.files.content(self.files.get(TEAM, file_id)))
        lines = [json.loads(line) for line in content.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a line occurs twice"
        return found

    async def _post(self, path: str, body: dict[str, Any], caller: Caller, *, background: bool = False) -> Answer:
        assert path == CHAT
        assert background
        self.asked[body["messages"][0]["content"]] += 1
        answer: Answer = await self.respond(body)
        return answer
