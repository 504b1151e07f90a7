"""A cluster with two teams of eight GPUs each, and its launcher: fake API server, fake Kueue, a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray_jobs.cluster.kinds import CLUSTER_QUEUE, LOCAL_QUEUE, RAY_JOB
from ray_jobs.cluster.settings import parse
from ray_jobs.launch.kubernetes import KubernetesLauncher
from ray_jobs.launch.launcher import Needs, Runner
from tests.cluster.builders import SETTINGS, cluster_queue, local_queue, priority_class
from tests.cluster.fake_kubernetes import FakeKubernetes, fake_kubernetes
from tests.cluster.kubernetes_objects import PRIORITY_CLASS
from tests.kueue.fake_kueue import FakeKueue

BLUE = "kitae-blue"
ID = "ftjob-01kaz7x3q0e8m5v2t9c4r6w1ys-1"
NEEDS = Needs("tiny-0123456789", "0123456789abcdef", "blue", 0, 2, 4.0, 1)
ENVIRONMENT = {"KITAE_STORE": "s3://kitae/prod"}
ARGUMENTS = ["resume", "tiny-0123456789", "--launched"]


@dataclass
class Place:
    """See the module."""

    server: FakeKubernetes
    kueue: FakeKueue
    launcher: KubernetesLauncher
    now_s: float = 1_790_000_000.0

    def launch(self, runner_id: str = ID, needs: Needs = NEEDS) -> None:
        self.launcher.launch(runner_id, ARGUMENTS, ENVIRONMENT, needs)

    def runner(self, runner_id: str = ID) -> Runner | None:
        return self.launcher.runners("ftjob-").get(runner_id)

    def start(self, runner_id: str = ID, namespace: str = BLUE) -> None:
        """Move a runner to the first line of its entrypoint."""
        self.kueue.reconcile()
        for _ in range(3):
            self.kueue.advance(runner_id, namespace)

    def names(self) -> list[str]:
        """Names of the RayJobs."""
        return [found["metadata"]["name"] for found in self.server.objects.list(RAY_JOB)]


@contextmanager
def two_teams(**limits: Any) -> Iterator[Place]:
    """`limits`: of both ClusterQueues."""
    with fake_kubernetes(watch_ends_when_idle=True) as server:
        found = Place(server, FakeKueue(server.objects), KubernetesLauncher(server.connect(), parse(SETTINGS)))
        found.launcher.watches = False
        found.launcher.now = lambda: found.now_s
        found.kueue.clock = lambda: datetime.fromtimestamp(found.now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for team in ("blue", "red"):
            server.objects.create(CLUSTER_QUEUE, cluster_queue(f"kitae-{team}", **limits))
            server.objects.create(LOCAL_QUEUE, local_queue("kitae", f"kitae-{team}"), f"kitae-{team}")
        for name, value in SETTINGS["priority_classes"].items():
            server.objects.create(PRIORITY_CLASS, priority_class(name, value))
        yield found
