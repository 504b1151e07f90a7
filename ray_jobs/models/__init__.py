"""Base models: their immutable copies, loading them for a task, and what training attaches to them."""

from ray_jobs.models.load import (
    attach,
    block_prefixes,
    check_architecture,
    has_dropout,
    has_head,
    load_base,
    load_config,
    load_published,
    load_tokenizer,
    precision_name,
    require_memory,
    resolve_precision,
    save_published,
    trainable,
)

__all__ = [
    "attach",
    "block_prefixes",
    "check_architecture",
    "has_dropout",
    "has_head",
    "load_base",
    "load_config",
    "load_published",
    "load_tokenizer",
    "precision_name",
    "require_memory",
    "resolve_precision",
    "save_published",
    "trainable",
]
