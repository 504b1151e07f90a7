"""Evaluation and parity: the candidate's scores beside its base's, and the served model against the trained one."""

from __future__ import annotations

from typing import cast

from ray_jobs.engine import Dtype, EngineSettings, detect_hardware, serving_dtype
from ray_jobs.evaluation.evaluate import Evaluation, evaluate
from ray_jobs.evaluation.parity import ParityReport, check_parity
from ray_jobs.evaluation.publish import SendProgress
from ray_jobs.pipeline.outputs import Flow
from ray_jobs.pipeline.stage import StageContext
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store


def evaluate_candidate(flow: Flow, context: StageContext) -> Evaluation:
    """Build the candidate and score it and its base on held-out rows."""
    return context.on_worker(evaluate, flow.evaluate_inputs, compute=flow.spec.compute)


def compare_served(flow: Flow, context: StageContext) -> ParityReport:
    """Compare what is served with what was trained. Raises GateError where they differ."""
    return context.on_worker(compare_with_engine, flow.spec, flow.evaluation, flow.base.key, compute=flow.spec.compute)


def compare_with_engine(
    spec: JobSpec, evaluation: Evaluation, base_key: str, store: Store, report: SendProgress
) -> ParityReport:
    """The comparison, on a machine of the kind that serves."""
    hardware = detect_hardware()
    trained = cast(Dtype, evaluation.dtype)
    settings = EngineSettings(
        dtype=serving_dtype(trained, hardware),
        hardware=hardware,
        max_model_len=spec.serving.max_model_len,
        max_lora_rank=evaluation.lora_rank,
        max_loras=spec.serving.max_loras,
        kv_cache_gib=spec.serving.kv_cache_gib,
        max_num_seqs=spec.serving.max_ongoing_requests,
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
        max_mean_gap=spec.evaluation.parity.max_mean_logprob_gap,
        progress=progress,
    )
