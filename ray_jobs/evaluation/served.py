"""Parity on a worker: from the places of a job's models in the store to the engine that will serve them."""

from __future__ import annotations

from typing import cast

from ray_jobs.engine import Dtype, EngineSettings, detect_hardware, serving_dtype
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.parity import ParityReport, check_parity
from ray_jobs.evaluation.publish import SendProgress
from ray_jobs.spec import JobSpec, ServingSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.tasks.positions import capped


def compare_with_engine(
    spec: JobSpec,
    serving: ServingSection,
    lora_rank: int | None,
    evaluation: Evaluation,
    base_key: str,
    prompts: PromptSetting,
    store: Workspace,
    report: SendProgress,
) -> ParityReport:
    """The comparison, on a machine of the kind that serves. `serving`, `lora_rank`: of the engine that will serve."""
    hardware = detect_hardware()
    trained = cast(Dtype, evaluation.dtype)
    settings = EngineSettings(
        dtype=serving_dtype(trained, hardware),
        hardware=hardware,
        max_model_len=capped(serving.max_model_len, evaluation.longest_read),
        max_lora_rank=lora_rank,
        max_loras=serving.max_loras,
        kv_cache_gib=serving.kv_cache_gib,
        max_num_seqs=serving.max_ongoing_requests,
    )
    candidate = store.fetch(evaluation.candidate_key)

    def progress(done: int, total: int) -> None:
        report((done, total, "prompts", {}))

    return check_parity(
        store.fetch(base_key) if evaluation.is_adapter else candidate,
        evaluation.parity_prompts,
        settings,
        trained_dtype=trained,
        adapter_dir=candidate if evaluation.is_adapter else None,
        setting=prompts,
        max_mean_gap=spec.evaluation.parity.max_mean_logprob_gap,
        progress=progress,
    )
