"""The flow of a job from rows to an answering endpoint. Knows no task by name and no command."""

from ray_jobs.pipeline.pipeline import plan, run, tune
from ray_jobs.pipeline.results import search_summary
from ray_jobs.pipeline.submission import prepare

__all__ = ["plan", "prepare", "run", "search_summary", "tune"]
