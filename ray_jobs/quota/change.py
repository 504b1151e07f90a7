"""A quota change: checked as a whole, as a diff to review, as a patch to apply, and with what undoes it. Pure.

change = plan(queues, "blue", "h100", {"nominal": "8", "borrow": "none"})
cluster.patch(CLUSTER_QUEUE, change.queue, change.patch)    # refused if somebody changed it meanwhile
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from ray_jobs.errors import KitaeError, SpecError, suggestion
from ray_jobs.kueue.objects import Object, held, resources_of
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.quota.pool import NONE, Limits, lendable, problems_of, with_field
from ray_jobs.quota.queues import counted, limits_of, team_of

Field = Literal["nominal", "borrow", "lend"]
_NAMES: dict[Field, str] = {"nominal": "nominalQuota", "borrow": "borrowingLimit", "lend": "lendingLimit"}
_VALUES: dict[Field, str] = {"nominal": "nominal", "borrow": "borrowingLimit", "lend": "lendingLimit"}
_CONTEXT_LINES = 5


@dataclass(frozen=True)
class Change:
    """What would be done."""

    team: str
    flavor: str
    resource: str
    queue: str
    """The ClusterQueue."""
    before: Limits
    after: Limits
    patch: Object
    """A merge patch that holds the version it is made from."""
    diff: str
    """Of the ClusterQueue as YAML; empty if nothing changes."""
    warnings: tuple[str, ...] = ()

    @property
    def undo(self) -> str:
        """The command that brings back what was."""
        return _command(self.team, self.flavor, self.resource, self.before)

    @property
    def values(self) -> str:
        """The same as values of the chart, for a repository."""
        fields = {_VALUES[field]: _plain(amount) for field, amount in _fields(self.after).items() if amount is not None}
        kind = self.resource if self.resource in ("cpu", "memory") else "gpu"
        document = {"teams": {self.team: {"quotas": {self.flavor: {kind: fields}}}}}
        return yaml.safe_dump(document, sort_keys=False)


def plan(
    queues: Sequence[Object],
    team: str,
    flavor: str,
    given: Mapping[Field, str],
    *,
    resource: str | None = None,
    capacity: Amount | None = None,
) -> Change:
    """`given`: what is to change. `resource` None: the one by which the flavour is counted. `capacity`: what the
    flavour's nodes have of it; None: not known. SpecError naming everything that is wrong."""
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
            else f"no flavour {flavor!r}; {suggestion(flavor, flavors)}"
        )
    # By all teams: one with a nominal quota of 0 may borrow GPUs.
    resource = resource or counted(queues).get(flavor, "cpu")
    quota = None if queue is None else _quota(queue, flavor, resource)
    if queue is not None and flavor in flavors and quota is None:
        known = [name for where, name, _ in resources_of(queue) if where == flavor]
        problems.append(f"{flavor} of team {team} has no resource {resource!r}; {suggestion(resource, known)}")
    if not given:
        problems.append("nothing is to change: give --nominal, --borrow or --lend")
    before = Limits(Amount(0)) if quota is None else limits_of(quota)
    after = before
    for field, text in given.items():
        try:
            after = with_field(after, field, text)
        except KitaeError as error:
            problems.append(f"--{field}: {error.message}")
    problems += problems_of(after)
    if queue is not None and not (queue.get("spec") or {}).get("cohortName"):
        limited = [f"--{field}" for field in ("borrow", "lend") if given.get(field, NONE) != NONE]
        if limited:
            problems.append(f"{' and '.join(limited)}: the queue of team {team} is in no cohort, so nobody lends")
    if problems:
        raise SpecError(f"the quota of team {team!r} cannot be set so", details=problems)
    assert queue is not None, "else there was a problem"
    made = _change(queue, flavor, resource, before, after)
    return replace(made, warnings=tuple(_warnings(queues, queue, made, capacity)))


def capacity_of(nodes: Sequence[Object], flavor: Object | None, resource: str) -> Amount | None:
    """What the nodes that a ResourceFlavor means can give. None: there is no such flavour."""
    if flavor is None:
        return None
    labels = (flavor.get("spec") or {}).get("nodeLabels") or {}
    fitting = [node for node in nodes if labels.items() <= (node["metadata"].get("labels") or {}).items()]
    given = [((node.get("status") or {}).get("allocatable") or {}).get(resource, 0) for node in fitting]
    return sum((amounts.parse(amount) for amount in given), Amount(0))


def _change(queue: Object, flavor: str, resource: str, before: Limits, after: Limits) -> Change:
    changed = copy.deepcopy(queue)
    quota, was = _quota(changed, flavor, resource), _fields(before)
    assert quota is not None
    for field, amount in _fields(after).items():
        if amount == was[field]:
            continue  # what is there stays as it is spelled, and in its place
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
            f"{amounts.text(capacity)}: jobs would be admitted whose pods find no node"
        )
    used = held(queue).get((flavor, resource))
    if used is not None:
        most = None if after.borrow is None else after.nominal + after.borrow
        if most is not None and used.used > most:
            found.append(
                f"running jobs of {team} hold {amounts.text(used.used)}, more than the {amounts.text(most)} it could "
                "have then: they run on, and nothing of it starts until it is below"
            )
        if used.used > after.nominal and after.nominal < before.nominal:
            over = used.used - after.nominal
            found.append(
                f"{amounts.text(over)} of what running jobs of {team} hold would be borrowed: other teams' jobs may "
                "preempt them, where their queues reclaim (preemption.reclaimWithinCohort)"
            )
    for each in queues:
        borrowed = held(each).get((flavor, resource))
        if each is not queue and borrowed is not None and borrowed.borrowed > 0 and lendable(after) < lendable(before):
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
                f"{', '.join(with_it)} of {flavor} stay as they are: jobs need them with their GPUs (--resource cpu, "
                "--resource memory)"
            )
    if ((queue["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by")) == "Helm":
        found.append("Helm made this queue: the next `helm upgrade` brings back its values, unless --values goes there")
    return found


def _fields(limits: Limits) -> dict[Field, Amount | None]:
    return {"nominal": limits.nominal, "borrow": limits.borrow, "lend": limits.lend}


def _quota(queue: Object, flavor: str, resource: str) -> Object | None:
    return next((q for where, name, q in resources_of(queue) if (where, name) == (flavor, resource)), None)


def _command(team: str, flavor: str, resource: str, limits: Limits) -> str:
    parts = [f"--{name} {NONE if amount is None else amounts.text(amount)}" for name, amount in _fields(limits).items()]
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
