"""Served equals trained: the gate that compares the serving engine with the trainer's model before registration.

The trainer's side comes in as token ids and log-probabilities. The engine's side is a vLLM engine set up by `engine`,
in a process of its own that frees its memory; it gets the prompts as messages and applies its own chat template, as the
endpoint does. Knows no store and no trainer.

The child process is `python -m ray_jobs.evaluation.parity`: one JSON request on stdin; on a descriptor the engine's
number format in a line, then a JSON line for each prompt.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ray_jobs.engine import VLLM_DTYPES, Dtype, EngineSettings, engine_environment, engine_kwargs, serving_dtype
from ray_jobs.errors import GateError, ServingError
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.tasks.chat.template import variables_of

_DEFAULT = PromptSetting()
DEFAULT_BOUNDS: dict[Dtype, float] = {"fp32": 1e-3, "bf16": 0.1}
"""Largest mean |gap| of the answers' log-probabilities, in nats a token, for a job that sets none."""


@dataclass(frozen=True)
class ParityPrompt:
    """A held-out conversation up to its answer, scored by the trainer's model."""

    messages: tuple[dict[str, Any], ...]
    """Messages that a client would send to the endpoint."""
    prompt_ids: tuple[int, ...]
    """The trainer's token ids of these messages, up to the start of the answer."""
    answer_ids: tuple[int, ...]
    """Token ids of the reference answer, its end token included."""
    answer_logprobs: tuple[float, ...]
    """The trainer's log-probability of each of `answer_ids`, given all tokens before it, in nats."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions the conversation may call, for the chat template."""


@dataclass(frozen=True)
class ServedAnswer:
    """One prompt scored by the engine."""

    prompt_ids: tuple[int, ...]
    answer_logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...] | None = None
    """The same without the adapter. None: the model has none."""


@dataclass(frozen=True)
class ParityReport:
    """Distance between the served and the trained model. Gaps are in nats a token."""

    prompts: int
    identical_prompts: int
    """Prompts with the same token ids on both sides."""
    answer_tokens: int
    mean_gap: float
    """Mean |difference| of the answer tokens' log-probabilities, over prompts with identical ids."""
    max_gap: float
    bound: float
    """Largest mean gap that passes."""
    mean_gap_without_adapter: float | None
    """Mean gap of the engine without the adapter. None: the model has none."""
    dtype: str
    """Number format that the engine computed in."""
    passed: bool
    findings: tuple[str, ...]
    """One finding a cause, the first difference explained; empty for a pass."""


def check_parity(
    base_dir: Path,
    prompts: Sequence[ParityPrompt],
    settings: EngineSettings,
    *,
    trained_dtype: Dtype,
    adapter_dir: Path | None = None,
    setting: PromptSetting = _DEFAULT,
    max_mean_gap: float | None = None,
    timeout_s: float = 900.0,
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare the serving engine with the trainer's model.

    `base_dir` is the model that the endpoint would load: the base of `adapter_dir`, or a full fine-tune.
    `trained_dtype` is the precision of the trainer's numbers. `setting`: the engine writes prompts with the switches
    that requests get by default, on the day of training. `progress` gets (prompts done, prompts). Raises GateError
    with the differing position and tokens where the two differ, and ServingError where the engine does not run.
    """
    if not prompts:
        raise GateError("parity has no prompt to compare: evaluation.parity.prompts needs at least one held-out row")
    longest = max(len(prompt.prompt_ids) + len(prompt.answer_ids) + 1 for prompt in prompts)
    if longest > settings.max_model_len:
        raise ServingError(
            f"a held-out row needs {longest} tokens at the endpoint, serving.max_model_len is "
            f"{settings.max_model_len}: raise it, or lower data.max_tokens"
        )
    served, dtype = _run_engine(
        base_dir, prompts, settings, adapter_dir, setting, timeout_s=timeout_s, progress=progress
    )
    bound = DEFAULT_BOUNDS[trained_dtype] if max_mean_gap is None else max_mean_gap
    expected_dtype = VLLM_DTYPES[serving_dtype(trained_dtype, settings.hardware)]
    report = compare(prompts, served, bound=bound, dtype=dtype, expected_dtype=expected_dtype)
    if not report.passed:
        raise GateError(
            "what is served is not what was trained, so the model is not registered "
            f"({report.identical_prompts} of {report.prompts} prompts have identical tokens, mean log-probability gap "
            f"{report.mean_gap:.3g}, bound {report.bound:g})",
            details=report.findings,
        )
    return report


def compare(
    trained: Sequence[ParityPrompt], served: Sequence[ServedAnswer], *, bound: float, dtype: str, expected_dtype: str
) -> ParityReport:
    """Judge the engine's numbers against the trainer's; one finding a cause, the first difference explained."""
    pairs = list(zip(trained, served, strict=True))
    findings = []
    if dtype != expected_dtype:
        findings.append(f"the engine computes in {dtype}; a model trained like this one is served in {expected_dtype}")
    differing = [i for i, (t, s) in enumerate(pairs) if t.prompt_ids != s.prompt_ids]
    if differing:
        findings.append(_explain_ids(differing[0], *pairs[differing[0]]))
    same = [(i, t, s) for i, (t, s) in enumerate(pairs) if i not in set(differing)]
    gaps = [gap for _, t, s in same for gap in _gaps(t.answer_logprobs, s.answer_logprobs)]
    without = [gap for _, t, s in same if s.base_logprobs for gap in _gaps(t.answer_logprobs, s.base_logprobs)]
    mean_gap, mean_without = _mean(gaps), _mean(without) if without else None
    if same and not gaps:
        findings.append("the reference answers have no token, so nothing was compared")
    if gaps and not mean_gap <= bound:  # not >, so that a NaN is a failure
        findings.append(_explain_gaps(mean_gap, bound, same))
    if mean_without is not None and mean_gap >= mean_without and not mean_gap <= DEFAULT_BOUNDS["fp32"]:
        # A coarse bound hides an adapter that changes little; an adapter that leaves the gap unchanged is not applied.
        findings.append(
            f"the adapter is not applied: the gap is {mean_gap:.3g} with it and {mean_without:.3g} without it"
        )
    return ParityReport(
        prompts=len(pairs),
        identical_prompts=len(same),
        answer_tokens=len(gaps),
        mean_gap=mean_gap,
        max_gap=max(gaps, default=math.nan),
        bound=bound,
        mean_gap_without_adapter=mean_without,
        dtype=dtype,
        passed=not findings,
        findings=tuple(findings),
    )


def _gaps(trained: Sequence[float], served: Sequence[float]) -> list[float]:
    return [abs(t - s) for t, s in zip(trained, served, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _explain_ids(i: int, trained: ParityPrompt, served: ServedAnswer) -> str:
    ours, theirs = trained.prompt_ids, served.prompt_ids
    at = next((p for p, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    window = slice(max(at - 2, 0), at + 4)
    return (
        f"prompt {i + 1}: the token ids differ from position {at} on: trained {list(ours[window])}, served "
        f"{list(theirs[window])} ({len(ours)} and {len(theirs)} tokens); the chat template or the tokenizer that "
        "is served is not the one of training"
    )


def _explain_gaps(mean: float, bound: float, same: Sequence[tuple[int, ParityPrompt, ServedAnswer]]) -> str:
    gap, i, at, t, s = max(
        (abs(t - s), i, at, t, s)
        for i, prompt, answer in same
        for at, (t, s) in enumerate(zip(prompt.answer_logprobs, answer.answer_logprobs, strict=True))
    )
    return (
        f"the answers' log-probabilities differ by {mean:.3g} nats a token on average, more than {bound:g}; most in "
        f"prompt {i + 1}, answer token {at}: trained {t:.4f}, served {s:.4f} (gap {gap:.3g})"
    )


def _run_engine(
    base_dir: Path,
    prompts: Sequence[ParityPrompt],
    settings: EngineSettings,
    adapter_dir: Path | None,
    setting: PromptSetting,
    *,
    timeout_s: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[ServedAnswer], str]:
    request = {
        "model": str(base_dir),
        "adapter": None if adapter_dir is None else str(adapter_dir),
        "settings": asdict(settings),
        "setting": setting.model_dump(mode="json"),
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    packages = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | engine_environment(settings)
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": packages}
    served: list[ServedAnswer] = []
    reader, writer = os.pipe()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.evaluation.parity", str(writer)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            env=environment,
            text=True,
        )
        os.close(writer)
        assert child.stdin is not None
        killer = threading.Timer(timeout_s, child.kill)
        killer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
            with os.fdopen(reader, encoding="utf-8") as lines:
                dtype = next(lines, "").strip()
                for line in lines:
                    served.append(TypeAdapter(ServedAnswer).validate_json(line))
                    if progress is not None:
                        progress(len(served), len(prompts))
            code = child.wait()
        finally:
            timed_out = not killer.is_alive()
            killer.cancel()
            child.kill()
            child.wait()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        if code != 0 or len(served) != len(prompts):
            log.seek(0)
            reason = f"took more than {timeout_s:g} s" if timed_out else f"ended with exit code {code}"
            raise ServingError(
                f"the serving engine {reason} after {len(served)} of {len(prompts)} parity prompts on {base_dir}",
                details=[line for line in log.read().splitlines() if line.strip()][-15:],
            )
    return served, dtype


def _exit_with_parent() -> None:
    """End with the parent, which holds this process's stdin open: a killed job must not leave an engine behind."""
    sys.stdin.read()
    os._exit(1)


def _child(descriptor: int) -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    settings = TypeAdapter(EngineSettings).validate_python(request["settings"])

    variables = variables_of(PromptSetting.model_validate(request["setting"]))

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(request["model"], disable_log_stats=True, **engine_kwargs(settings))
    adapter = None if request["adapter"] is None else LoRARequest("adapter", 1, request["adapter"])
    ask = SamplingParams(max_tokens=1, temperature=0.0)
    score = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def logprobs(prompt_ids: tuple[int, ...], answer_ids: list[int], lora: Any) -> tuple[float, ...]:
        tokens = {"prompt_token_ids": [*prompt_ids, *answer_ids]}
        (output,) = engine.generate([tokens], score, lora_request=lora, use_tqdm=False)
        scored = output.prompt_logprobs[len(prompt_ids) :]
        return tuple(float(at[token].logprob) for at, token in zip(scored, answer_ids, strict=True))

    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        print(str(engine.llm_engine.model_config.dtype).removeprefix("torch."), file=out)
        for prompt in request["prompts"]:
            tools = prompt["tools"] or None
            (asked,) = engine.chat(
                prompt["messages"],
                ask,
                lora_request=adapter,
                tools=tools,
                chat_template_kwargs=variables,
                use_tqdm=False,
            )
            ids, answer_ids = tuple(asked.prompt_token_ids), prompt["answer_ids"]
            base_logprobs = None if adapter is None else logprobs(ids, answer_ids, None)
            answer = ServedAnswer(ids, logprobs(ids, answer_ids, adapter), base_logprobs)
            print(json.dumps(asdict(answer)), file=out, flush=True)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
    # Everything is written; vLLM's own tear-down takes seconds and can fail noisily.
    sys.stdout.flush()
    os._exit(0)
