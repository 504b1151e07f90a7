"""Jobs replayed through the queues of a pool: when each would have started, and in which flavor. Pure.

A discrete-event simulation of Kueue 0.19's admission: nominal quotas, borrowing and lending limits in a flat cohort,
priority and then FIFO (BestEffortFIFO, StrictFIFO), preemption within a queue, and reclaiming of borrowed quota.
`docs/decisions/quota.md` lists what is not modelled.

    outcomes = simulate(pool, queued_jobs)

A cycle considers every team's head, as Kueue's scheduler does: those that need not borrow first, then by priority, then
by arrival. A head that does not fit is set aside until some job ends. Jobs of one team, kind and size
fit or do not fit together, so a queue is one heap for each kind and size, and only the heaps' heads are considered: a
queue of thousands costs no more than a short one.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, pairwise

from ray_jobs.kueue.pool import CohortUsage, Pool, TeamQuota, UnitKind, thousandths

RESTART_S = 300.0
"""Seconds of work that a preemption costs: those since the last checkpoint, and a start. At most the time it ran."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job of the simulation."""

    name: str
    team: str
    arrival_s: float
    duration_s: float
    units: float
    """GPUs or cores, all of one flavor."""
    kind: UnitKind = "gpu"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Allocation:
    """A period in which a job had its units, and the flavor."""

    start_s: float
    end_s: float
    flavor: str


@dataclass(frozen=True, slots=True)
class QueuedJobOutcome:
    """The allocations of a job."""

    queued_job: QueuedJob
    allocations: tuple[Allocation, ...]
    """All but the last ended with a preemption. Empty: the job fits into no quota and never started."""

    @property
    def started(self) -> bool:
        return bool(self.allocations)

    @property
    def wait_s(self) -> float:
        """Seconds in the queue, also after preemptions. ValueError if it never started."""
        if not self.allocations:
            raise ValueError(f"{self.queued_job.name} never started")
        first = self.allocations[0].start_s - self.queued_job.arrival_s
        return first + sum(later.start_s - earlier.end_s for earlier, later in pairwise(self.allocations))


def simulate(
    pool: Pool,
    queued_jobs: Sequence[QueuedJob],
    *,
    running: Sequence[tuple[QueuedJob, str]] = (),
    restart_s: float = RESTART_S,
) -> list[QueuedJobOutcome]:
    """An outcome for each of `queued_jobs`, in their order.

    `running`: jobs that have their units from their arrival on, each with its flavor; the duration is the remaining
    one. They have no outcomes. ValueError for a job of a team that the pool does not have.
    """
    jobs = [_simulated(queued_job, i) for i, queued_job in enumerate(queued_jobs)]
    groups: dict[str, list[_SimulatedJob]] = defaultdict(list)
    for job in jobs:
        groups[_group_of(pool, job.queued_job.team)].append(job)
    for name, members in groups.items():
        begun = [(queued_job, flavor) for queued_job, flavor in running if _group_of(pool, queued_job.team) == name]
        _CohortSimulation(pool, name, restart_s).run(members, begun)
    return [QueuedJobOutcome(job.queued_job, tuple(job.allocations)) for job in jobs]


def _group_of(pool: Pool, team: str) -> str:
    """Teams of one cohort share their quotas; a team without a cohort is alone."""
    if team not in pool.teams:
        raise ValueError(f"no team {team!r} in the pool")
    cohort = pool.teams[team].cohort
    return f"cohort {cohort}" if cohort is not None else f"team {team}"


@dataclass(slots=True)
class _SimulatedJob:
    """A queued job in the simulation. Ordered in a queue by `key`."""

    queued_job: QueuedJob
    number: int
    """Index among the queued jobs; below 0 for one that is running at the start."""
    units: int
    left_s: float
    key: tuple[float, float, int]
    epoch: int = 0
    """Number of preemptions; the end of an earlier allocation is ignored."""
    start_s: float = 0.0
    flavor: str = ""
    allocations: list[Allocation] = field(default_factory=list)


def _simulated(queued_job: QueuedJob, number: int) -> _SimulatedJob:
    key = (-queued_job.priority, queued_job.arrival_s, number)
    return _SimulatedJob(queued_job, number, thousandths(queued_job.units), queued_job.duration_s, key)


def _preempted_first(job: _SimulatedJob) -> tuple[int, float, int]:
    return job.queued_job.priority, -job.start_s, -job.number


_Class = tuple[UnitKind, int]


class _TeamQueue:
    """Waiting jobs of one team, by kind and size."""

    def __init__(self, name: str, team: TeamQuota) -> None:
        self.name, self.team = name, team
        self.heaps: dict[_Class, list[tuple[tuple[float, float, int], _SimulatedJob]]] = {}
        self.aside: set[_Class] = set()
        """Classes whose head did not fit since a job last ended."""
        self.strict = team.strategy == "StrictFIFO"
        self.running: dict[int, _SimulatedJob] = {}

    def push(self, job: _SimulatedJob) -> None:
        kind: _Class = (job.queued_job.kind, job.units)
        heap = self.heaps.setdefault(kind, [])
        heapq.heappush(heap, (job.key, job))
        if heap[0][1] is job:  # else its predecessor did not fit either
            self.aside.discard(kind)

    def head(self) -> _SimulatedJob | None:
        heads = [heap[0] for kind, heap in self.heaps.items() if heap and (self.strict or kind not in self.aside)]
        return min(heads)[1] if heads else None

    def pop(self, job: _SimulatedJob) -> None:
        _, popped = heapq.heappop(self.heaps[job.queued_job.kind, job.units])
        assert popped is job, "only a head is taken"

    def set_aside(self, job: _SimulatedJob) -> bool:
        """True: the queue has another head now."""
        if not self.strict:
            self.aside.add((job.queued_job.kind, job.units))
        return not self.strict


class _CohortSimulation:
    """One simulation: the teams that share their quotas."""

    def __init__(self, pool: Pool, name: str, restart_s: float) -> None:
        teams = {team: own for team, own in pool.teams.items() if _group_of(pool, team) == name}
        self.queues = {team: _TeamQueue(team, own) for team, own in teams.items()}
        (cohort,) = {own.cohort for own in teams.values()}
        self.usage = {
            flavor: CohortUsage(
                {team: own.limits[flavor] for team, own in teams.items() if flavor in own.limits},
                in_cohort=cohort is not None,
                shared=Decimal(0) if cohort is None else pool.shared.get((cohort, flavor), Decimal(0)),
            )
            for flavor in dict.fromkeys(flavor for own in teams.values() for flavor in own.limits)
        }
        kinds: tuple[UnitKind, ...] = ("gpu", "cpu")
        self.flavors = {(team, kind): pool.flavors_of(team, kind) for team in teams for kind in kinds}
        self.restart_s = restart_s
        self.now_s = 0.0
        self.ends: list[tuple[float, int, int, _SimulatedJob]] = []
        self.preempted: list[_SimulatedJob] = []
        """Preempted at this moment; they return to their queues at the next one. Otherwise two teams could alternate
        without end: each reclaims what the other's job borrows after preempting its own team's."""

    def run(self, jobs: Sequence[_SimulatedJob], running: Sequence[tuple[QueuedJob, str]]) -> None:
        for i, (queued_job, flavor) in enumerate(running):
            self.now_s = queued_job.arrival_s
            self._start(_simulated(queued_job, -1 - i), flavor)
        for batch in self._moments(jobs):
            back, self.preempted = self.preempted, []
            for job in [*back, *filter(self._could_ever, batch)]:
                self.queues[job.queued_job.team].push(job)
            while self._cycle():
                pass

    def _moments(self, jobs: Sequence[_SimulatedJob]) -> Iterator[list[_SimulatedJob]]:
        """Advance to each time at which jobs end or arrive: end the ending ones, yield the arriving ones."""
        latest_first = sorted(jobs, key=lambda job: (job.queued_job.arrival_s, job.number), reverse=True)
        while latest_first or self.ends:
            next_arrivals = [job.queued_job.arrival_s for job in latest_first[-1:]]
            self.now_s = min([*next_arrivals, *(end_s for end_s, *_ in self.ends[:1])])
            ended = False
            while self.ends and self.ends[0][0] <= self.now_s:
                _, _, epoch, job = heapq.heappop(self.ends)
                if job.epoch == epoch and job.number in self.queues[job.queued_job.team].running:
                    self._stop(job)
                    ended = True
            if ended:
                self._try_all_again()
            batch = []
            while latest_first and latest_first[-1].queued_job.arrival_s <= self.now_s:
                batch.append(latest_first.pop())
            if ended or batch:
                yield batch

    def _try_all_again(self) -> None:
        for queue in self.queues.values():
            queue.aside.clear()

    def _could_ever(self, job: _SimulatedJob) -> bool:
        team = job.queued_job.team
        return any(job.units <= self.usage[flavor].most(team) for flavor in self.flavors[team, job.queued_job.kind])

    def _cycle(self) -> bool:
        """One cycle of the scheduler. True: something changed, so another cycle may change more."""
        entries: list[tuple[bool, tuple[float, float, int], _TeamQueue, _SimulatedJob, str, bool]] = []
        changed = False
        for queue in self.queues.values():
            job = queue.head()
            if job is None:
                continue
            flavor, fits = self._assign(queue.team, job)
            if flavor is None:
                changed |= queue.set_aside(job)
                continue
            usage = self.usage[flavor]
            borrows = fits and usage.used[queue.name] + job.units > usage.nominal[queue.name]
            entries.append((borrows, job.key, queue, job, flavor, fits))
        entries.sort(key=lambda entry: entry[:2])
        reserved: list[tuple[str, str, int]] = []
        for _, _, queue, job, flavor, fits in entries:
            usage = self.usage[flavor]
            if fits:
                if job.units <= usage.available(queue.name):  # else an earlier entry took the room
                    queue.pop(job)
                    self._start(job, flavor)
                    changed = True
                continue
            victims = self._victims(queue, job, flavor)
            if victims:
                queue.pop(job)
                for victim in victims:
                    self._preempt(victim)
                self._start(job, flavor)
                self._try_all_again()
                changed = True
                continue
            # No job to preempt: the free quota is reserved for it in this cycle, unless it can be reclaimed any time.
            if queue.team.reclaim != "Any":
                room = min(job.units, max(0, usage.nominal[queue.name] - usage.used[queue.name]))
                usage.add(queue.name, room)
                reserved.append((flavor, queue.name, room))
            changed |= queue.set_aside(job)
        for flavor, team, units in reserved:
            self.usage[flavor].add(team, -units)
        return changed

    def _assign(self, team: TeamQuota, job: _SimulatedJob) -> tuple[str | None, bool]:
        """(flavor, True) where the job fits, (flavor, False) where it has to preempt, (None, False) where neither."""
        name, borrowing, preempting = job.queued_job.team, None, None
        for flavor in self.flavors[name, job.queued_job.kind]:
            usage = self.usage[flavor]
            if job.units <= usage.available(name):
                if team.borrow_first or usage.used[name] + job.units <= usage.nominal[name]:
                    return flavor, True
                borrowing = borrowing or flavor
            elif job.units <= usage.nominal[name]:
                if team.preempt_first:
                    return flavor, False
                preempting = preempting or flavor
        return (borrowing, True) if borrowing else (preempting, False)

    # ---- preemption -------------------------------------------------------------------------------------------------

    def _victims(self, queue: _TeamQueue, job: _SimulatedJob, flavor: str) -> list[_SimulatedJob]:
        """Kueue's classical preemption: borrowing jobs of other teams and preemptible jobs of the own team, the lowest
        priority and the latest start first, no more than needed."""
        priority, arrival_s, usage = job.queued_job.priority, job.queued_job.arrival_s, self.usage[flavor]
        newer = queue.team.within == "LowerOrNewerEqualPriority"
        own = [
            each
            for each in queue.running.values()
            if each.flavor == flavor
            and queue.team.within != "Never"
            and (
                each.queued_job.priority < priority
                or (newer and each.queued_job.priority == priority and each.queued_job.arrival_s > arrival_s)
            )
        ]
        if queue.team.reclaim != "Never" and usage.used[queue.name] < usage.nominal[queue.name]:
            others = [
                each
                for other in self.queues.values()
                if other is not queue and usage.used.get(other.name, 0) > usage.nominal.get(other.name, 0)
                for each in other.running.values()
                if each.flavor == flavor and (queue.team.reclaim == "Any" or each.queued_job.priority < priority)
            ]
            if others and (found := self._fewest(queue.name, job, flavor, [others, own], borrowing=False)):
                return found
        return self._fewest(queue.name, job, flavor, [own], borrowing=True)

    def _fewest(
        self, team: str, job: _SimulatedJob, flavor: str, groups: Sequence[Sequence[_SimulatedJob]], *, borrowing: bool
    ) -> list[_SimulatedJob]:
        """The candidates to preempt, those of the first group first. Empty: all of them are not enough."""
        usage = self.usage[flavor]

        def fits() -> bool:
            allowed = borrowing or usage.used[team] + job.units <= usage.nominal[team]
            return allowed and job.units <= usage.available(team)

        if usage.available(team) + sum(each.units for group in groups for each in group) < job.units:
            return []
        gone: list[_SimulatedJob] = []
        for each in chain.from_iterable(sorted(group, key=_preempted_first) for group in groups):
            other = each.queued_job.team
            if other != team and usage.used[other] <= usage.nominal[other]:
                continue  # it no longer borrows
            usage.add(other, -each.units)
            gone.append(each)
            if fits():
                break
        needed = [gone.pop()] if gone and fits() else []
        for each in reversed(gone):
            usage.add(each.queued_job.team, each.units)
            if needed and not fits():
                usage.add(each.queued_job.team, -each.units)
                needed.append(each)
        for each in needed:
            usage.add(each.queued_job.team, each.units)
        return needed

    def _preempt(self, job: _SimulatedJob) -> None:
        ran_s = self.now_s - job.start_s
        self._stop(job)
        job.left_s -= max(0.0, ran_s - self.restart_s)
        job.epoch += 1
        self.preempted.append(job)

    # ---- allocations ------------------------------------------------------------------------------------------------

    def _start(self, job: _SimulatedJob, flavor: str) -> None:
        job.start_s, job.flavor = self.now_s, flavor
        self.usage[flavor].add(job.queued_job.team, job.units)
        self.queues[job.queued_job.team].running[job.number] = job
        heapq.heappush(self.ends, (self.now_s + job.left_s, job.number, job.epoch, job))

    def _stop(self, job: _SimulatedJob) -> None:
        self.usage[job.flavor].add(job.queued_job.team, -job.units)
        del self.queues[job.queued_job.team].running[job.number]
        job.allocations.append(Allocation(job.start_s, self.now_s, job.flavor))
