"""The launcher interface: what a runner needs, what state it is in, and what a launcher does with it.

A runner is the process that runs `kitae resume JOB`. Its job's record in the store holds the progress; a launcher
reports only whether the runner is alive. Does not know Ray (`ray_job`) or Kubernetes (`kubernetes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ray_jobs.spec import DEFAULT_TEAM, JobSpec

RunnerState = Literal["pending", "running", "ended", "unknown", "unreachable"]
"""`unknown`: the launcher answers and does not have the runner. `unreachable`: it does not answer."""


@dataclass(frozen=True)
class Runner:
    """The state of a runner."""

    state: RunnerState
    message: str = ""
    """Why it ended or why it waits, if the launcher knows."""
    interrupted_at: float | None = None
    """Unix seconds of the last eviction. The runner waits for other machines or runs on them; its job's attempts from
    before the eviction have ended."""
    hopeless: bool = False
    """The cause would also end the next runner of the job."""
    exit_code: int | None = None
    """How a runner that has ended exited, if the launcher knows it; negative: the signal that ended it."""


UNKNOWN, UNREACHABLE = Runner("unknown"), Runner("unreachable")


@dataclass(frozen=True)
class Needs:
    """A job's requests to the cluster, and the team whose quota they count against."""

    job_id: str
    digest: str
    """16 hex digits that identify the job."""
    team: str
    priority: int
    """-100 to 100."""
    workers: int
    cpus_per_worker: float
    gpus_per_worker: int

    @classmethod
    def of(cls, spec: JobSpec, job_id: str) -> Needs:
        """Those of a job file, and the id of its record."""
        return cls(
            job_id=job_id,
            digest=spec.digest(),
            team=spec.team or DEFAULT_TEAM,
            priority=spec.priority,
            workers=spec.compute.workers,
            cpus_per_worker=spec.compute.cpus_per_worker,
            gpus_per_worker=spec.compute.gpus_per_worker,
        )


class Launcher(Protocol):
    """Starts, stops and lists runners. Raises MachineError if the cluster does not answer or refuses."""

    def check(self, needs: Needs) -> None:
        """RequestTooLarge if no state of the cluster could ever admit the job, UnknownQueue if the team has no queue,
        PriorityTooHigh if the team may not use the job's priority."""

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        """Start `kitae ARGUMENTS` under this id. Does nothing if the id is taken."""

    def stop(self, runner_id: str) -> None:
        """Send SIGTERM, and SIGKILL after the grace period. No error if the runner does not exist."""

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        """The runners whose id begins with `prefix`. `fresh`: read from the cluster, not from a copy seconds old."""
