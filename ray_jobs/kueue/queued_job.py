"""A job as the queues see it, and when it had its units: input and output of the simulation. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.kueue.pool import UnitKind


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
        later = sum(b.start_s - a.end_s for a, b in zip(self.allocations, self.allocations[1:], strict=False))
        return first + later
