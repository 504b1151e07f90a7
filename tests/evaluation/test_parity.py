"""The parity decision and the set-up of engines, without an engine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.engine import (
    GPU,
    LORA_RANKS,
    EngineSettings,
    Hardware,
    cpu_has_bf16,
    engine_environment,
    engine_kwargs,
    lora_capacity,
    serving_dtype,
)
from ray_jobs.errors import GateError, MachineError, ServingError
from ray_jobs.evaluation.parity import DEFAULT_BOUNDS, ParityPrompt, ParityReport, ServedAnswer, check_parity, compare

OLD_CPU = Hardware("cpu", native_bf16=False, threads=2)
NEW_CPU = Hardware("cpu", native_bf16=True, threads=2)
SETTINGS = EngineSettings(dtype="fp32", hardware=OLD_CPU, max_model_len=64)

PROMPT = ParityPrompt(
    messages=({"role": "user", "content": "hi"},),
    prompt_ids=(1, 2, 3, 4),
    answer_ids=(7, 8),
    answer_logprobs=(-0.5, -1.5),
)
SERVED = ServedAnswer(prompt_ids=(1, 2, 3, 4), answer_logprobs=(-0.5, -1.5))


def judge(
    served: list[ServedAnswer],
    *,
    bound: float = 1e-3,
    dtype: str = "float32",
    trained: list[ParityPrompt] | None = None,
) -> ParityReport:
    return compare(trained or [PROMPT] * len(served), served, bound=bound, dtype=dtype, expected_dtype="float32")


def test_equal_numbers_pass() -> None:
    report = judge([SERVED, SERVED])
    assert report.passed
    assert report.findings == ()
    assert (report.prompts, report.identical_prompts, report.answer_tokens) == (2, 2, 4)
    assert report.mean_gap == report.max_gap == 0.0


def test_gaps_are_measured_a_token() -> None:
    report = judge([replace(SERVED, answer_logprobs=(-0.5, -1.9))], bound=0.5)
    assert report.passed
    assert report.mean_gap == pytest.approx(0.2)
    assert report.max_gap == pytest.approx(0.4)


def test_different_prompt_tokens_fail_and_the_first_difference_is_named() -> None:
    report = judge([SERVED, replace(SERVED, prompt_ids=(1, 2, 9, 4, 5))])
    assert not report.passed
    (finding,) = report.findings
    assert finding.startswith("prompt 2: the token ids differ from position 2 on")
    assert "trained [1, 2, 3, 4], served [1, 2, 9, 4, 5] (4 and 5 tokens)" in finding
    assert report.identical_prompts == 1


def test_a_longer_prompt_differs_from_its_first_extra_token() -> None:
    report = judge([replace(SERVED, prompt_ids=(1, 2, 3, 4, 5))])
    assert "from position 4 on" in report.findings[0]


def test_a_gap_over_the_bound_fails_and_names_the_worst_token() -> None:
    report = judge([SERVED, replace(SERVED, answer_logprobs=(-0.5, -1.9))])
    assert not report.passed
    assert "prompt 2, answer token 1: trained -1.5000, served -1.9000 (gap 0.4)" in report.findings[0]


def test_a_gap_of_nan_fails() -> None:
    assert not judge([replace(SERVED, answer_logprobs=(-0.5, math.nan))]).passed


def test_another_number_format_fails_though_the_gap_is_small() -> None:
    report = judge([SERVED], dtype="bfloat16")
    assert not report.passed
    assert "bfloat16" in report.findings[0]
    assert "float32" in report.findings[0]


def test_an_adapter_that_leaves_the_gap_unchanged_is_not_applied() -> None:
    same = (-0.52, -1.52)
    report = judge([replace(SERVED, answer_logprobs=same, base_logprobs=same)], bound=0.05)
    assert not report.passed
    assert report.findings == ("the adapter is not applied: the gap is 0.02 with it and 0.02 without it",)


def test_an_adapter_that_is_applied_passes_under_a_coarse_bound() -> None:
    report = judge([replace(SERVED, answer_logprobs=(-0.51, -1.51), base_logprobs=(-0.6, -1.6))], bound=0.05)
    assert report.passed
    assert report.mean_gap_without_adapter == pytest.approx(0.1)


def test_nothing_compared_is_not_a_pass() -> None:
    empty = replace(PROMPT, answer_ids=(), answer_logprobs=())
    report = judge([replace(SERVED, answer_logprobs=())], trained=[empty])
    assert report.findings == ("the reference answers have no token, so nothing was compared",)


def test_an_answer_of_another_length_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge([replace(SERVED, answer_logprobs=(-0.5,))])


@given(gap=st.floats(0, 10, allow_nan=False), bound=st.floats(1e-6, 1, allow_nan=False))
def test_the_bound_decides(gap: float, bound: float) -> None:
    report = judge([replace(SERVED, answer_logprobs=(-0.5 - gap, -1.5 - gap))], bound=bound)
    assert report.passed == (report.mean_gap <= bound)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(GateError, match=r"evaluation\.parity\.prompts"):
        check_parity(Path("nowhere"), [], SETTINGS, trained_dtype="fp32")


def test_rows_longer_than_the_endpoint_takes_are_refused_before_an_engine_starts() -> None:
    long = replace(PROMPT, prompt_ids=tuple(range(63)))
    with pytest.raises(ServingError, match=r"needs 66 tokens .* serving\.max_model_len is 64"):
        check_parity(Path("nowhere"), [long], SETTINGS, trained_dtype="fp32")


def test_models_are_served_as_trained_where_the_hardware_can() -> None:
    assert serving_dtype("bf16", GPU) == serving_dtype("auto", GPU) == serving_dtype("bf16", NEW_CPU) == "bf16"
    assert serving_dtype("fp32", GPU) == "fp32"
    assert serving_dtype("bf16", OLD_CPU) == serving_dtype("auto", OLD_CPU) == "fp32"


@pytest.mark.parametrize(
    ("cpu_info", "native"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name\t: bf16 avx512_bf16\n", False),
        ("", False),
    ],
)
def test_native_bf16_is_read_from_the_flags(cpu_info: str, native: bool) -> None:
    assert cpu_has_bf16(cpu_info) is native


@given(rank=st.integers(1, LORA_RANKS[-1]))
def test_an_adapter_gets_the_smallest_engine_it_fits(rank: int) -> None:
    capacity = lora_capacity(rank)
    assert capacity in LORA_RANKS
    assert capacity >= rank
    assert all(other < rank for other in LORA_RANKS if other < capacity)


def test_an_adapter_of_a_rank_no_engine_takes_is_refused() -> None:
    with pytest.raises(MachineError, match=r"rank 513 .* largest is 512"):
        lora_capacity(513)


def test_a_cpu_engine_takes_no_more_memory_than_configured() -> None:
    kwargs = engine_kwargs(replace(SETTINGS, kv_cache_gib=0.5, max_num_seqs=7))
    assert kwargs["kv_cache_memory_bytes"] == 2**29
    assert kwargs["max_num_seqs"] == 7
    assert kwargs["enforce_eager"] is True
    assert kwargs["dtype"] == "float32"
    assert "enable_lora" not in kwargs
    assert "worker_cls" not in kwargs


def test_adapters_are_switched_on_by_a_rank() -> None:
    kwargs = engine_kwargs(replace(SETTINGS, max_lora_rank=12, max_loras=3))
    assert (kwargs["enable_lora"], kwargs["max_lora_rank"], kwargs["max_loras"]) == (True, 16, 3)
    assert kwargs["worker_cls"] == "ray_jobs.engine.cpu_lora.Worker"
    on_gpu = engine_kwargs(replace(SETTINGS, hardware=GPU, max_lora_rank=12))
    assert "worker_cls" not in on_gpu
    assert "enforce_eager" not in on_gpu


def test_no_engine_runs_a_models_own_code_reads_pickles_or_calls_a_hub() -> None:
    for hardware in (OLD_CPU, NEW_CPU, GPU):
        settings = replace(SETTINGS, hardware=hardware)
        kwargs = engine_kwargs(settings)
        assert kwargs["trust_remote_code"] is False
        assert kwargs["load_format"] == "safetensors"
        assert engine_environment(settings)["HF_HUB_OFFLINE"] == "1"


def test_every_bound_is_positive() -> None:
    assert all(bound > 0 for bound in DEFAULT_BOUNDS.values())
