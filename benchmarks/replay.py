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
from ray_jobs.kueue.simulate import QueuedJob, simulate

JOBS, RUNS, TEAMS, NOMINAL = 10_000, 5, 10, 16


def trace(load: float, jobs: int = JOBS) -> list[QueuedJob]:
    """Poisson arrivals that request `load` of all GPUs on average."""
    drawn = random.Random(5)
    sizes, mean_s, now_s = (1, 2, 4, 8), 3600.0, 0.0
    rate = load * TEAMS * NOMINAL / (statistics.mean(sizes) * mean_s)
    queued_jobs = []
    for i in range(jobs):
        now_s += drawn.expovariate(rate)
        team = min(TEAMS - 1, int(drawn.expovariate(0.3)))
        priority = drawn.choice((-100, 0, 0, 100))
        queued_jobs.append(
            QueuedJob(
                str(i), f"team-{team}", now_s, drawn.expovariate(1 / mean_s), drawn.choice(sizes), "gpu", priority
            )
        )
    return queued_jobs


def pool(**policy: str) -> Pool:
    teams = {f"team-{i}": TeamQuota({"h100": QuotaLimits(Decimal(NOMINAL))}, **policy) for i in range(TEAMS)}  # type: ignore[arg-type]  # policies by name
    return Pool(teams, {"h100": "gpu"})


def plain(queued_jobs: Sequence[QueuedJob]) -> float:
    """Mean wait in seconds; one pool of GPUs, best effort by priority."""
    free, waiting, ends, total_s = TEAMS * NOMINAL, [], [], 0.0  # type: ignore[var-annotated]  # two lists
    arrivals = sorted(queued_jobs, key=lambda queued_job: queued_job.arrival_s)
    i = 0
    while i < len(arrivals) or ends:
        now_s = min(ends[0][0] if ends else float("inf"), arrivals[i].arrival_s if i < len(arrivals) else float("inf"))
        while ends and ends[0][0] <= now_s:
            free += heapq.heappop(ends)[1]
        while i < len(arrivals) and arrivals[i].arrival_s <= now_s:
            waiting.append(arrivals[i])
            i += 1
        left = []
        for queued_job in sorted(waiting, key=lambda queued_job: (-queued_job.priority, queued_job.arrival_s)):
            if queued_job.units <= free:
                free -= int(queued_job.units)
                total_s += now_s - queued_job.arrival_s
                heapq.heappush(ends, (now_s + queued_job.duration_s, int(queued_job.units)))
            else:
                left.append(queued_job)
        waiting = left
    return total_s / len(queued_jobs)


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
        queued_jobs = trace(load, jobs)
        sides: list[tuple[str, Callable[[], object]]] = [
            ("replay", lambda queued_jobs=queued_jobs: simulate(pool(), queued_jobs)),  # type: ignore[misc]  # bound now
            ("replay with preemption", lambda queued_jobs=queued_jobs: simulate(preempting, queued_jobs)),  # type: ignore[misc]  # likewise
            ("plain simulator", lambda queued_jobs=queued_jobs: plain(queued_jobs)),  # type: ignore[misc]  # likewise
        ]
        for side, run in sides:
            seconds = measure(run, runs)
            print(
                f"{name}: {side}, {jobs:,} jobs: median {statistics.median(seconds):.2f} s of {runs} "
                f"({min(seconds):.2f} to {max(seconds):.2f})"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
