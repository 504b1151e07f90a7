"""The flow of a job from rows to an answering endpoint."""

from ray_jobs.pipeline.pipeline import (
    JobResult,
    plan,
    run,
    searched,
    stages_of,
    tune,
)

__all__ = [
    "JobResult",
    "plan",
    "run",
    "searched",
    "stages_of",
    "tune",
]
