"""Runners as RayJobs in Kueue's queues: the launcher of a Kubernetes cluster.

Owns which requests are sent, and when. `rayjob_manifest` builds the RayJob, `runner_state` reads its state.
Several processes may launch at once: a RayJob's name is its runner's id, so the second one finds the first one's.

`runners` reads the informers; with `fresh`, or where an informer has no recent answer, it lists from the server. If the
server does not answer, it raises: a runner is never reported as gone because of a failed request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ray_jobs.cluster.client import Cluster
from ray_jobs.cluster.informer import Informer
from ray_jobs.cluster.kinds import (
    CLUSTER_QUEUE,
    COHORT,
    CONFIG_MAP,
    LOCAL_QUEUE,
    MANAGER,
    MANAGER_LABEL,
    OURS,
    POD,
    RAY_JOB,
    RELEASE_ANNOTATION,
    RUNNER_LABEL,
    WORKLOAD,
    Kind,
    Object,
)
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import AlreadyExists, ClusterError, PriorityTooHigh, UnknownQueue
from ray_jobs.kueue import capacity
from ray_jobs.kueue.objects import is_true, is_waiting, key
from ray_jobs.kueue.queues import NO_QUEUES, Queues
from ray_jobs.kueue.start_estimate import estimate_starts
from ray_jobs.launch import rayjob_manifest
from ray_jobs.launch.launcher import Needs, Runner
from ray_jobs.launch.runner_state import ended_at, runner_id_of, runner_of

logger = logging.getLogger(__name__)

_PODS_EVERY_S = 10.0
_RELEASES_EVERY_S = 15.0
_KEPT_S = 86400.0
"""Age at which an ended RayJob is deleted; KubeRay deletes its Ray cluster, but neither it nor its submitter's Job."""
_REPORTED_S = 600.0
"""Seconds for which an end is reported before the deletion: an endpoint that was down still sees how it ended."""


@dataclass
class KubernetesLauncher:
    """See the module. ClusterError, a MachineError, if the cluster does not answer or refuses."""

    cluster: Cluster
    settings: ClusterSettings
    now: Callable[[], float] = time.time
    watches: bool = True
    """Run informers in threads of their own. False: every read is a list, unless the caller steps `informers`."""
    informers: dict[tuple[Kind, str | None], Informer] = field(default_factory=dict)
    """By kind and namespace; those so far."""
    _pods_read: dict[str, tuple[float, list[Object]]] = field(default_factory=dict)
    _ended_since: dict[str, float] = field(default_factory=dict)
    """By uid: since when a RayJob is reported as ended."""
    _without_release: set[str] = field(default_factory=set)
    """By uid: RayJobs whose release did not exist when it was last read."""
    _releases_read_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, needs: Needs) -> None:
        """RequestTooLarge, UnknownQueue, PriorityTooHigh; see `Launcher`."""
        team = rayjob_manifest.team_of(self.settings, needs.team)
        if needs.priority > team.max_priority:
            raise PriorityTooHigh(
                f"priority is {needs.priority}, and team {needs.team} may use at most {team.max_priority}: lower it"
            )
        queue = self.cluster.get(LOCAL_QUEUE, team.queue, team.namespace)
        if queue is None:
            existing = [found["metadata"]["name"] for found in self.cluster.list(LOCAL_QUEUE, team.namespace)]
            raise UnknownQueue(
                f"no LocalQueue {team.queue!r} in namespace {team.namespace}; existing: "
                f"{', '.join(sorted(existing)) or 'none'}"
            )
        queues = self.cluster.list(CLUSTER_QUEUE)
        found = capacity.quotas(queue["spec"]["clusterQueue"], queues, self._if_listed(COHORT, fresh=True))
        capacity.check(needs.team, rayjob_manifest.requests(self.settings, needs), found)

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        """Create the RayJob; do nothing if it exists."""
        body = rayjob_manifest.manifest(self.settings, runner_id, arguments, environment, needs)
        namespace = body["metadata"]["namespace"]
        try:
            self.cluster.create(RAY_JOB, body, namespace)
        except AlreadyExists:
            return
        logger.info("RayJob %s created in namespace %s", runner_id, namespace)

    def stop(self, runner_id: str) -> None:
        """Delete the RayJob and its pods. The entrypoint gets SIGTERM first; it writes nothing to a job that has ended,
        is paused or belongs to another attempt."""
        namespaces = self._namespaces()
        known = [
            found["metadata"]["namespace"]
            for namespace in namespaces
            for found in self._informer(RAY_JOB, namespace).items() or []
            if runner_id_of(found) == runner_id
        ]
        for namespace in dict.fromkeys([*known, *namespaces]):
            if self.cluster.delete(RAY_JOB, runner_id, namespace):
                logger.info("RayJob %s in namespace %s deleted", runner_id, namespace)
                return

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        """See `Launcher`."""
        rayjobs = self._in_namespaces(RAY_JOB, fresh=fresh)
        workloads = self._in_namespaces(WORKLOAD, fresh=fresh) if rayjobs else []
        by_owner = {owner["uid"]: w for w in workloads for owner in w["metadata"].get("ownerReferences") or []}
        queues, now_s = NO_QUEUES, self.now()
        if any(map(is_waiting, workloads)):  # only for messages: without the cluster's queues these say less
            local = {(team.namespace, team.queue): team.cluster_queue for team in self.settings.teams.values()}
            queues = Queues(self._if_listed(CLUSTER_QUEUE), self._if_listed(COHORT), local)
        starts = estimate_starts(workloads, queues, now_s=now_s) if queues.cluster_queues else {}
        found = {}
        for item in rayjobs:
            name = runner_id_of(item)
            if name is None or not name.startswith(prefix):
                continue
            workload = by_owner.get(item["metadata"]["uid"])
            start_s = None if workload is None else starts.get(key(workload))
            pods = self._pods(item) if workload is not None and is_true(workload, "Admitted") else []
            starts_in_s = None if start_s is None else start_s - now_s
            found[name] = runner_of(item, workload, pods, queues, starts_in_s=starts_in_s, now_s=now_s)
        self._delete_ended(rayjobs)
        self._delete_without_release(rayjobs)
        return found

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _delete_ended(self, rayjobs: list[Object]) -> None:
        """Delete the RayJobs that ended more than `_KEPT_S` ago and were reported for `_REPORTED_S`."""
        now_s = self.now()
        ours = [item for item in rayjobs if item["metadata"]["labels"].get(MANAGER_LABEL) == MANAGER]
        ended = {item["metadata"]["uid"]: (item, at_s) for item in ours if (at_s := ended_at(item)) is not None}
        self._ended_since = {uid: self._ended_since.get(uid, now_s) for uid in ended}
        for uid, (item, at_s) in ended.items():
            metadata = item["metadata"]
            reported_s = now_s - self._ended_since[uid]
            if now_s - at_s < _KEPT_S or reported_s < _REPORTED_S or "deletionTimestamp" in metadata:
                continue
            try:
                self.cluster.delete(RAY_JOB, metadata["name"], metadata["namespace"])
            except ClusterError as error:
                self._ended_since[uid] = now_s  # retried after _REPORTED_S
                logger.warning("cannot delete RayJob %s, which has ended: %s", metadata["name"], error)

    def _delete_without_release(self, rayjobs: list[Object]) -> None:
        """Delete the RayJobs of uninstalled Helm releases. Helm deletes what its last revision names, and a failed
        `helm upgrade` leaves a revision that does not name the running RayJob."""
        now_s = self.now()
        if now_s - self._releases_read_at < _RELEASES_EVERY_S:
            return
        self._releases_read_at = now_s
        missing: set[str] = set()
        for item in rayjobs:
            metadata = item["metadata"]
            release = (metadata.get("annotations") or {}).get(RELEASE_ANNOTATION)
            if release is None or "deletionTimestamp" in metadata:
                continue
            try:
                if self.cluster.get(CONFIG_MAP, release, metadata["namespace"]) is not None:
                    continue
                missing.add(metadata["uid"])
                if metadata["uid"] in self._without_release:  # not one whose release is being installed
                    self.cluster.delete(RAY_JOB, metadata["name"], metadata["namespace"])
                    logger.info("RayJob %s deleted: its release %s is uninstalled", metadata["name"], release)
            except ClusterError as error:
                logger.warning("cannot delete RayJob %s without a release: %s", metadata["name"], error)
        self._without_release = missing

    def _pods(self, item: Object) -> list[Object]:
        """Pods of a starting runner, listed at most every `_PODS_EVERY_S`."""
        name, status = item["metadata"]["name"], item.get("status") or {}
        if status.get("jobDeploymentStatus") == "Running":
            self._pods_read.pop(name, None)
            return []
        read_at, pods = self._pods_read.get(name, (float("-inf"), []))
        if self.now() - read_at >= _PODS_EVERY_S:
            try:
                pods = self.cluster.list(POD, item["metadata"]["namespace"], labels={RUNNER_LABEL: name})
            except ClusterError as error:  # the RayJob's own state is still reported
                logger.warning("cannot list the pods of %s: %s", name, error)
            self._pods_read[name] = (self.now(), pods)
        return pods

    def _if_listed(self, kind: Kind, *, fresh: bool = False) -> list[Object]:
        try:
            return self._read(kind, None, fresh=fresh)
        except ClusterError as error:
            logger.warning("cannot list %s: %s", kind.resource, error)
            return []

    def _namespaces(self) -> list[str]:
        return list(dict.fromkeys(team.namespace for team in self.settings.teams.values()))

    def _in_namespaces(self, kind: Kind, *, fresh: bool) -> list[Object]:
        return [found for namespace in self._namespaces() for found in self._read(kind, namespace, fresh=fresh)]

    def _read(self, kind: Kind, namespace: str | None, *, fresh: bool) -> list[Object]:
        informer = self._informer(kind, namespace)
        items = None if fresh else informer.items()
        return self.cluster.list(kind, namespace, labels=informer.labels) if items is None else items

    def _informer(self, kind: Kind, namespace: str | None) -> Informer:
        with self._lock:
            found = self.informers.get((kind, namespace))
            if found is None:
                labels = OURS if kind == RAY_JOB else None  # Workloads have only the labels that Kueue copies
                found = self.informers[kind, namespace] = Informer(self.cluster, kind, namespace, labels)
                if self.watches:
                    name = f"{kind.plural} in {namespace or 'all namespaces'}"
                    threading.Thread(target=found.follow, name=name, daemon=True).start()
            return found
