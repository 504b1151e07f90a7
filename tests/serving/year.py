"""Teams that work day after day on a store in memory: jobs, files, uploads, requests and webhooks, and the chores."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import ClassVar

from ray_jobs import jobs
from ray_jobs.launch.launcher import Runner
from ray_jobs.tenancy import usage, webhooks
from ray_jobs.tenancy.answers import records as answers
from ray_jobs.tenancy.answers.records import StoredAnswer
from ray_jobs.tenancy.team_limits import TeamQuotas
from ray_jobs.tenancy.usage import UsageRow
from ray_jobs.tenancy.webhooks import EVENTS, Policy, Sender, outbox
from ray_jobs.tenancy.webhooks.outbox import OUTGOING
from serving.files.stored_files import FileRecord, Files
from serving.files.uploads import UploadRecord, Uploads
from serving.fine_tuning import records
from serving.fine_tuning.cleanup import chores
from serving.fine_tuning.records import ApiJob, ClosedJob, Launch
from serving.fine_tuning.service import FineTuningService
from serving.http.ids import new_id
from serving.stored.answers import StoredAnswers
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import NoTokens
from tests.storage.memory_store import MemoryClient, memory_store

JOBS, FILES, FLUSHES = 2, 2, 12
"""For each team and day."""
FILES_LIVE_DAYS = 30
ANSWERS, ANSWERS_LIVE_DAYS = 2, 30
_SPEC = make_spec("year").model_dump(mode="json")


class Replica:
    """What one API process does in the background."""

    def __init__(self, client: MemoryClient) -> None:
        self.store, _ = memory_store(client)
        self.files = Files(self.store, NoTokens(self.store))
        self.answers = StoredAnswers(self.store, TeamQuotas(), ANSWERS_LIVE_DAYS, lambda outcome: None)
        uploads = Uploads(self.store, self.files)
        self.chores = chores(self.store, self.files, uploads, self.answers, lambda team, identifier: False)
        self.sender = Sender(self.store, Policy(private=True, insecure=True))


class Year:
    """Teams, replicas and their clock."""

    SHOWN: ClassVar[tuple[str, ...]] = (
        "jobs", "files", "answers", "creates", "usage", "open", "places", "uploads", "webhooks-out", "index", "turns",
    )  # fmt: skip

    def __init__(self, teams: int, *, step_h: int = 1) -> None:
        """`step_h`: hours between looks at the chores, a divisor of 24."""
        self.step_h = step_h
        self.store, self.client = memory_store()
        self.replicas = [Replica(self.client) for _ in range(2)]
        self.teams = [f"team-{number:03d}" for number in range(teams)]
        self.chores_cost = 0
        """Requests of the last day's chores."""
        for team in self.teams:
            webhooks.add(self.store, team, "http://127.0.0.1/hook", EVENTS, Policy(private=True, insecure=True))

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.client.clock.at_s, UTC)

    def live_a_day(self) -> None:
        self.chores_cost = 0
        for hour in range(0, 24, self.step_h):
            for number, team in enumerate(self.teams):
                if number % 24 // self.step_h * self.step_h == hour:
                    self._work(team)
            self.client.clock.at_s += 3600 * self.step_h
            self._deliver()
            before = self.client.made
            for replica in self.replicas:
                for chore in replica.chores:
                    chore.in_turn(replica.store)
            self.chores_cost += self.client.made - before

    def counts(self) -> Counter[str]:
        """Objects by what they are."""
        found: Counter[str] = Counter()
        for key in self.client.objects:
            first, *rest = key.removeprefix("kitae/").split("/")
            found[rest[1] if first == "teams" else "contents" if first == "files" else first] += 1
        return found

    def _work(self, team: str) -> None:
        now_s = self.client.clock.at_s
        for number in range(JOBS):
            self._job(team, new_id(records.KIND, now_s=now_s + number))
        files = self.replicas[0].files
        for number in range(FILES):
            identifier = new_id("file", now_s=now_s + number)
            self.store.put(f"files/{team}/{identifier}/rows.jsonl", b"{}")
            files._put(
                FileRecord(
                    id=identifier, team=team, key_id="k", filename="a", purpose="fine-tune", bytes=2,
                    created_at=int(now_s), expires_at=int(now_s) + FILES_LIVE_DAYS * 86_400, key="k",
                )
            )  # fmt: skip
        upload = UploadRecord(
            id=new_id("upload", now_s=now_s), team=team, key_id="k", filename="a", purpose="fine-tune", bytes=2,
            created_at=int(now_s), expires_at=int(now_s) + 3600,
        )  # fmt: skip
        self.store.put_json(f"teams/{team}/uploads/{upload.id}.json", upload.model_dump(mode="json"))
        self.store.put(f"uploads/{team}/{upload.id}/part", b"{}")
        for number in range(ANSWERS):
            answer = StoredAnswer(
                id=new_id("chatcmpl", now_s=now_s + number), team=team, key_id="k", model="m@1", requested_model="m",
                created_at=int(now_s), metadata={"env": "prod"}, input=[], answer={},
            )  # fmt: skip
            answers.write(self.store, "chat", answer)
        day = self.now.date()
        row = UsageRow(day=day, team=team, key_id="k", model="m", kind="inference", requests=1)
        for writer in ("api-0", "api-1"):
            for number in range(1, FLUSHES + 1):
                usage.write(self.store, team, day, f"{writer}-{day.toordinal()}", number, [row])

    def _job(self, team: str, identifier: str) -> None:
        now_s = self.client.clock.at_s
        records.claim(self.store, team, identifier, "request", identifier, retried=False, now_s=now_s)
        records.reserve_team_slot(self.store, team, identifier, 100, now_s)
        records.mark_open(self.store, team, "k", identifier)
        api = ApiJob(
            id=identifier, team=team, key_id="k", created_at=int(now_s), model="m", training_file="f",
            validation_file=None, suffix=None, seed=1, metadata={"env": "prod"}, integrations=None, method={},
            hyperparameters={}, spec=_SPEC, job_id=f"{identifier}-0123456789",
            closed=ClosedJob(status="succeeded", finished_at=int(now_s)),
        )  # fmt: skip
        records.put_new(self.store, api)
        webhooks.enqueue(self.store, team, EVENTS[0], identifier, at=self.now)
        row = UsageRow(day=self.now.date(), team=team, key_id="k", model=identifier, kind="training", requests=1)
        usage.write(self.store, team, row.day, api.job_id, 1, [row])
        records.unmark_open(self.store, "k", identifier)

    def _deliver(self) -> None:
        for key, _, name in self.replicas[0].sender._due():
            event = key.removeprefix(outbox.PREFIX).removesuffix(".json")
            document = OUTGOING.read(self.store, event)
            assert document is not None
            claimed, _ = outbox.claim(document, self.now, name)
            ended = outbox.settle(claimed, claimed, {name: ("delivered", 200)}, self.now, 0.0)
            self.store.put_json(OUTGOING.key(event), ended.model_dump(mode="json"))


def tick_over(open_jobs: int, ticks: int = 10) -> tuple[list[int], float]:
    """(requests to the store of each tick, mean seconds of a tick) with that many running jobs, once all are known."""
    store, client = memory_store()
    launcher = FakeLauncher()
    now_s = client.clock.at_s
    for number in range(open_jobs):
        identifier = new_id(records.KIND, now_s=now_s + number / 1000)
        spec = make_spec(identifier, team="blue")
        api = ApiJob(
            id=identifier, team="blue", key_id="k", created_at=0, model="m", training_file="f", validation_file=None,
            suffix=None, seed=1, metadata=None, integrations=None, method={}, hyperparameters={},
            spec=spec.model_dump(mode="json"), job_id=spec.job_id,
            launches=(Launch(number=1, at=now_s, attempt_before=0),),
        )  # fmt: skip
        records.mark_open(store, "blue", "k", identifier)
        records.put_new(store, api)
        jobs.create(store, spec)
        launcher.known[f"{identifier}-1"] = Runner("pending")
    tuning = FineTuningService(store, Files(store, NoTokens(store)), launcher)
    costs, began_s = list[int](), 0.0
    for tick in range(-(-open_jobs // 64) + ticks):
        if tick == -(-open_jobs // 64):
            costs, began_s = [], time.monotonic()
        client.clock.at_s += 2
        before = client.made
        tuning.reconcile()
        costs.append(client.made - before)
    return costs, (time.monotonic() - began_s) / ticks
