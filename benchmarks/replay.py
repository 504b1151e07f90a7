"""Time to replay 10,000 past jobs, against a plain simulator that scans its whole queue each time.

    python -m benchmarks.replay

Both replay the same trace: ten teams in a cohort, one flavor, four sizes, three priorities. The plain one has a single
pool of GPUs without teams, limits and preemption.
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

from ray_jobs.kueue.pool import Pool, QuotaLimits, TeamQuota
from ray_jobs.kueue.simulate import simulate
from ray_jobs.kueue.work import Work

JOBS, RUNS, TEAMS, NOMINAL = 10_000, 5, 10, 16


def trace(load: float, jobs: int = JOBS) -> list[Work]:
    """Poisson arrivals that request `load` of all GPUs on average."""
    drawn = random.Random(5)
    sizes, mean_s, now_s = (1, 2, 4, 8), 3600.0, 0.0
    rate = load * TEAMS * NOMINAL / (statistics.mean(sizes) * mean_s)
    works = []
    for i in range(jobs):
        now_s += drawn.expovariate(rate)
        team = min(TEAMS - 1, int(drawn.expovariate(0.3)))
        priority = drawn.choice((-100, 0, 0, 100))
        works.append(
            Work(str(i), f"team-{team}", now_s, drawn.expovariate(1 / mean_s), drawn.choice(sizes), "gpu", priority)
        )
    return works


def pool(**policy: str) -> Pool:
    teams = {f"team-{i}": TeamQuota({"h100": QuotaLimits(Decimal(NOMINAL))}, **policy) for i in range(TEAMS)}  # type: ignore[arg-type]  # policies by name
    return Pool(teams, {"h100": "gpu"})


def plain(works: Sequence[Work]) -> float:
    """Mean wait in seconds; one pool of GPUs, best effort by priority."""
    free, waiting, ends, total_s = TEAMS * NOMINAL, [], [], 0.0  # type: ignore[var-annotated]  # two lists
    arrivals = sorted(works, key=lambda work: work.arrival_s)
    i = 0
    while i < len(arrivals) or ends:
        now_s = min(ends[0][0] if ends else float("inf"), arrivals[i].arrival_s if i < len(arrivals) else float("inf"))
        while ends and ends[0][0] <= now_s:
            free += heapq.heappop(ends)[1]
        while i < len(arrivals) and arrivals[i].arrival_s <= now_s:
            waiting.append(arrivals[i])
            i += 1
        left = []
        for work in sorted(waiting, key=lambda work: (-work.priority, work.arrival_s)):
            if work.units <= free:
                free -= int(work.units)
                total_s += now_s - work.arrival_s
                heapq.heappush(ends, (now_s + work.duration_s, int(work.units)))
            else:
                left.append(work)
        waiting = left
    return total_s / len(works)


def measure(run: Callable[[], object], runs: int) -> list[float]:
    """Processor seconds of each run."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return seconds


def main(jobs: int = JOBS, runs: int = RUNS) -> None:
    preempting = pool(within="LowerPriority", reclaim="Any")
    for name, load in (("busy, 85 % of all GPUs requested", 0.85), ("overloaded, 130 %", 1.3)):
        works = trace(load, jobs)
        sides: list[tuple[str, Callable[[], object]]] = [
            ("replay", lambda works=works: simulate(pool(), works)),  # type: ignore[misc]  # bound now
            ("replay with preemption", lambda works=works: simulate(preempting, works)),  # type: ignore[misc]  # likewise
            ("plain simulator", lambda works=works: plain(works)),  # type: ignore[misc]  # likewise
        ]
        for side, run in sides:
            seconds = measure(run, runs)
            print(
                f"{name}: {side}, {jobs:,} jobs: median {statistics.median(seconds):.2f} s of {runs} "
                f"({min(seconds):.2f} to {max(seconds):.2f})"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
