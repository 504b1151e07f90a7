"""Job specs for tests: a test names the fields it is about, and the rest has defaults."""

from __future__ import annotations

from typing import Any

from ray_jobs.spec import JobSpec, parse_spec


def make_spec(name: str = "greeter", /, **fields: Any) -> JobSpec:
    """A small chat job. `fields` replace top-level fields: `make_spec(training={"method": "full"})`."""
    document = {"name": name, "task": "chat", "base_model": "org/base", "data": {"train": "s3://bucket/rows.jsonl"}}
    return parse_spec(document | fields)
