"""Runners as RayJobs in Kueue's queues: the launcher of a Kubernetes cluster.

Owns which requests are made, and when. What they say is `rayjob`'s, what the answers mean `conditions`'. Several
processes may do this at once: a RayJob's name is its runner's id, so the second of two that make it finds the first's.

A RayJob is looked for where it is now (`fresh`) before anybody takes it for gone; else what the watches told a moment
ago is good enough. Where a watch is silent, the cluster is asked; where that does not answer, nothing is said.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

from ray_jobs.cluster.client import Cluster, Object
from ray_jobs.cluster.informer import Mirror
from ray_jobs.cluster.kinds import (
    CLUSTER_QUEUE,
    COHORT,
    LOCAL_QUEUE,
    MANAGER,
    MANAGER_LABEL,
    OURS,
    POD,
    RAY_JOB,
    RUNNER_LABEL,
    WORKLOAD,
    Kind,
)
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import AlreadyExists, ClusterError, UnknownQueue
from ray_jobs.kueue import capacity
from ray_jobs.kueue.capacity import Quota
from ray_jobs.launch import rayjob, runner_state
from ray_jobs.launch.launcher import Needs, Runner
from ray_jobs.launch.runner_state import Running, View

logger = logging.getLogger(__name__)

_TOOK_KEPT = 50
"""Workloads whose times tell how long the next may take."""
_PODS_EVERY_S = 10.0
_KEPT_S = 86400.0
"""A RayJob that has ended is taken away after so long: KubeRay takes its Ray cluster, and leaves it and its submitter's
Job for ever."""
_TOLD_S = 600.0
"""And not before it was told of for so long: an endpoint that was away still learns how it ended."""


@dataclass
class KubernetesLauncher:
    """See the module. ClusterError, a MachineError, wherever the cluster does not answer or refuses."""

    cluster: Cluster
    settings: ClusterSettings
    now: Callable[[], float] = time.time
    watches: bool = True
    """Keep watches open in threads of their own. Off: every look is a list."""
    _mirrors: dict[tuple[Kind, str | None], Mirror] = field(default_factory=dict)
    _took_s: dict[str, deque[float]] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)
    _pods_seen: dict[str, tuple[float, list[Object]]] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)
    """By uid: since when a RayJob is told of as ended."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, needs: Needs) -> None:
        """RequestTooLarge, UnknownQueue; see `Launcher`."""
        team = rayjob.team_of(self.settings, needs.team)
        queue = self.cluster.get(LOCAL_QUEUE, team.queue, team.namespace)
        if queue is None:
            there = [found["metadata"]["name"] for found in self.cluster.list(LOCAL_QUEUE, team.namespace)]
            raise UnknownQueue(
                f"there is no LocalQueue {team.queue!r} in namespace {team.namespace}; there are: "
                f"{', '.join(sorted(there)) or 'none'}"
            )
        found = capacity.quotas(queue["spec"]["clusterQueue"], self.cluster.list(CLUSTER_QUEUE), self._cohorts())
        capacity.check(self.settings, needs.team, rayjob.requests(self.settings, needs), found)

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        """Make the RayJob; nothing where it is there."""
        # Jobs run in the image that this runs in.
        ray_version = metadata.version("ray")
        body = rayjob.manifest(self.settings, runner_id, arguments, environment, needs, ray_version=ray_version)
        namespace = body["metadata"]["namespace"]
        try:
            self.cluster.create(RAY_JOB, body, namespace)
        except AlreadyExists:
            return
        logger.info("RayJob %s made in namespace %s", runner_id, namespace)

    def stop(self, runner_id: str) -> None:
        """Delete the RayJob, and its pods with it. The entrypoint is told first: of a job that is over, paused or taken
        over it writes nothing more."""
        namespaces = self._namespaces()
        known = [o["metadata"]["namespace"] for o in self._seen(RAY_JOB) if runner_state.runner_id(o) == runner_id]
        for namespace in dict.fromkeys([*known, *namespaces]):
            if self.cluster.delete(RAY_JOB, runner_id, namespace):
                logger.info("RayJob %s in namespace %s is deleted", runner_id, namespace)
                return

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        """See `Launcher`."""
        rayjobs = self._look(RAY_JOB, fresh=fresh)
        workloads = self._look(WORKLOAD, fresh=fresh) if rayjobs else []
        self._count(workloads)
        queues = self._queues() if any(runner_state.admitted_at(w) is None for w in workloads) else []
        by_owner = {owner["uid"]: w for w in workloads for owner in w["metadata"].get("ownerReferences") or []}
        found = {}
        for item in rayjobs:
            name = runner_state.runner_id(item)
            if name is None or not name.startswith(prefix):
                continue
            workload = by_owner.get(item["metadata"]["uid"])
            found[name] = runner_state.runner_of(self._view(item, workload, workloads, queues), self.settings)
        self._clear(rayjobs)
        return found

    def close(self) -> None:
        """End the watches."""
        self._stop.set()

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _clear(self, rayjobs: list[Object]) -> None:
        """Take away what ended long ago, and nobody waits to hear of."""
        now = self.now()
        ours = [item for item in rayjobs if item["metadata"]["labels"].get(MANAGER_LABEL) == MANAGER]
        ended = {
            item["metadata"]["uid"]: (item, at) for item in ours if (at := runner_state.ended_at(item)) is not None
        }
        self._ended = {uid: self._ended.get(uid, now) for uid in ended}
        for uid, (item, at) in ended.items():
            metadata = item["metadata"]
            if now - at < _KEPT_S or now - self._ended[uid] < _TOLD_S or "deletionTimestamp" in metadata:
                continue
            try:
                self.cluster.delete(RAY_JOB, metadata["name"], metadata["namespace"])
            except ClusterError as error:
                self._ended[uid] = now  # not again in a moment
                logger.warning("RayJob %s, which has ended, cannot be deleted: %s", metadata["name"], error)

    def _view(self, item: Object, workload: Object | None, workloads: list[Object], queues: list[Object]) -> View:
        quotas: list[Quota] = []
        start_in_s = None
        admitted = workload is not None and runner_state.admitted_at(workload) is not None
        if workload is not None and not admitted and queues:
            name = self._cluster_queue(item)
            try:
                quotas = capacity.quotas(name, queues) if name is not None else []
            except UnknownQueue as error:
                logger.warning("%s", error)
            start_in_s = self._start_in_s(workload, workloads, quotas)
        pods = self._pods(item) if admitted else []
        return View(item, workload, pods, quotas, start_in_s, self.now())

    def _start_in_s(self, workload: Object, workloads: list[Object], quotas: list[Quota]) -> float | None:
        """By what ran in the same namespace; what others hold is not known to end."""
        namespace = workload["metadata"]["namespace"]
        took = self._took_s.get(namespace)
        beside = [
            w for w in workloads if w["metadata"]["namespace"] == namespace and runner_state.finished_at(w) is None
        ]
        running = [
            Running(at_s, runner_state.holds(w)) for w in beside if (at_s := runner_state.admitted_at(w)) is not None
        ]
        ahead = [runner_state.holds(w) for w in beside if w is not workload and _goes_before(w, workload)]
        free: dict[str, float] = {}
        for quota in quotas:
            free[quota.resource] = free.get(quota.resource, 0.0) + float(quota.free)
        typical_s = statistics.median(took) if took else None
        return runner_state.start_in_s(ahead, runner_state.holds(workload), running, free, typical_s, self.now())

    def _count(self, workloads: list[Object]) -> None:
        """How long those took that have ended."""
        for found in workloads:
            # Kueue leaves the condition of the last admission as it was.
            began, ended, uid = (
                runner_state.admitted_at(found),
                runner_state.finished_at(found),
                found["metadata"]["uid"],
            )
            if began is not None and ended is not None and uid not in self._counted:
                self._counted.add(uid)
                took = self._took_s.setdefault(found["metadata"]["namespace"], deque(maxlen=_TOOK_KEPT))
                took.append(max(1.0, ended - began))

    def _pods(self, item: Object) -> list[Object]:
        """Of a runner that is starting; asked for now and then."""
        name, status = item["metadata"]["name"], item.get("status") or {}
        if status.get("jobDeploymentStatus") == "Running":
            self._pods_seen.pop(name, None)
            return []
        asked_at, pods = self._pods_seen.get(name, (float("-inf"), []))
        if self.now() - asked_at >= _PODS_EVERY_S:
            try:
                pods = self.cluster.list(POD, item["metadata"]["namespace"], labels={RUNNER_LABEL: name})
            except ClusterError as error:  # what is known of the RayJob is told all the same
                logger.warning("pods of %s cannot be looked at: %s", name, error)
            self._pods_seen[name] = (self.now(), pods)
        return pods

    def _cluster_queue(self, item: Object) -> str | None:
        namespace = item["metadata"]["namespace"]
        return next((t.cluster_queue for t in self.settings.teams.values() if t.namespace == namespace), None)

    def _queues(self) -> list[Object]:
        """For a message only: without them it says less."""
        try:
            return self._look_at(CLUSTER_QUEUE, None, fresh=False)
        except ClusterError as error:
            logger.warning("quotas cannot be looked at: %s", error)
            return []

    def _cohorts(self) -> list[Object]:
        """Most clusters have none of their own."""
        try:
            return self.cluster.list(COHORT)
        except ClusterError as error:
            logger.warning("cohorts cannot be looked at: %s", error)
            return []

    def _namespaces(self) -> list[str]:
        return list(dict.fromkeys(team.namespace for team in self.settings.teams.values()))

    def _look(self, kind: Kind, *, fresh: bool) -> list[Object]:
        return [found for namespace in self._namespaces() for found in self._look_at(kind, namespace, fresh=fresh)]

    def _look_at(self, kind: Kind, namespace: str | None, *, fresh: bool) -> list[Object]:
        mirror = self._mirror(kind, namespace)
        items = None if fresh else mirror.items()
        return mirror.list() if items is None else items

    def _seen(self, kind: Kind) -> list[Object]:
        return [found for ns in self._namespaces() for found in self._mirror(kind, ns).items() or []]

    def _mirror(self, kind: Kind, namespace: str | None) -> Mirror:
        with self._lock:
            key = (kind, namespace)
            if key not in self._mirrors:
                labels = OURS if kind == RAY_JOB else None  # a Workload has the labels that Kueue copies, or none
                self._mirrors[key] = Mirror(self.cluster, kind, namespace, labels)
                if self.watches:
                    name = f"{kind.plural} in {namespace or 'all namespaces'}"
                    mirror = self._mirrors[key]
                    threading.Thread(target=mirror.follow, args=(self._stop,), name=name, daemon=True).start()
            return self._mirrors[key]


def _goes_before(one: Object, other: Object) -> bool:
    """Whether Kueue looks at a waiting workload before another one."""
    if runner_state.admitted_at(one) is not None:
        return False

    def order(found: Object) -> tuple[int, str]:
        return (-int((found.get("spec") or {}).get("priority") or 0), found["metadata"]["creationTimestamp"])

    return order(one) < order(other)
