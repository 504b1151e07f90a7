"""Store keys of the stages' results. Pure: a key depends on the inputs alone, so a repeated stage finds its result."""

from __future__ import annotations

from collections.abc import Mapping

from ray_jobs.digests import json_digest
from ray_jobs.spec import DataSection, JobSpec


def encoded_rows(dataset_digest: str, base_digest: str, data: DataSection) -> str:
    """Key of a dataset's rows as token ids of one base."""
    return f"datasets/{dataset_digest}/encoded/{json_digest([base_digest, data.max_tokens, data.too_long])}"


def checkpoints_prefix(job_id: str, spec: JobSpec, encoded_key: str, base_key: str) -> str:
    """Prefix of a training's checkpoints: the same for every number of workers."""
    training = spec.training.model_dump(mode="json", exclude={"checkpoints_to_keep", "publish_checkpoints"})
    return f"jobs/{job_id}/checkpoints/{json_digest([encoded_key, base_key, spec.task, training])}"


def search_prefix(job_id: str, materials: Mapping[str, tuple[str, str]]) -> str:
    """Prefix of a search's records. `materials`: (base key, key of its encoded rows) by base model."""
    return f"jobs/{job_id}/search/{json_digest(dict(materials))}"


def candidate_key(job_id: str, checkpoint_key: str) -> str:
    """Key of the publishable model built from a checkpoint."""
    return f"jobs/{job_id}/candidates/{checkpoint_key.rsplit('/', 1)[-1]}"
