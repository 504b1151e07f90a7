"""What a cluster's queues hold now, why something waits, and when it may start. Pure.

rows(queues, workloads, local_queues)       per team, flavour and resource
waiting(queues, workloads, local_queues, …)      per workload that has no quota yet
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray_jobs.cluster.kinds import RUNNER_LABEL
from ray_jobs.kueue import capacity
from ray_jobs.kueue.objects import NOTHING, Object, condition, held, is_true, resources_of, time_of
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.quota.job_trace import remaining_s
from ray_jobs.quota.pool import Kind, Limits, Pool
from ray_jobs.quota.queues import counted, limits_of, pool_of, team_of
from ray_jobs.quota.simulate import Work, simulate


@dataclass(frozen=True)
class Row:
    """One resource of one flavour, of one team."""

    team: str
    flavor: str
    resource: str
    limits: Limits
    used: Amount
    borrowed: Amount
    lent: Amount
    """Of its nominal quota, what is out of its reach now because others borrow it."""
    available: Amount
    """What it could have at once, of its own and borrowed."""
    waiting: Amount
    """What its workloads without quota ask for, by the flavour that they would be put in."""
    waiting_jobs: int
    counted: bool
    """Whether it is the resource by which the flavour is counted."""


@dataclass(frozen=True)
class Waiting:
    """A workload that has no quota."""

    team: str
    name: str
    namespace: str
    flavor: str | None
    """In which it would be put. None: no flavour of its team has what it asks for."""
    asks: Mapping[str, Amount]
    priority: int
    since: datetime
    reason: str
    starts_at: datetime | None
    """An estimate. None: there is nothing to tell it from, or it never starts."""


def rows(
    queues: Sequence[Object],
    workloads: Sequence[Object],
    local_queues: Sequence[Object],
    cohorts: Sequence[Object] = (),
) -> list[Row]:
    """By team, in the order of its flavours."""
    resources = counted(queues)
    pending = [w for w in workloads if _is_waiting(w)]
    teams = _teams(queues, local_queues)
    flavor_of = {id(w): _flavor(w, teams.get(_place(w)), resources) for w in pending}
    found: list[Row] = []
    for queue in sorted(queues, key=team_of):
        mine = [w for w in pending if teams.get(_place(w)) is queue]
        now = held(queue)
        specs = {(flavor, resource): quota for flavor, resource, quota in resources_of(queue)}
        for quota in capacity.quotas(queue["metadata"]["name"], queues, cohorts):
            place = (quota.flavor, quota.resource)
            asked = [asks(w).get(quota.resource, Amount(0)) for w in mine if flavor_of[id(w)] == quota.flavor]
            found.append(
                Row(
                    team=team_of(queue),
                    flavor=quota.flavor,
                    resource=quota.resource,
                    limits=limits_of(specs[place]),
                    used=quota.used,
                    borrowed=now.get(place, NOTHING).borrowed,
                    lent=quota.lent_now,
                    available=quota.free,
                    waiting=sum(asked, Amount(0)),
                    waiting_jobs=sum(amount > 0 for amount in asked),
                    counted=resources[quota.flavor] == quota.resource,
                )
            )
    return found


def waiting(
    queues: Sequence[Object],
    workloads: Sequence[Object],
    local_queues: Sequence[Object],
    *,
    now: datetime,
    durations: Mapping[str, Sequence[float]] | None = None,
    cohorts: Sequence[Object] = (),
) -> list[Waiting]:
    """In the order in which they came. `durations`: seconds that past jobs ran, by team; with `""` for all teams'."""
    resources, teams = counted(queues), _teams(queues, local_queues)
    pending = sorted((w for w in workloads if _is_waiting(w)), key=_created)
    starts = _starts(pool_of(queues, cohorts), teams, resources, workloads, pending, now, durations or {})
    found = []
    for workload in pending:
        queue = teams.get(_place(workload))
        found.append(
            Waiting(
                team=team_of(queue) if queue else workload["metadata"]["namespace"],
                name=name_of(workload),
                namespace=workload["metadata"]["namespace"],
                flavor=_flavor(workload, queue, resources),
                asks=asks(workload),
                priority=_priority(workload),
                since=_created(workload),
                reason=reason(workload, queue),
                starts_at=starts.get(id(workload)),
            )
        )
    return found


def reason(workload: Object, queue: Object | None) -> str:
    """Why it has no quota, as Kueue says; what Kueue says in a condition is its message."""
    if queue is None:
        return f"there is no LocalQueue {_place(workload)[1]!r} in namespace {_place(workload)[0]}"
    if (workload.get("spec") or {}).get("active") is False:
        return "it is held (spec.active: false)"
    stopped = (queue.get("spec") or {}).get("stopPolicy", "None")
    if stopped != "None":
        return f"the team's ClusterQueue is stopped (stopPolicy: {stopped})"
    parts = []
    if is_true(workload, "Evicted"):
        evicted = condition(workload, "Evicted") or {}
        parts.append(f"{evicted.get('reason', 'evicted').lower()}: {evicted.get('message', '')}".rstrip(": "))
    again = ((workload.get("status") or {}).get("requeueState") or {}).get("requeueAt")
    if again:
        parts.append(f"tried again at {again}")
    reserved = condition(workload, "QuotaReserved")
    if reserved is not None and reserved.get("status") != "True" and reserved.get("message"):
        parts.append(str(reserved["message"]))
    inactive = condition(queue, "Active")
    if inactive is not None and inactive.get("status") == "False":
        parts.append(f"the team's ClusterQueue is not active: {inactive.get('message', '')}")
    return "; ".join(parts) or "Kueue has not looked at it yet"


def asks(workload: Object) -> dict[str, Amount]:
    """What all its pods ask for: as Kueue counts it (`status.resourceRequests`), else by their containers."""
    total: dict[str, Amount] = {}
    counted_by_kueue = (workload.get("status") or {}).get("resourceRequests") or []
    for each in counted_by_kueue:
        _add(total, each.get("resources") or {}, 1)
    if not counted_by_kueue:
        for pods in (workload.get("spec") or {}).get("podSets") or []:
            for container in pods["template"]["spec"].get("containers") or []:
                given = container.get("resources") or {}
                _add(total, {**(given.get("limits") or {}), **(given.get("requests") or {})}, pods.get("count", 1))
    return total


def name_of(workload: Object) -> str:
    """The runner, else what owns it, else its own name."""
    metadata = workload["metadata"]
    label = (metadata.get("labels") or {}).get(RUNNER_LABEL)
    owners = metadata.get("ownerReferences") or []
    return str(label or (owners[0]["name"] if owners else metadata["name"]))


def _add(total: dict[str, Amount], resources: Mapping[str, Any], times: int) -> None:
    for name, quantity in resources.items():
        total[name] = total.get(name, Amount(0)) + amounts.parse(quantity) * times


def _is_waiting(workload: Object) -> bool:
    return not is_true(workload, "QuotaReserved") and not is_true(workload, "Finished")


def _runs(workload: Object) -> bool:
    return is_true(workload, "QuotaReserved") and not is_true(workload, "Finished")


def _place(workload: Object) -> tuple[str, str]:
    return workload["metadata"].get("namespace", ""), (workload.get("spec") or {}).get("queueName", "")


def _teams(queues: Sequence[Object], local_queues: Sequence[Object]) -> dict[tuple[str, str], Object]:
    """By namespace and LocalQueue, the ClusterQueue behind."""
    by_name = {queue["metadata"]["name"]: queue for queue in queues}
    return {
        (local["metadata"]["namespace"], local["metadata"]["name"]): by_name[local["spec"]["clusterQueue"]]
        for local in local_queues
        if (local.get("spec") or {}).get("clusterQueue") in by_name
    }


def _kind(workload: Object) -> Kind:
    return "gpu" if any(name not in ("cpu", "memory") and amount for name, amount in asks(workload).items()) else "cpu"


def _flavor(workload: Object, queue: Object | None, resources: Mapping[str, str]) -> str | None:
    """Where Kueue would look first."""
    if queue is None:
        return None
    asked = asks(workload)
    for flavor in dict.fromkeys(flavor for flavor, _, _ in resources_of(queue)):
        if (resources[flavor] != "cpu") == (_kind(workload) == "gpu") and asked.get(resources[flavor]):
            return flavor
    return None


def _priority(workload: Object) -> int:
    return int((workload.get("spec") or {}).get("priority") or 0)


def _created(workload: Object) -> datetime:
    return time_of(workload["metadata"]["creationTimestamp"])


def _starts(
    pool: Pool,
    teams: Mapping[tuple[str, str], Object],
    resources: Mapping[str, str],
    workloads: Sequence[Object],
    pending: Sequence[Object],
    now: datetime,
    durations: Mapping[str, Sequence[float]],
) -> dict[int, datetime]:
    """What runs is played to its likely end, and what waits behind it: by `id` of the workload."""

    def past(team: str) -> Sequence[float]:
        return durations.get(team) or durations.get("") or ()

    now_s = now.timestamp()
    running: list[tuple[Work, str]] = []
    for i, workload in enumerate(filter(_runs, workloads)):
        queue = teams.get(_place(workload))
        begun = condition(workload, "QuotaReserved") or {}
        if queue is None:
            continue
        team = team_of(queue)
        elapsed_s = max(0.0, now_s - time_of(begun["lastTransitionTime"]).timestamp())
        left_s = remaining_s(past(team), elapsed_s)
        if left_s is None:
            return {}
        for flavor, amount in _assigned(workload, resources).items():
            if flavor in pool.teams[team].limits:
                running.append((Work(f"running-{i}", team, now_s, left_s, float(amount), pool.kinds[flavor]), flavor))
    works: list[Work] = []
    members: list[Object] = []
    for i, workload in enumerate(pending):
        queue = teams.get(_place(workload))
        place = _flavor(workload, queue, resources)
        if queue is None or place is None or (workload.get("spec") or {}).get("active") is False:
            continue
        team = team_of(queue)
        expected_s = remaining_s(past(team), 0.0)
        if expected_s is None:
            return {}
        units = float(asks(workload)[resources[place]])
        # All of them are there now; who came first goes first, a thousandth of a second apart.
        works.append(Work(str(i), team, now_s + i / 1000, expected_s, units, pool.kinds[place], _priority(workload)))
        members.append(workload)
    outcomes = simulate(pool, works, running=running)
    return {
        id(workload): datetime.fromtimestamp(outcome.stretches[0].start_s, UTC)
        for workload, outcome in zip(members, outcomes, strict=True)
        if outcome.started
    }


def _assigned(workload: Object, resources: Mapping[str, str]) -> dict[str, Amount]:
    """What an admitted workload holds of each flavour's counted resource."""
    found: dict[str, Amount] = {}
    for pods in ((workload.get("status") or {}).get("admission") or {}).get("podSetAssignments") or []:
        usage = pods.get("resourceUsage") or {}
        for resource, flavor in (pods.get("flavors") or {}).items():
            if resources.get(flavor) == resource and resource in usage:
                found[flavor] = found.get(flavor, Amount(0)) + amounts.parse(usage[resource])
    return {flavor: amount for flavor, amount in found.items() if amount}
