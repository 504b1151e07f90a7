"""The launcher interface: what a runner needs, what state it is in, and what a launcher does with it.

A runner is the process that runs `kitae resume JOB`. Its job's record in the store holds the progress; a launcher
reports only whether the runner is alive. Does not know Ray (`ray_job`) or Kubernetes (`kubernetes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ray_jobs.registry.api_names import DEFAULT_TEAM
from ray_jobs.spec import JobSpec

RunnerState = Literal["pending", "running", "ended", "unknown", "unreachable"]
"""`unknown`: the launcher answers and has never heard of it, or has forgotten it. `unreachable`: it does not answer."""


@dataclass(frozen=True)
class Runner:
    """What a launcher says of one runner."""

    state: RunnerState
    message: str = ""
    """Why it ended, or why it waits, where the launcher knows."""
    interrupted_at: float | None = None
    """Unix seconds. When the launcher last took its machines away; it waits for others, or runs anew on them. An
    attempt at its job from before is no more."""
    hopeless: bool = False
    """Whatever is wrong would be wrong with the next one, too."""


UNKNOWN, UNREACHABLE = Runner("unknown"), Runner("unreachable")


@dataclass(frozen=True)
class Needs:
    """What a runner's job asks of the machines, and on whose account."""

    job_id: str
    digest: str
    """16 hex digits that tell the job from others."""
    team: str
    priority: int
    """-100 to 100."""
    workers: int
    cpus_per_worker: float
    gpus_per_worker: int

    @classmethod
    def of(cls, spec: JobSpec) -> Needs:
        """Of a job file."""
        return cls(
            job_id=spec.job_id,
            digest=spec.digest(),
            team=spec.team or DEFAULT_TEAM,
            priority=spec.priority,
            workers=spec.compute.workers,
            cpus_per_worker=spec.compute.cpus_per_worker,
            gpus_per_worker=spec.compute.gpus_per_worker,
        )


class Launcher(Protocol):
    """Where runners run. Raises MachineError where it does not answer or refuses."""

    def check(self, needs: Needs) -> None:
        """RequestTooLarge where no more than the cluster has could ever do, UnknownQueue where the team has no place
        in it."""
        ...

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        """Start `kitae ARGUMENTS` under this id; a second call with an id that is taken does nothing."""
        ...

    def stop(self, runner_id: str) -> None:
        """Ask a runner to end, and end it if it does not; no error where there is none."""
        ...

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        """Every runner it knows whose id begins so; `fresh`: as it is now, not as it was seconds ago."""
        ...
