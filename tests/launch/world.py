"""A cluster with two job services, moved by named events, and the invariants that hold after each event.

One job service is the one that users see, a second one works beside it. Kueue preempts, runners crash, users pause and
resume, and the API server fails in every way that the fake offers. `run` ends with `World.settle`: all faults are
removed, and every job must end.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from ray_jobs import jobs
from ray_jobs.cluster.informer import Informer
from ray_jobs.cluster.kinds import CLUSTER_QUEUE, LOCAL_QUEUE, RAY_JOB, Kind, Object
from ray_jobs.cluster.settings import parse
from ray_jobs.errors import ClusterError, JobError
from ray_jobs.jobs import Job, Launched
from ray_jobs.launch.kubernetes import KubernetesLauncher
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store, Workspace
from serving.files.stored_files import Files
from serving.fine_tuning import records
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.service import FineTuningService
from serving.http.errors import ApiError
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.cluster.builders import SETTINGS, cluster_queue, local_queue
from tests.cluster.fake_kubernetes import FakeKubernetes, fake_kubernetes
from tests.conftest import StoreServer
from tests.kueue.fake_kueue import FakeKueue
from tests.serving.api_harness import NoTokens

TEAM, BLUE = "blue", "kitae-blue"
JOBS = 2
LATER = {
    "validating_files": {"queued", "running", "paused", "succeeded", "failed", "cancelled"},
    "queued": {"running", "paused", "succeeded", "failed", "cancelled"},
    "running": {"paused", "succeeded", "failed", "cancelled"},
    "paused": {"queued", "running", "succeeded", "failed", "cancelled"},
}
"""Statuses that may follow a status without an eviction."""
OVER = ("succeeded", "failed", "cancelled")
CONTROLLERS = ("reconcile", "advance", "preempt", "begin", "check", "finish", "crash", "expire", "collect")
"""Events that change the server's objects directly, as Kueue, KubeRay and the pods do."""


class World:
    """A cluster with GPUs for one job at a time, two services, and a clock."""

    def __init__(self, server: FakeKubernetes, store: Workspace) -> None:
        self.server, self.store = server, store
        self.now_s = datetime(2026, 11, 24, tzinfo=UTC).timestamp()
        self.kueue = FakeKueue(server.objects)
        self.kueue.clock = lambda: self.time().strftime("%Y-%m-%dT%H:%M:%SZ")
        self.made: list[str] = []
        self.begun_runners: set[str] = set()
        server.objects.webhooks.append(self._count)
        server.objects.create(CLUSTER_QUEUE, cluster_queue("kitae-blue", gpus=2, cohort=None))
        server.objects.create(LOCAL_QUEUE, local_queue("kitae", "kitae-blue"), BLUE)
        self.shown, self.other = self._service(), self._service()
        self.apis: list[ApiJob] = []
        self.statuses: list[str] = []
        self.disturbed: Counter[int] = Counter()
        self.attempts: dict[str, Job] = {}
        """By RayJob: the attempt that its entrypoint began."""
        for number in range(JOBS):
            self._create(number)

    def time(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)

    def _service(self) -> FineTuningService:
        launcher = KubernetesLauncher(self.server.connect(), parse(SETTINGS), now=lambda: self.now_s, watches=False)
        return FineTuningService(self.store, Files(self.store, NoTokens(self.store)), launcher, now=lambda: self.now_s)

    def _create(self, number: int) -> None:
        identifier = new_id(records.KIND, now_s=self.now_s)
        compute = {"workers": 2, "gpus_per_worker": 1}
        spec = make_spec(identifier, team=TEAM, compute=compute)
        api = ApiJob(
            id=identifier, team=TEAM, key_id="k", created_at=0, model="m", training_file="f", validation_file=None,
            suffix=None, seed=1, metadata=None, integrations=None, method={}, hyperparameters={},
            spec=spec.model_dump(mode="json"), job_id=spec.job_id,
        )  # fmt: skip
        records.mark_open(self.store, TEAM, "k", identifier)
        self.apis.append(records.put_new(self.store, api))
        jobs.note_created(self.store, spec.job_id, f"created fine-tuning job {identifier}")
        jobs.create(self.store, spec)
        self.statuses.append("validating_files")

    def informers(self) -> list[Informer]:
        assert isinstance(self.shown.launcher, KubernetesLauncher)
        return list(self.shown.launcher.informers.values())

    def _count(self, kind: Kind, new: Object, old: Object | None) -> None:
        if kind == RAY_JOB and old is None:
            self.made.append(new["metadata"]["name"])

    # ---- events ------------------------------------------------------------------------------------------------------

    def happen(self, what: str, which: int) -> None:
        # A request with a lost answer may still be running in the server: a controller's event is atomic.
        with self.server.objects.changed if what in CONTROLLERS else nullcontext():
            self._happen(what, which)
        self.check_statuses()

    def _happen(self, what: str, which: int) -> None:
        self.now_s += 2.0
        number = which % JOBS
        api = self.apis[number]
        match what:
            case "start":  # otherwise few sequences would start a runner
                for step in ("tick", "reconcile", "advance", "advance", "advance", "begin", "watch"):
                    self.happen(step, which)
            case "tick":
                self.shown.reconcile()
            case "other tick":
                self.other.reconcile()
            case "watch":
                for informer in self.informers():
                    with suppress(ClusterError):
                        informer.step()
            case "reconcile":
                self.kueue.reconcile()
            case "advance":
                for found in self.server.objects.list(RAY_JOB):
                    self.kueue.advance(found["metadata"]["name"], BLUE)
            case "preempt":
                for name, namespace in self.kueue.running()[:1]:
                    self.disturb(name)
                    self.kueue.preempt(name, namespace)
                    self.attempts.pop(name, None)  # its pods end
            case "begin":
                for name, _ in self.kueue.running():
                    self.begin(name)
            case "check":
                for name in list(self.attempts):
                    self.check(name)
            case "finish" | "crash":
                for name, _ in self.kueue.running()[:1]:
                    self.end(name, crashes=what == "crash")
            case "expire":
                for found in self.server.objects.list(RAY_JOB):
                    if (found.get("status") or {}).get("jobDeploymentStatus") in ("Complete", "Failed"):
                        self.kueue.expire(found["metadata"]["name"], BLUE)
            case "collect":
                self.server.objects.collect()
            case "pause" | "resume" | "cancel":
                with suppress(ApiError):
                    getattr(self.shown, what)(TEAM, api.id)
            case "wait":
                self.now_s += 10.0 * which
            case "500":
                self.server.fail(500, times=1 + which % 3)
            case "409":
                self.server.fail(409, when=lambda request: request.verb in ("create", "delete"))
            case "lost answer":
                self.server.drop(after=True, when=lambda request: request.verb in ("create", "delete"))
            case "lost request":
                self.server.drop(times=4)
            case "expired token":
                self.server.expire_token()
            case "forgotten":
                self.server.objects.forget()
            case "down":
                self.server.down = True
            case _:
                self.server.heal()

    def begin(self, name: str) -> None:
        """Run the first line of an entrypoint that has not begun."""
        if name in self.attempts:
            return
        api = next(api for api in self.apis if name.startswith(api.id))
        entrypoint = self.server.objects.get(RAY_JOB, name, BLUE)["spec"]["entrypoint"]
        found = re.search(r"--paused-at (\S+)", entrypoint)
        launched = Launched(found[1].strip("'") if found else None)
        try:
            self.attempts[name] = jobs.start_attempt(self.store, JobSpec.model_validate(api.spec), launched=launched)
            self.begun_runners.add(name)
        except JobError:
            self.finish(name)  # no work: with `--launched` the exit code is 0

    def check(self, name: str) -> None:
        """The runner checks whether its job is paused, cancelled or taken over."""
        if self.server.objects.find(RAY_JOB, name, BLUE) is None:
            self.attempts.pop(name)
            return
        try:
            self.attempts[name].check(fresh=True)
        except JobError:
            self.finish(name)

    def end(self, name: str, *, crashes: bool) -> None:
        attempt = self.attempts.get(name)
        if attempt is None:
            return
        if crashes:
            self.disturb(name)
        else:
            with suppress(JobError):
                attempt.finish("succeeded", result={"metrics_csv": None})
        self.finish(name, ok=not crashes)

    def finish(self, name: str, *, ok: bool = True) -> None:
        self.attempts.pop(name, None)
        self.kueue.finish(name, BLUE, ok=ok)

    def disturb(self, name: str) -> None:
        self.disturbed[next(i for i, api in enumerate(self.apis) if name.startswith(api.id))] += 1

    # ---- invariants --------------------------------------------------------------------------------------------------

    def check_statuses(self) -> None:
        for number, api in enumerate(self.apis):
            status = self.shown.get(TEAM, api.id).status
            before, self.statuses[number] = self.statuses[number], status
            if status == before:
                continue
            if (before, status) == ("running", "queued"):
                self.disturbed[number] -= 1
                assert self.disturbed[number] >= 0, "queued again without an eviction"
                continue
            assert before not in OVER, f"{before} → {status}"
            assert status in LATER[before], f"{before} → {status}"
        again = [name for name, count in Counter(self.made).items() if count > 1 and name in self.begun_runners]
        assert not again, f"created twice: {again}"
        alive = Counter(found["metadata"]["name"].rpartition("-")[0] for found in self.live())
        assert all(count == 1 for count in alive.values()), f"two runners of one job: {alive}"

    def check_running(self) -> None:
        """A job with status `running` has an attempt."""
        for api, status in zip(self.apis, self.statuses, strict=True):
            runs = any(name.startswith(api.id) for name in self.attempts)
            assert runs or status != "running", f"{api.id} has no attempt"

    def live(self) -> list[Object]:
        """RayJobs that have quota or wait for it."""
        return [
            found
            for found in self.server.objects.list(RAY_JOB)
            if (found.get("status") or {}).get("jobDeploymentStatus") not in ("Complete", "Failed")
            and "deletionTimestamp" not in found["metadata"]
        ]

    def settle(self) -> None:
        """Remove all faults, and run everything to its end."""
        self.server.heal()
        self.server.objects.deletion_lingers = False
        for _ in range(60):
            self.happen("watch", 0)
            self.happen("watch", 0)  # after `forgotten` the first one only expires
            self.happen("tick", 0)
            self.check_running()
            for what in ("watch", "tick", "other tick", "reconcile", "advance", "begin", "check", "collect", "wait"):
                self.happen(what, 30)
            for name in list(self.attempts):
                if name in dict(self.kueue.running()):
                    self.end(name, crashes=False)
            if all(status in (*OVER, "paused") for status in self.statuses) and not self.live():
                break
        assert all(status in (*OVER, "paused") for status in self.statuses), self.statuses
        left = [found["metadata"]["name"] for found in self.live()]
        assert not left, f"left behind: {left}"
        self.happen("expire", 0)
        self.happen("tick", 0)
        open_ids = {identifier for _, identifier in records.all_open(self.store)}
        paused = {api.id for api, status in zip(self.apis, self.statuses, strict=True) if status == "paused"}
        assert open_ids == paused
        for api, status in zip(self.apis, self.statuses, strict=True):
            if status == "succeeded":
                assert jobs.load(self.store, api.job_id).status == "succeeded"


def run(store_server: StoreServer, act: Callable[[World], None], lingers: bool = False) -> None:
    store = Workspace(
        Store(f"s3://kitae/{uuid.uuid4().hex}", store_server.settings(), cache=Path("/nonexistent")), TEAM
    )
    with fake_kubernetes(watch_ends_when_idle=True) as server:
        world = World(server, store)
        server.objects.deletion_lingers = lingers
        with patch.object(Store, "now_s", lambda _: world.now_s):
            act(world)
            world.settle()
