"""Jobs played through the queues of a pool: when each would have started, and where. Pure.

A discrete-event simulation of Kueue 0.19's admission: nominal quotas, borrowing and lending limits in a flat cohort,
priority and then FIFO (BestEffortFIFO, StrictFIFO), preemption within a queue, and reclaiming what others borrowed.
`docs/decisions/quota.md` says what is left out.

    result = simulate(pool, works)

In each cycle every team's head is looked at, as Kueue's scheduler does: those that need not borrow first, then by
priority, then by arrival. What does not fit is set aside until something ends. All works of one kind and size of a team
fit or do not fit together, so a queue is kept as one heap for each of these, and only their heads are looked at: that
keeps a queue of thousands cheap.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ray_jobs.quota.cohort_usage import book_of, whole
from ray_jobs.quota.pool import Kind, Pool, Team

RESTART_S = 300.0
"""What a preemption costs a job besides waiting, or all that it ran if that is less: what it did since its last
checkpoint, and starting again."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job, as far as the queues are concerned."""

    name: str
    team: str
    arrival_s: float
    duration_s: float
    units: float
    """GPUs, or cores; all of one flavour."""
    kind: Kind = "gpu"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """From when to when a work had its units, and in which flavour."""

    start_s: float
    end_s: float
    flavor: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a work."""

    work: Work
    stretches: tuple[Stretch, ...]
    """Of more than one, all but the last ended with a preemption. Empty: it fits into no quota and never started."""

    @property
    def started(self) -> bool:
        return bool(self.stretches)

    @property
    def wait_s(self) -> float:
        """Seconds in the queue, those after preemptions included. ValueError if it never started."""
        if not self.stretches:
            raise ValueError(f"{self.work.name} never started")
        first = self.stretches[0].start_s - self.work.arrival_s
        later = sum(b.start_s - a.end_s for a, b in zip(self.stretches, self.stretches[1:], strict=False))
        return first + later

    @property
    def run_s(self) -> float:
        return sum(stretch.end_s - stretch.start_s for stretch in self.stretches)


def simulate(
    pool: Pool,
    works: Sequence[Work],
    *,
    running: Sequence[tuple[Work, str]] = (),
    restart_s: float = RESTART_S,
) -> list[Outcome]:
    """An outcome for each of `works`, in their order.

    `running`: works that have their units, each with its flavour, from its arrival on; what is left of it is its
    duration. They have no outcomes. ValueError for a work of a team that the pool does not have.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, work in enumerate(works):
        groups[_group(pool, work.team)].append(i)
    outcomes: list[Outcome | None] = [None] * len(works)
    for name, members in groups.items():
        begun = [(work, flavor) for work, flavor in running if _group(pool, work.team) == name]
        played = _Group(pool, name, restart_s).play([works[i] for i in members], begun)
        for i, outcome in zip(members, played, strict=True):
            outcomes[i] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _group(pool: Pool, team: str) -> str:
    """Teams of one cohort share; what has none is by itself."""
    if team not in pool.teams:
        raise ValueError(f"there is no team {team!r} in the pool")
    cohort = pool.teams[team].cohort
    return f"cohort {cohort}" if cohort is not None else f"team {team}"


@dataclass(slots=True)
class _Job:
    """A work under way. Ordered in a queue by `key`."""

    work: Work
    number: int
    """Its place among the works; below 0 for one that runs already."""
    units: int
    left_s: float
    key: tuple[float, float, int]
    epoch: int = 0
    """Of its stretch; an end that was told of an earlier one does not count."""
    start_s: float = 0.0
    flavor: str = ""
    stretches: list[Stretch] = field(default_factory=list)


_Class = tuple[Kind, int]


class _Queue:
    """What waits of one team, by kind and size."""

    def __init__(self, name: str, team: Team) -> None:
        self.name, self.team = name, team
        self.heaps: dict[_Class, list[tuple[tuple[float, float, int], _Job]]] = {}
        self.aside: set[_Class] = set()
        """Classes whose head was tried since something last ended."""
        self.strict = team.strategy == "StrictFIFO"
        self.running: dict[int, _Job] = {}

    def push(self, job: _Job) -> None:
        kind: _Class = (job.work.kind, job.units)
        heap = self.heaps.setdefault(kind, [])
        heapq.heappush(heap, (job.key, job))
        if heap[0][1] is job:  # else one that comes before it did not fit either
            self.aside.discard(kind)

    def head(self) -> _Job | None:
        best: tuple[tuple[float, float, int], _Job] | None = None
        for kind, heap in self.heaps.items():
            if heap and (self.strict or kind not in self.aside) and (best is None or heap[0][0] < best[0]):
                best = heap[0]
        return None if best is None else best[1]

    def pop(self, job: _Job) -> None:
        _, popped = heapq.heappop(self.heaps[job.work.kind, job.units])
        assert popped is job, "only a head is taken"

    def set_aside(self, job: _Job) -> None:
        self.aside.add((job.work.kind, job.units))


class _Group:
    """Teams that share: all that one simulation is about."""

    def __init__(self, pool: Pool, name: str, restart_s: float) -> None:
        teams = {team: own for team, own in pool.teams.items() if _group(pool, team) == name}
        self.queues = {team: _Queue(team, own) for team, own in teams.items()}
        flavors = dict.fromkeys(flavor for own in teams.values() for flavor in own.limits)
        self.books = {flavor: book_of(pool, flavor, teams) for flavor in flavors}
        self.flavors = {(team, kind): pool.flavors_of(team, kind) for team in teams for kind in _KINDS}
        self.restart_s = restart_s
        self.now_s = 0.0
        self.ends: list[tuple[float, int, int, _Job]] = []
        self.preempted: list[_Job] = []
        """At this moment: they have to stop first, and are back in their queues at the next. Without that, two teams
        can take turns for ever in reclaiming what the other's jobs borrow after preempting their own."""

    def play(self, works: Sequence[Work], running: Sequence[tuple[Work, str]]) -> list[Outcome]:
        jobs = [self._job(work, i) for i, work in enumerate(works)]
        for i, (work, flavor) in enumerate(running):
            self.now_s = work.arrival_s
            self._start(self._job(work, -1 - i), flavor)
        arrivals = sorted(jobs, key=lambda job: (job.work.arrival_s, job.number))
        for batch in self._moments(arrivals):
            back, self.preempted = self.preempted, []
            for job in [*back, *filter(self._could_ever, batch)]:
                self.queues[job.work.team].push(job)
            while self._cycle():
                pass
        return [Outcome(job.work, tuple(job.stretches)) for job in jobs]

    def _moments(self, arrivals: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Each time at which something happens, in order: what ends is ended first, what arrives is yielded."""
        i = 0
        while i < len(arrivals) or self.ends:
            next_end = self.ends[0][0] if self.ends else float("inf")
            next_arrival = arrivals[i].work.arrival_s if i < len(arrivals) else float("inf")
            self.now_s = min(next_end, next_arrival)
            ended = False
            while self.ends and self.ends[0][0] <= self.now_s:
                _, _, epoch, job = heapq.heappop(self.ends)
                if job.epoch == epoch and job.number in self.queues[job.work.team].running:
                    self._stop(job)
                    ended = True
            if ended:
                self._try_all_again()
            batch = []
            while i < len(arrivals) and arrivals[i].work.arrival_s <= self.now_s:
                batch.append(arrivals[i])
                i += 1
            if ended or batch:
                yield batch

    def _try_all_again(self) -> None:
        for queue in self.queues.values():
            queue.aside.clear()

    def _job(self, work: Work, number: int) -> _Job:
        key = (-work.priority, work.arrival_s, number)
        return _Job(work, number, whole(work.units), work.duration_s, key)

    def _could_ever(self, job: _Job) -> bool:
        team = job.work.team
        return any(job.units <= self.books[flavor].most(team) for flavor in self.flavors[team, job.work.kind])

    def _cycle(self) -> bool:
        """One of the scheduler's: whether anything changed, so that another may change more."""
        entries: list[tuple[bool, tuple[float, float, int], _Queue, _Job, str, bool]] = []
        changed = False
        for queue in self.queues.values():
            job = queue.head()
            if job is None:
                continue
            flavor, fits = self._assign(queue.team, job)
            if flavor is None:
                changed |= self._put_aside(queue, job)
                continue
            book = self.books[flavor]
            borrows = fits and book.used[queue.name] + job.units > book.nominal[queue.name]
            entries.append((borrows, job.key, queue, job, flavor, fits))
        entries.sort(key=lambda entry: entry[:2])
        reserved: list[tuple[str, str, int]] = []
        for _, _, queue, job, flavor, fits in entries:
            book = self.books[flavor]
            if fits:
                if job.units <= book.available(queue.name):  # else an entry before it took the room: the next cycle
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
            # Nobody to preempt: what there is is held back for it in this cycle, unless it can be reclaimed any time.
            if queue.team.reclaim != "Any":
                room = min(job.units, max(0, book.nominal[queue.name] - book.used[queue.name]))
                book.add(queue.name, room)
                reserved.append((flavor, queue.name, room))
            changed |= self._put_aside(queue, job)
        for flavor, team, units in reserved:
            self.books[flavor].add(team, -units)
        return changed

    def _put_aside(self, queue: _Queue, job: _Job) -> bool:
        """Whether the queue has another head then."""
        if queue.strict:
            return False
        queue.set_aside(job)
        return True

    def _assign(self, team: Team, job: _Job) -> tuple[str | None, bool]:
        """The flavour, and whether the job fits there as it is; if not, it would have to preempt. None: neither."""
        name, borrowing, preempting = job.work.team, None, None
        for flavor in self.flavors[name, job.work.kind]:
            book = self.books[flavor]
            if job.units <= book.available(name):
                if team.borrow_first or book.used[name] + job.units <= book.nominal[name]:
                    return flavor, True
                borrowing = borrowing or flavor
            elif job.units <= book.nominal[name]:
                if team.preempt_first:
                    return flavor, False
                preempting = preempting or flavor
        return (borrowing, True) if borrowing else (preempting, False)

    # ---- preemption -------------------------------------------------------------------------------------------------

    def _victims(self, queue: _Queue, job: _Job, flavor: str) -> list[_Job]:
        """As Kueue's classical preemption: of other teams what they borrowed, of its own what may be preempted; the
        lowest priority and the latest start first, and no more of them than are needed."""
        own, others = self._candidates(queue, job, flavor)
        if others:
            found = self._fewest(queue.name, job, flavor, [others, own], borrowing=False)
            if found:
                return found
        return self._fewest(queue.name, job, flavor, [own], borrowing=True)

    def _candidates(self, queue: _Queue, job: _Job, flavor: str) -> tuple[list[_Job], list[_Job]]:
        own: list[_Job] = []
        others: list[_Job] = []
        priority, arrival_s = job.work.priority, job.work.arrival_s
        if queue.team.within != "Never":
            newer = queue.team.within == "LowerOrNewerEqualPriority"
            own = [
                other
                for other in queue.running.values()
                if other.flavor == flavor
                and (
                    other.work.priority < priority
                    or (newer and other.work.priority == priority and other.work.arrival_s > arrival_s)
                )
            ]
        book = self.books[flavor]
        if queue.team.reclaim != "Never" and book.used[queue.name] < book.nominal[queue.name]:
            for other in self.queues.values():
                name = other.name
                if other is queue or name not in book.used or book.used[name] <= book.nominal[name]:
                    continue
                others += [
                    each
                    for each in other.running.values()
                    if each.flavor == flavor and (queue.team.reclaim == "Any" or each.work.priority < priority)
                ]
        return own, others

    def _fewest(
        self, team: str, job: _Job, flavor: str, groups: Sequence[Sequence[_Job]], *, borrowing: bool
    ) -> list[_Job]:
        """Which of the candidates go, those of the first group first; none if all of them are not enough."""
        book = self.books[flavor]

        def fits() -> bool:
            allowed = borrowing or book.used[team] + job.units <= book.nominal[team]
            return allowed and job.units <= book.available(team)

        if book.available(team) + sum(each.units for group in groups for each in group) < job.units:
            return []
        candidates = [each for group in groups for each in sorted(group, key=_preempted_first)]
        gone: list[_Job] = []
        enough = False
        for each in candidates:
            other = each.work.team
            if other != team and book.used[other] <= book.nominal[other]:
                continue  # it borrows no more
            book.add(other, -each.units)
            gone.append(each)
            if fits():
                enough = True
                break
        needed = gone[-1:] if enough else []
        for each in reversed(gone[:-1] if enough else []):
            book.add(each.work.team, each.units)
            if not fits():
                book.add(each.work.team, -each.units)
                needed.append(each)
        for each in needed if enough else gone:
            book.add(each.work.team, each.units)
        return needed

    def _preempt(self, job: _Job) -> None:
        ran_s = self.now_s - job.start_s
        self._stop(job)
        job.left_s -= max(0.0, ran_s - self.restart_s)
        job.epoch += 1
        self.preempted.append(job)

    # ---- having units -----------------------------------------------------------------------------------------------

    def _start(self, job: _Job, flavor: str) -> None:
        job.start_s, job.flavor = self.now_s, flavor
        self.books[flavor].add(job.work.team, job.units)
        self.queues[job.work.team].running[job.number] = job
        heapq.heappush(self.ends, (self.now_s + job.left_s, job.number, job.epoch, job))

    def _stop(self, job: _Job) -> None:
        self.books[job.flavor].add(job.work.team, -job.units)
        del self.queues[job.work.team].running[job.number]
        job.stretches.append(Stretch(job.start_s, self.now_s, job.flavor))


_KINDS: tuple[Kind, ...] = ("gpu", "cpu")


def _preempted_first(job: _Job) -> tuple[int, float, int]:
    return job.work.priority, -job.start_s, -job.number
