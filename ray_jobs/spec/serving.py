"""The section `serving`: deployment and the limits of the serving engine."""

from __future__ import annotations

from pydantic import Field

from ray_jobs.spec.section import SpecSection


class ServingSection(SpecSection):
    deploy: bool = True
    """Deploy the version once it is registered."""
    max_model_len: int = Field(2048, ge=64)
    """Longest prompt plus answer, in tokens."""
    max_loras: int = Field(4, ge=1)
    """Most adapters that a base's engine holds in memory at once."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Most requests that a replica processes at once."""
    max_queued_requests: int = Field(128, ge=1)
    """Most requests that wait beyond those; more are answered 429."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of a CPU engine's key/value cache, in GiB (a GPU engine takes what is free)."""
