"""Objects and requests of a store over a year of 200 teams, and the requests of a tick over 10,000 open jobs.

    python -m benchmarks.upkeep            # a year of 200 teams: about ten minutes
    python -m benchmarks.upkeep 30 20      # 30 days of 20 teams

In this process, on a store in memory whose clock the simulation moves. Two replicas do the chores.
"""

from __future__ import annotations

import sys
import time
from statistics import mean

from tests.serving.year import Year, tick_over

STEP_H = 6
"""Hours between looks at the chores, of which one is due every hour: a year takes minutes instead of an hour."""


def main(days: int, teams: int) -> None:
    began_s = time.monotonic()
    year = Year(teams, step_h=STEP_H)
    marks = {days // 4, days // 2, 3 * days // 4, days}
    print(f"| day | {' | '.join(Year.SHOWN)} | requests of the day's chores |")
    print("| ---: |" + " ---: |" * (len(Year.SHOWN) + 1))
    for day in range(1, days + 1):
        year.live_a_day()
        if day in marks:
            counts = year.counts()
            print(
                f"| {day} | {' | '.join(f'{counts[name]:,}' for name in Year.SHOWN)} | {year.chores_cost:,} |",
                flush=True,
            )
    print(f"{time.monotonic() - began_s:.0f} s for {days} days of {teams} teams")
    for open_jobs in (300, 10_000):
        costs, seconds = tick_over(open_jobs)
        print(f"{open_jobs:,} open jobs: {mean(costs):,.0f} requests a tick, {max(costs):,} at most; {seconds:.2f} s")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]) if len(sys.argv) == 3 else (365, 200))
