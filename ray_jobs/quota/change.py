"""A quota change: the checks, a diff to review, a patch to apply, and the command that undoes it. Pure.

change = plan(queues, "blue", "h100", {"nominal": "8", "borrow": "none"})
cluster.patch(CLUSTER_QUEUE, change.queue, change.patch)    # refused if the queue has changed since
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from ray_jobs.errors import KitaeError, SpecError, suggestion
from ray_jobs.kueue.objects import Object, limits_of, reservations, resources_of
from ray_jobs.kueue.pool import QuotaLimits
from ray_jobs.kueue.queues import counted, team_of
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.quota.quota_file import NO_LIMIT, problems_of, with_field

QuotaField = Literal["nominal", "borrow", "lend"]
_NAMES: dict[QuotaField, str] = {"nominal": "nominalQuota", "borrow": "borrowingLimit", "lend": "lendingLimit"}
_VALUES: dict[QuotaField, str] = {"nominal": "nominal", "borrow": "borrowingLimit", "lend": "lendingLimit"}
_CONTEXT_LINES = 5


@dataclass(frozen=True)
class Change:
    team: str
    flavor: str
    resource: str
    queue: str
    """The ClusterQueue."""
    before: QuotaLimits
    after: QuotaLimits
    patch: Object
    """A merge patch with the resourceVersion that it is based on."""
    diff: str
    """Unified diff of the ClusterQueue as YAML; empty if nothing changes."""
    warnings: tuple[str, ...] = ()

    @property
    def undo(self) -> str:
        """The command that restores the previous limits."""
        return _command(self.team, self.flavor, self.resource, self.before)

    @property
    def values(self) -> str:
        """The change as values of the chart."""
        fields = {_VALUES[field]: _plain(amount) for field, amount in _fields(self.after).items() if amount is not None}
        kind = self.resource if self.resource in ("cpu", "memory") else "gpu"
        document = {"teams": {self.team: {"quotas": {self.flavor: {kind: fields}}}}}
        return yaml.safe_dump(document, sort_keys=False)


def plan(
    queues: Sequence[Object],
    team: str,
    flavor: str,
    given: Mapping[QuotaField, str],
    *,
    resource: str | None = None,
    capacity: Amount | None = None,
) -> Change:
    """Plan a change of the `given` fields. SpecError lists every problem.

    `resource`: None means the flavor's counted one. `capacity`: what the flavor's nodes have of it; None: unknown.
    """
    problems: list[str] = []
    queue = next((each for each in queues if team_of(each) == team), None)
    if queue is None:
        problems.append(f"no team {team!r}; {suggestion(team, map(team_of, queues))}")
    flavors = counted(queues if queue is None else [queue])
    if flavor not in flavors:
        elsewhere = flavor in counted(queues)
        problems.append(
            f"team {team} has no quota of {flavor} yet: add it to the chart's values (teams.{team}.quotas.{flavor}), "
            f"for it needs every resource of the queue; it has: {', '.join(flavors) or 'none'}"
            if elsewhere
            else f"no flavor {flavor!r}; {suggestion(flavor, flavors)}"
        )
    # Counted over all teams: one with a nominal quota of 0 may borrow GPUs.
    resource = resource or counted(queues).get(flavor, "cpu")
    quota = None if queue is None else _quota(queue, flavor, resource)
    if queue is not None and flavor in flavors and quota is None:
        known = [name for where, name, _ in resources_of(queue) if where == flavor]
        problems.append(f"{flavor} of team {team} has no resource {resource!r}; {suggestion(resource, known)}")
    if not given:
        problems.append("no change: give --nominal, --borrow or --lend")
    before = QuotaLimits(Amount(0)) if quota is None else limits_of(quota)
    after = before
    for field, text in given.items():
        try:
            after = with_field(after, field, text)
        except KitaeError as error:
            problems.append(f"--{field}: {error.message}")
    problems += problems_of(after)
    if queue is not None and not (queue.get("spec") or {}).get("cohortName"):
        limited = [f"--{field}" for field in ("borrow", "lend") if given.get(field, NO_LIMIT) != NO_LIMIT]
        if limited:
            problems.append(f"{' and '.join(limited)}: the queue of team {team} is in no cohort, so no queue lends")
    if problems:
        raise SpecError(f"the quota of team {team!r} cannot be changed", details=problems)
    assert queue is not None, "an unknown team is a problem"
    made = _change(queue, flavor, resource, before, after)
    return replace(made, warnings=tuple(_warnings(queues, queue, made, capacity)))


def capacity_of(nodes: Sequence[Object], flavor: Object | None, resource: str) -> Amount | None:
    """Allocatable amount of a resource on the nodes of a ResourceFlavor. None: the flavor does not exist."""
    if flavor is None:
        return None
    labels = (flavor.get("spec") or {}).get("nodeLabels") or {}
    fitting = [node for node in nodes if labels.items() <= (node["metadata"].get("labels") or {}).items()]
    given = [((node.get("status") or {}).get("allocatable") or {}).get(resource, 0) for node in fitting]
    return sum((amounts.parse(amount) for amount in given), Amount(0))


def _change(queue: Object, flavor: str, resource: str, before: QuotaLimits, after: QuotaLimits) -> Change:
    changed = copy.deepcopy(queue)
    quota, was = _quota(changed, flavor, resource), _fields(before)
    assert quota is not None
    for field, amount in _fields(after).items():
        if amount == was[field]:
            continue  # an unchanged field keeps its spelling and its place
        if amount is None:
            quota.pop(_NAMES[field])
        else:
            quota[_NAMES[field]] = amounts.text(amount)
    name = queue["metadata"]["name"]
    return Change(
        team=team_of(queue),
        flavor=flavor,
        resource=resource,
        queue=name,
        before=before,
        after=after,
        patch={
            "metadata": {"resourceVersion": queue["metadata"].get("resourceVersion")},
            "spec": {"resourceGroups": changed["spec"]["resourceGroups"]},
        },
        diff=_diff(_shown(queue), _shown(changed), f"ClusterQueue/{name}"),
    )


def _warnings(queues: Sequence[Object], queue: Object, made: Change, capacity: Amount | None) -> list[str]:
    found = []
    team, flavor, resource, before, after = made.team, made.flavor, made.resource, made.before, made.after
    others = [
        limits_of(quota)
        for each in queues
        if each is not queue
        for name, kind, quota in resources_of(each)
        if (name, kind) == (flavor, resource)
    ]
    total = sum((each.nominal for each in others), after.nominal)
    if capacity is not None and total > capacity:
        found.append(
            f"all teams together would have {amounts.text(total)} of {flavor} {resource}, and its nodes have "
            f"{amounts.text(capacity)}: Kueue would admit jobs whose pods fit on no node"
        )
    used = reservations(queue).get((flavor, resource))
    if used is not None:
        most = None if after.borrow is None else after.nominal + after.borrow
        if most is not None and used.used > most:
            found.append(
                f"running jobs of {team} use {amounts.text(used.used)}, more than its new maximum of "
                f"{amounts.text(most)}: they keep running, and no other job of the team starts until usage is below it"
            )
        if used.used > after.nominal and after.nominal < before.nominal:
            over = used.used - after.nominal
            found.append(
                f"{amounts.text(over)} of the quota that running jobs of {team} use would be borrowed: other teams' "
                "jobs may preempt them, if their queues reclaim (preemption.reclaimWithinCohort)"
            )
    for each in queues:
        borrowed = reservations(each).get((flavor, resource))
        if each is not queue and borrowed is not None and borrowed.borrowed > 0 and after.lendable < before.lendable:
            found.append(
                f"{team_of(each)} borrows {amounts.text(borrowed.borrowed)} now, and {team} would lend less: "
                "its jobs may be preempted"
            )
    if after.nominal != before.nominal and resource not in ("cpu", "memory"):
        with_it = [
            f"{name} {quota['nominalQuota']}"
            for where, name, quota in resources_of(queue)
            if where == flavor and name in ("cpu", "memory")
        ]
        if with_it:
            found.append(
                f"{', '.join(with_it)} of {flavor} stay unchanged: jobs need them beside their GPUs (--resource cpu, "
                "--resource memory)"
            )
    if ((queue["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by")) == "Helm":
        found.append(
            "Helm manages this queue: add the output of --values to its values, or `helm upgrade` undoes the change"
        )
    return found


def _fields(limits: QuotaLimits) -> dict[QuotaField, Amount | None]:
    return {"nominal": limits.nominal, "borrow": limits.borrow, "lend": limits.lend}


def _quota(queue: Object, flavor: str, resource: str) -> Object | None:
    return next((q for where, name, q in resources_of(queue) if (where, name) == (flavor, resource)), None)


def _command(team: str, flavor: str, resource: str, limits: QuotaLimits) -> str:
    parts = [
        f"--{name} {NO_LIMIT if amount is None else amounts.text(amount)}" for name, amount in _fields(limits).items()
    ]
    which = f" --resource {resource}" if resource in ("cpu", "memory") else ""
    return f"kitae quota set {team} --flavor {flavor}{which} {' '.join(parts)} --apply"


def _plain(amount: Amount) -> Any:
    return int(amount) if amount == int(amount) and amount < 10**6 else amounts.text(amount)


def _shown(queue: Object) -> list[str]:
    document = {
        "apiVersion": queue["apiVersion"],
        "kind": queue["kind"],
        "metadata": {"name": queue["metadata"]["name"]},
        "spec": queue["spec"],
    }
    return yaml.safe_dump(document, sort_keys=False).splitlines()


def _diff(before: list[str], after: list[str], name: str) -> str:
    lines = difflib.unified_diff(before, after, f"{name} (now)", f"{name} (proposed)", lineterm="", n=_CONTEXT_LINES)
    return "\n".join(lines)
