"""The flow of a job from rows to an answering endpoint. Knows no task by name and no command."""

from ray_jobs.pipeline.pipeline import plan, run, tune
from ray_jobs.pipeline.results import search_summary

__all__ = ["plan", "run", "search_summary", "tune"]
