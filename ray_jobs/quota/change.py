"""A quota change: the checks, a diff to review, a patch to apply, and the command that undoes it. Pure.

change = plan(queues, "blue", "h100", {"nominal": "8", "borrow": "none"})
cluster.patch(CLUSTER_QUEUE, change.queue, change.patch)    # refused if the queue has changed since
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Literal

import yaml

from ray_jobs.cluster.kinds import Object
from ray_jobs.cluster.quantities import parse, text
from ray_jobs.errors import SpecError, suggestion
from ray_jobs.kueue.objects import NO_RESERVATION, limits_of, quotas_of, reservations, resources_of
from ray_jobs.kueue.pool import QuotaLimits
from ray_jobs.kueue.queues import counted, team_of
from ray_jobs.quota.quota_file import NO_LIMIT, problems_of, with_field

QuotaField = Literal["nominal", "borrow", "lend"]
_NAMES = {"nominal": "nominalQuota", "borrow": "borrowingLimit", "lend": "lendingLimit"}
"""Names of the fields in Kueue's objects; in the chart's values, `nominal` keeps its name."""


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
        limits = [
            f"--{name} {NO_LIMIT if amount is None else text(amount)}" for name, amount in asdict(self.before).items()
        ]
        which = f" --resource {self.resource}" if self.resource in ("cpu", "memory") else ""
        return f"kitae quota set {self.team} --flavor {self.flavor}{which} {' '.join(limits)} --apply"

    @property
    def values(self) -> str:
        """The change as values of the chart."""
        fields = {
            name if name == "nominal" else _NAMES[name]: (
                int(amount) if amount == int(amount) and amount < 10**6 else text(amount)
            )
            for name, amount in asdict(self.after).items()
            if amount is not None
        }
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
    capacity: Decimal | None = None,
) -> Change:
    """Plan a change of the `given` fields. SpecError lists every problem.

    `resource`: None means the flavor's counted one. `capacity`: what the flavor's nodes have of it; None: unknown.
    """
    problems: list[str] = []
    queue = next((each for each in queues if team_of(each) == team), None)
    if queue is None:
        problems.append(f"no team {team!r}; {suggestion(team, map(team_of, queues))}")
    flavors, everywhere = counted(queues if queue is None else [queue]), counted(queues)
    if flavor not in flavors:
        problems.append(
            f"team {team} has no quota of {flavor} yet: add it to the chart's values (teams.{team}.quotas.{flavor}), "
            f"for it needs every resource of the queue; it has: {', '.join(flavors) or 'none'}"
            if flavor in everywhere
            else f"no flavor {flavor!r}; {suggestion(flavor, flavors)}"
        )
    # Counted over all teams: one with a nominal quota of 0 may borrow GPUs.
    resource = resource or everywhere.get(flavor, "cpu")
    changed = copy.deepcopy(queue or {})
    quotas = {name: quota for where, name, quota in resources_of(changed) if where == flavor}
    if quotas and resource not in quotas:
        problems.append(f"{flavor} of team {team} has no resource {resource!r}; {suggestion(resource, quotas)}")
    if not given:
        problems.append("no change: give --nominal, --borrow or --lend")
    quota = quotas.get(resource, {})
    before = after = limits_of(quota)
    for field, value in given.items():
        try:
            after = with_field(after, field, value)
        except ValueError as error:
            problems.append(f"--{field}: {error}")
    problems += problems_of(after)
    if queue is not None and not (queue.get("spec") or {}).get("cohortName"):
        limited = [f"--{field}" for field in ("borrow", "lend") if given.get(field, NO_LIMIT) != NO_LIMIT]
        if limited:
            problems.append(f"{' and '.join(limited)}: the queue of team {team} is in no cohort, so no queue lends")
    if problems:
        raise SpecError(f"the quota of team {team!r} cannot be changed", details=problems)
    assert queue is not None, "an unknown team is a problem"
    previous = asdict(before)
    for name, amount in asdict(after).items():
        if amount == previous[name]:
            continue  # an unchanged field keeps its spelling and its place
        if amount is None:
            quota.pop(_NAMES[name])
        else:
            quota[_NAMES[name]] = text(amount)
    name = queue["metadata"]["name"]
    titles = f"ClusterQueue/{name} (now)", f"ClusterQueue/{name} (proposed)"
    made = Change(
        team=team,
        flavor=flavor,
        resource=resource,
        queue=name,
        before=before,
        after=after,
        patch={
            "metadata": {"resourceVersion": queue["metadata"].get("resourceVersion")},
            "spec": {"resourceGroups": changed["spec"]["resourceGroups"]},
        },
        diff="\n".join(difflib.unified_diff(_shown(queue), _shown(changed), *titles, lineterm="", n=5)),
    )
    return replace(made, warnings=tuple(_warnings(queues, queue, made, capacity)))


def capacity_of(nodes: Sequence[Object], flavor: Object | None, resource: str) -> Decimal | None:
    """Allocatable amount of a resource on the nodes of a ResourceFlavor. None: the flavor does not exist."""
    if flavor is None:
        return None
    labels = (flavor.get("spec") or {}).get("nodeLabels") or {}
    fitting = [node for node in nodes if labels.items() <= (node["metadata"].get("labels") or {}).items()]
    given = [((node.get("status") or {}).get("allocatable") or {}).get(resource, 0) for node in fitting]
    return sum(map(parse, given), Decimal(0))


def _warnings(queues: Sequence[Object], queue: Object, made: Change, capacity: Decimal | None) -> Iterator[str]:
    team, flavor, resource, before, after = made.team, made.flavor, made.resource, made.before, made.after
    place, others = (flavor, resource), [each for each in queues if each is not queue]
    total = sum((limits.nominal for each in others if (limits := quotas_of(each).get(place))), after.nominal)
    if capacity is not None and total > capacity:
        yield (
            f"all teams together would have {text(total)} of {flavor} {resource}, and its nodes have "
            f"{text(capacity)}: Kueue would admit jobs whose pods fit on no node"
        )
    used = reservations(queue).get(place, NO_RESERVATION).used
    if after.borrow is not None and used > after.nominal + after.borrow:
        yield (
            f"running jobs of {team} use {text(used)}, more than its new maximum of "
            f"{text(after.nominal + after.borrow)}: they keep running, and no other job of the team starts until usage "
            "is below it"
        )
    if used > after.nominal and after.nominal < before.nominal:
        yield (
            f"{text(used - after.nominal)} of the quota that running jobs of {team} use would be borrowed: other "
            "teams' jobs may preempt them, if their queues reclaim (preemption.reclaimWithinCohort)"
        )
    for each in others:
        borrowed = reservations(each).get(place, NO_RESERVATION).borrowed
        if borrowed > 0 and after.lendable < before.lendable:
            yield (
                f"{team_of(each)} borrows {text(borrowed)} now, and {team} would lend less: its jobs may be preempted"
            )
    with_it = [
        f"{name} {quota['nominalQuota']}"
        for where, name, quota in resources_of(queue)
        if where == flavor and name in ("cpu", "memory")
    ]
    if with_it and after.nominal != before.nominal and resource not in ("cpu", "memory"):
        yield (
            f"{', '.join(with_it)} of {flavor} stay unchanged: jobs need them beside their GPUs (--resource cpu, "
            "--resource memory)"
        )
    if (queue["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == "Helm":
        yield "Helm manages this queue: add the output of --values to its values, or `helm upgrade` undoes the change"


def _shown(queue: Object) -> list[str]:
    document = {
        "apiVersion": queue["apiVersion"],
        "kind": queue["kind"],
        "metadata": {"name": queue["metadata"]["name"]},
        "spec": queue["spec"],
    }
    return yaml.safe_dump(document, sort_keys=False).splitlines()
