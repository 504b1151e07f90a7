"""Base models: their immutable copies, loading them for a task, and what training attaches to them.

Knows no rows, no optimizer and no Ray.
"""

from ray_jobs.models.attach import attach, block_prefixes, trainable
from ray_jobs.models.build import build, build_base, reference_of
from ray_jobs.models.load import (
    fetch_base,
    has_head,
    load_base,
    load_config,
    load_processor,
    load_published,
    longest_read,
    precision_name,
    require_memory,
    resolve_precision,
    save_published,
)

__all__ = [
    "attach", "block_prefixes", "build", "build_base", "fetch_base", "has_head", "load_base",
    "load_config", "load_processor", "load_published", "longest_read", "precision_name", "reference_of",
    "require_memory", "resolve_precision", "save_published", "trainable",
]  # fmt: skip
