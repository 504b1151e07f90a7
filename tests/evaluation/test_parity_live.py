"""Served equals trained, with the real engine and the real model: parity passes, and every way to break it is caught.

One engine starts in each precision: fp32 as trained, and bf16 with everything wrong. `test_parity.py` has each alone.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.engine import EngineSettings, cpu_hardware
from ray_jobs.errors import GateError, ServingError
from ray_jobs.evaluation.evaluate import parity_prompts
from ray_jobs.evaluation.parity import DEFAULT_BOUNDS, ParityPrompt, check_parity
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import PromptSetting
from tests.builders import make_spec
from tests.serving.served_models import ROWS, smollm2, with_adapter
from tests.tasks.chat.families import templates
from tests.tasks.chat.shapes import SHAPES

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("without_a_compiler")]

SETTINGS = EngineSettings(
    dtype="fp32", hardware=cpu_hardware(), max_model_len=512, max_lora_rank=16, max_loras=1, kv_cache_gib=0.25
)
PLAIN = PromptSetting()


@pytest.fixture
def without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in the image: no compiler, and no kernels compiled earlier."""
    monkeypatch.setenv("CXX", "there-is-no-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))


@pytest.fixture(scope="module")
def base() -> Path:
    return smollm2()


@pytest.fixture(scope="module")
def tuned(base: Path) -> Any:
    """The base with an adapter that visibly changes it."""
    return with_adapter(base, seed=0)


@pytest.fixture(scope="module")
def prompts(base: Path, tuned: Any) -> list[ParityPrompt]:
    """The trainer's own numbers for the adapter."""
    return scored(tuned, base, ROWS)


def scored(model: Any, base: Path, rows: list[dict[str, Any]], setting: PromptSetting = PLAIN) -> list[ParityPrompt]:
    from transformers import AutoTokenizer

    normal = [TASKS["chat"].normalise(row) for row in rows]
    return list(parity_prompts(model, AutoTokenizer.from_pretrained(base), normal, make_spec(), setting, 1024))


def with_template(base: Path, directory: Path, template: str) -> Path:
    """The base with another chat template."""
    shutil.copytree(base, directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def test_an_adapter_is_served_as_it_was_trained(base: Path, tuned: Any, tmp_path: Path) -> None:
    """With the chat template of Qwen 3, which writes tools, calls, their results and reasoning."""
    thinking = with_template(base, tmp_path / "base", templates()["qwen3"])
    tuned.save_pretrained(str(tmp_path / "adapter"))
    shapes = ("tool call with text", "tool result", "parallel calls", "reasoning", "reasoning in many turns")
    rows = [*ROWS[1:3], *(SHAPES[shape] for shape in shapes)]
    prompts = scored(tuned, thinking, rows)
    steps: list[tuple[int, int]] = []
    report = check_parity(
        thinking,
        prompts,
        SETTINGS,
        trained_dtype="fp32",
        adapter_dir=tmp_path / "adapter",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert report.passed
    assert report.identical_prompts == report.prompts == len(rows)
    assert report.answer_tokens == sum(len(prompt.answer_ids) for prompt in prompts)
    assert report.mean_gap < 1e-4
    assert report.mean_gap_without_adapter is not None
    assert report.mean_gap_without_adapter > 100 * report.mean_gap
    assert report.dtype == "float32"
    assert steps == [(i + 1, len(rows)) for i in range(len(rows))]


def test_prompts_with_a_switch_and_a_date_are_served_as_they_were_trained(
    base: Path, tuned: Any, tmp_path: Path
) -> None:
    """With the chat template of Llama 3.2, which writes the day, and the tools where a variable says."""
    text = templates()["llama3_2"].replace("<|eot_id|>", "<|im_end|>")  # the end of this base's turns
    dated = with_template(base, tmp_path / "base", text)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    setting = PromptSetting(switches={"tools_in_user_message": False}, today=date(2024, 2, 3))
    rows = [*ROWS[1:3], SHAPES["tool result"]]
    prompts = scored(tuned, dated, rows, setting)
    for less in (PromptSetting(today=setting.today), PromptSetting(switches=setting.switches)):
        (plainer,) = scored(tuned, dated, rows[2:], less)
        assert plainer.prompt_ids != prompts[2].prompt_ids, less
    report = check_parity(
        dated, prompts, SETTINGS, trained_dtype="fp32", adapter_dir=tmp_path / "adapter", setting=setting
    )
    assert report.identical_prompts == report.prompts == len(rows)
    assert report.mean_gap < 1e-4


def test_a_wrong_number_format_a_broken_chat_template_and_a_missing_adapter_are_caught(
    base: Path, prompts: list[ParityPrompt], tmp_path: Path
) -> None:
    """One engine shows all three: its dtype, the tokens of the first prompt, the log-probabilities of the second."""
    text = (base / "chat_template.jinja").read_text(encoding="utf-8")
    assert "You are a helpful AI assistant" in text
    other = text.replace("You are a helpful AI assistant", "You are a pirate")
    broken = with_template(base, tmp_path / "base", other)
    # A prompt with its own system message is rendered alike by both templates; the adapter's absence shows there.
    own = prompts[1]
    with_system = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
    prompts = [prompts[0], replace(own, messages=(with_system, *own.messages))]
    settings = replace(SETTINGS, dtype="bf16", max_lora_rank=None)
    with pytest.raises(GateError, match="1 of 2 prompts have identical tokens") as caught:
        check_parity(broken, prompts, settings, trained_dtype="fp32")
    format_finding, template_finding, adapter_finding = caught.value.details
    assert "the engine computes in bfloat16" in format_finding
    assert "prompt 1: the token ids differ from position" in template_finding
    assert "chat template or the tokenizer" in template_finding
    assert "log-probabilities differ" in adapter_finding
    assert "prompt 2, answer token" in adapter_finding
    gap = re.search(r"differ by (\S+) nats", adapter_finding)
    assert gap is not None
    assert float(gap[1]) > DEFAULT_BOUNDS["bf16"]  # more than bf16's rounding: the adapter is missing


def test_an_engine_that_cannot_start_says_why(tmp_path: Path, prompts: list[ParityPrompt]) -> None:
    with pytest.raises(ServingError, match="ended with exit code 1 after 0 of") as caught:
        check_parity(tmp_path, prompts, SETTINGS, trained_dtype="fp32")
    assert any("config" in line for line in caught.value.details)


def test_an_engine_that_takes_too_long_is_ended(base: Path, prompts: list[ParityPrompt]) -> None:
    with pytest.raises(ServingError, match="took more than 1 s"):
        check_parity(base, prompts, SETTINGS, trained_dtype="fp32", timeout_s=1.0)


@pytest.mark.parametrize("slots", [[-1, -1, -1], [1, 1, 1], [0, -1, 1], [-1, 1, -1], [0]])
def test_each_token_goes_through_its_own_adapter_or_none(slots: list[int]) -> None:
    import torch

    from ray_jobs.engine.cpu_lora import add_updates, groups_of

    torch.manual_seed(0)
    a_LRI, b_LOR = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 4, 3)  # vLLM's shapes have a 1 beside the slots
    x_NI, y_NO = torch.randn(len(slots), 5), torch.randn(len(slots), 4)
    expected = y_NO.clone()
    for n, slot in enumerate(slots):
        if slot >= 0:
            expected[n] += 0.5 * b_LOR[slot, 0] @ a_LRI[slot, 0] @ x_NI[n]
    add_updates(y_NO, x_NI, a_LRI, b_LOR, 0.5, groups_of(torch.tensor(slots)))
    torch.testing.assert_close(y_NO, expected)
