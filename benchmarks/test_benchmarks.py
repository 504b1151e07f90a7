"""The pure parts of the benchmarks: pairs, tables, turns and the report. Asserts no timings."""

from __future__ import annotations

import json
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from benchmarks import (
    batches,
    cleaning,
    costs,
    endpoint,
    fairness,
    lora_search,
    overhead,
    preparation,
    report,
    request_checks,
    search,
    search_costs,
    sharing,
    trainer,
)
from benchmarks.figures import Pairs, interval, largest_gap, number, quantile, table, verdict, within
from benchmarks.load import Answer, Kind, prompt_ids, tokens_per_s
from benchmarks.service import server_flags, write_adapter
from benchmarks.turns import Turn, Umpire
from benchmarks.workbench import make_spec, read_rows
from ray_jobs.errors import MachineError
from ray_jobs.spec import Range
from ray_jobs.spec.space import grid


def side(steps: int, seconds: float, loss: float = 2.0) -> dict[str, object]:
    return {
        "start_s": 10.0,
        "step_seconds": [9.0, *[seconds] * steps],
        "cpu_seconds": [9.0, *[2 * seconds] * steps],
        "losses": [loss] * (steps + 1),
        "peak_memory_bytes": [2 * 2**30],
        "others_share": 0.03,
    }


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    pairs = Pairs((10.0, 20.0, 99.0), (20.0, 20.0, 33.0))
    assert (pairs.ratio, pairs.middle_half) == (1.0, (0.75, 2.0))
    assert Pairs((1.0,), (2.0,)).middle_half == (0.5, 0.5)
    with pytest.raises(AssertionError):
        Pairs((1.0,), ())
    with pytest.raises(AssertionError):
        Pairs((), ())


def test_figures_are_written_with_three_digits() -> None:
    assert [number(value) for value in (0, 1.234, 12.34, 1234.5)] == ["0", "1.23", "12.3", "1,234"]
    assert table(["a", "b"], [["x", "1"]]).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]
    assert verdict(0.96, 0.95).endswith(": reached")
    assert verdict(0.94, 0.95).endswith("not reached")
    assert largest_gap([1.0, 2.0], [1.0, 4.0, 9.0]) == 0.5


def test_overhead_compares_the_job_with_the_bare_loop() -> None:
    sides = {
        overhead.ONE: side(5, 2.0),
        overhead.BARE: side(5, 1.96),
        overhead.STOCK: side(5, 2.2),
        overhead.TWO: side(5, 4.0),
    }
    text = overhead.describe({"batch_size": 4, "tokens": [0, *[100] * 5], "sides": sides})
    assert "| job, 1 worker × 2 threads | 50.0 | **0.980** | 0.980 to 0.980 |" in text
    assert "| job, 2 workers × 1 thread | 25.0 | **0.490** |" in text
    assert "goal ≥ 0.95: reached" in text
    assert "5 pairs" in text
    assert "one worker's ratio is 1.100 (half of the pairs: 1.100 to 1.100)" in text


def test_trainer_is_compared_with_its_better_tuning() -> None:
    job = side(5, 1.0)
    matches = {
        trainer.DEFAULTS: {trainer.JOB: job, trainer.DEFAULTS: side(5, 2.5)},
        trainer.GROUPED: {trainer.JOB: job, trainer.GROUPED: side(5, 1.5)},
        trainer.FLAT: {trainer.JOB: job, trainer.FLAT: side(5, 1.3, loss=2.002)},
    }
    lengths, supervised = [10, 20, 30, 40, 50], [5] * 5
    one = {"batch_size": 1, "lengths": lengths, "supervised": supervised, "matches": matches}
    text = trainer.describe({"faq": one})
    assert "At its defaults: goal ≥ 3: not reached. The better tuning: goal ≥ 1.2: reached." in text
    assert "Tokens a row: 10 to 50, median 30; 17% supervised" in text
    assert "| Trainer, padding-free | 1.00 : 0.77 | 5.00 : 3.85 | **1.30** | 1.30 to 1.30 |" in text
    assert "1.0e-03 |" in text


def test_costs_are_listed_a_save() -> None:
    run = {"workers": 1, "saves": 4, "stall_s": 2.0, "steps_s": 20.0, "wall_s": 40.0, "peak_memory_bytes": 2**30}
    assert "| 1 worker(s) | 4 | 0.50 s | 20.0 s | 18.0 s | 1.00 GiB |" in costs.describe(
        {"runs": [run], "ray_start_s": 3}
    )


def test_the_report_is_replaced_between_its_marks() -> None:
    setting = report.setting(datetime(2026, 1, 2, tzinfo=UTC), quick=True)
    assert setting["date"] == "2026-01-02"
    assert set(setting["versions"]) == set(report.PACKAGES)
    sections = {"overhead": (lambda figures: f"figures {figures['x']}", {"setting": setting, "figures": {"x": 1}})}
    once = report.with_tables("# Speed\n\nProse.\n", sections)
    assert once.startswith("# Speed\n\nProse.\n")
    assert "figures 1" in once
    assert "A quick run" in once
    sections["overhead"] = (lambda figures: "other figures", sections["overhead"][1])
    twice = report.with_tables(once + "\nAfter.\n", sections)
    assert "other figures" in twice
    assert "figures 1" not in twice
    assert twice.endswith("\nAfter.\n")
    assert twice.count(report.BEGIN) == 1


class Player:
    """A side that runs in a thread."""

    def __init__(self, port: int, name: str, steps: int, log: list[str]) -> None:
        self._work = (port, name, steps, log)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        port, name, steps, log = self._work
        turn = Turn(port, name)
        for step in range(steps):
            turn.next(None if step == 0 else float(step))
            log.append(f"{name}{step}")

    def failure(self) -> str | None:
        return None

    def join(self) -> None:
        self._thread.join(10)


class Broken(Player):
    def _run(self) -> None:
        Turn(*self._work[:2]).next(None)

    def failure(self) -> str | None:
        return "it broke"


def test_sides_take_turns_and_only_one_computes() -> None:
    log: list[str] = []
    with Umpire() as umpire:
        umpire.admit("a", 1, lambda: Player(umpire.port, "a", 4, log))
        umpire.admit("b", 1, lambda: Player(umpire.port, "b", 4, log))
        measures = umpire.run_steps(2, lambda *_: None)
    assert log[:6] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert sorted(log[6:]) == ["a3", "b3"]
    assert measures["a"].losses == (1.0, 2.0, 3.0)
    assert len(measures["b"].step_seconds) == 3


def test_a_side_that_fails_ends_the_match() -> None:
    with Umpire() as umpire:
        umpire.admit("a", 1, lambda: Broken(umpire.port, "a", 4, []))
        with pytest.raises(MachineError, match="it broke"):
            umpire.run_steps(2, lambda *_: None)


def test_jobs_have_the_defaults_of_trainer() -> None:
    training = make_spec(steps=3, batch_size=4).training
    assert (training.max_steps, training.warmup_fraction, training.schedule) == (3, 0.0, "linear")
    assert (training.weight_decay, training.max_grad_norm, training.precision) == (0.0, 1.0, "fp32")


def test_mixed_rows_are_the_faq_and_as_many_mails(tmp_path: Path) -> None:
    faq = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 3
    (tmp_path / "faq_chat.jsonl").write_text("\n".join(map(json.dumps, faq)))
    mails = [{"text": f"mail {i}", "label": "ham"} for i in range(9)]
    (tmp_path / "spam.jsonl").write_text("\n".join(map(json.dumps, mails)))
    rows = read_rows(tmp_path, "mixed")
    assert read_rows(tmp_path, "faq") == faq
    assert len(rows) == 6
    assert rows[4]["messages"][0]["content"].endswith("mail 3")
    assert rows[4]["messages"][1]["content"] == "ham"


def test_a_search_is_described_in_shares_of_the_grids_cost() -> None:
    assert search_costs.until([(10, 1.0, 3.0), (30, 2.0, 2.0), (60, 3.0, 1.0)], 2.0, 0) == 30.0
    assert search_costs.until([(10, 1.0, 3.0), (30, 2.0, 2.0)], 1.0, 0) is None
    assert interval([5.0] * 7) == (5.0, 5.0)
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert low < 3.0 < high
    whole = {"came": [(500, 5.0, 2.0), (1000, 10.0, 1.0)], "tokens": 1000, "seconds": 10.0}
    slow = {"came": [(900, 9.0, 1.5)], "tokens": 900, "seconds": 9.0}
    fast = {"came": [(100, 1.0, 0.9)], "tokens": 300, "seconds": 3.0}
    runs = {"grid": [whole] * 5, "random": [slow] * 5, "asha": [fast] * 5, "asha_stopping": [slow, fast, fast] * 2}
    text = search.describe({"rows": 800, "runs": runs})
    assert "| random, tokens | 900 | 0.900 | 0.900 to 0.900 | 0 of 5 |" in text
    assert "| asha, tokens | 100 | 0.100 | 0.100 to 0.100 | 5 of 5 |" in text
    assert "ASHA takes 0.100 of the grid's tokens (goal ≤ 1/8: reached) and 0.11 of random search's" in text
    assert "| asha_stopping, tokens | 100 | 0.100 | 0.100 to 0.900 | 3 of 5 |" in text
    assert "random 1.5000, asha 0.9000, asha_stopping 0.9000" in text
    assert "5 seeds" in text
    interrupted = {name: each[: 2 if name == "grid" else 1] for name, each in runs.items()}
    text = lora_search.describe({"rows": 36, "runs": interrupted})
    assert "| asha, tokens | 100 | 0.100 | 0.100 to 0.100 | 1 of 1 |" in text
    assert "No seed is complete." in lora_search.describe({"rows": 36, "runs": interrupted | {"random": []}})


def test_a_benchmarks_searches_are_alike_but_for_their_algorithm() -> None:
    for module, spec_of, points in ((search, search.review_spec, 27), (lora_search, lora_search.faq_spec, 9)):
        specs = {name: spec_of(3, **section).search for name, section in module.SECTIONS.items()}
        assert {(s.schedules, s.samples) for s in specs.values() if s} == {
            ("none", "grid"), ("none", "random"), ("asha", "tpe"), ("asha_stopping", "tpe")
        }  # fmt: skip
        for name, section in specs.items():
            assert section is not None
            space = dict(section.space or {})
            if name == "grid":
                assert len(grid(space)) == points
            else:
                assert (section.trials, section.seed) == (points, 3)
                for field, values in module.SECTIONS["grid"]["space"].items():
                    searched = space[field]
                    ends = (searched.min, searched.max) if isinstance(searched, Range) else (searched[0], searched[-1])
                    assert ends == (values[0], values[-1])


def test_shared_trials_are_compared_with_a_process_each() -> None:
    side = {"wall_s": 40.0, "peak_memory_bytes": 2**31, "start_s": [9.0, 0.5, 0.7], "statuses": ["ok"]}
    separate = {
        "wall_s": 100.0, "start_s": [15.0, 16.0, 17.0], "trial_s": [24.0, 25.0, 26.0], "peak_memory_bytes": [2**30] * 2
    }  # fmt: skip
    pairs = [
        {"one": side, "shared": side, "separate": separate, "gap": 1e-6},
        {"one": None, "shared": side, "separate": separate | {"wall_s": 110.0}, "gap": 2e-6},
        {"one": None, "shared": side | {"wall_s": 50.0}, "separate": separate, "gap": 1e-7},
    ]
    sizes = [{"steps": 3, "pairs": pairs}]
    frozen = {"trials": 20, "steps": 100, "shared_s": 40.0, "separate_s": [30.0] * 5}
    text = sharing.describe({"sharing": sizes, "frozen": frozen})
    assert (
        "| 3 steps, 25 s | 3 | 40 : 100 s | **2.50** | 0.60 : 16.0 s | 2.00 GiB | 2.00 GiB (1.00×) | 1.00 GiB (2.00×) "
        "| 2.0e-06 |"
    ) in text
    assert "Faster by 15.0 (15.0 to 15.0): goal ≥ 10: reached" in text
    cut_off = sharing.describe({"sharing": [], "frozen": frozen})
    assert "Faster by 15.0" in cut_off
    assert "LoRA" not in cut_off


def test_quantiles_are_interpolated() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 2.5, 3.0]
    assert quantile([7.0], 0.99) == 7.0
    assert within(5.0, 5.0, "ms") == "goal ≤ 5 ms: reached"
    assert within(5.1, 5.0, "ms") == "goal ≤ 5 ms: not reached"


def test_engine_arguments_are_flags_of_vllms_server() -> None:
    given = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True, "trust_remote_code": False}
    assert server_flags(given) == [
        *("--dtype", "float32", "--max-model-len", "64", "--enforce-eager", "--no-trust-remote-code")
    ]
    assert server_flags({"structured_outputs_config": {"backend": "xgrammar"}}) == [
        *("--structured-outputs-config", '{"backend": "xgrammar"}')
    ]


def test_prompts_differ_from_each_other_and_agree_on_both_sides() -> None:
    assert prompt_ids(1) == prompt_ids(1) != prompt_ids(2)
    assert len(prompt_ids(1)) == 16


def test_throughput_counts_from_the_first_question_to_the_last_answer() -> None:
    answers = [Answer(10.0, 2.0, 200), Answer(11.0, 3.0, 200), Answer(12.5, 1.0, 200)]
    assert tokens_per_s(answers, Kind(8)) == 6.0


def test_an_overload_is_described_by_the_outcome_of_its_requests() -> None:
    refused = [Answer(0.0, 0.02, 429, retry_after="1"), Answer(0.0, 0.04, 429)]
    answers = [Answer(0.0, 1.0, 200), Answer(0.0, 3.0, 200), *refused, Answer(0.0, 0.1, 0)]
    found = endpoint.outcome(answers, seconds=4.0)
    assert found["statuses"] == {"0": 1, "200": 2, "429": 2}
    assert found["answered_per_s"] == 0.5
    assert found["admitted_s"]["p50"] == 2.0
    assert found["without_retry_after"] == 1
    assert endpoint.outcome([Answer(0.0, 1.0, 429)], 1.0)["admitted_s"] is None
    assert endpoint.thinned([1, 5, 2, 3], 2) == [5, 3]


def test_the_endpoint_is_described_as_far_as_it_was_measured() -> None:
    sides = {"endpoint_ms": [14.0, 15.0, 30.0], "direct_ms": [10.0, 11.0, 12.0]}
    latency = {"1": sides, "8": sides, "8 streamed": sides | {"endpoint_ms": [25.0] * 3}}
    figures = {"vllm": "0.29.0", "prompt_tokens": 16, "latency": latency}
    text = endpoint.describe(figures)
    assert "| 8 generated | 3 | 15.0 : 11.0 ms | +4.0 ms | **+4.0 ms** | 29.7 : 12.0 ms | +17.7 ms |" in text
    assert "Whole answer: goal ≤ 5 ms: reached. First chunk: goal ≤ 10 ms: not reached." in text
    assert "Overload" not in text
    came = endpoint.outcome([Answer(0.0, 1.0, 200), Answer(0.0, 0.02, 429, retry_after="1")], 2.0)
    overload = {"capacity_per_s": 5.0, "rate_per_s": 10.0, "seconds": 2.0, "outcome": came, "waiting": 0}
    overload |= {"idle_s": [0.1], "after_s": [0.2], "memory_bytes": {"ingress": [2**30, 2**31, 2**30]}}
    figures |= {"throughput": {"endpoint": [99.0], "direct": [100.0]}, "new_model_s": [1.0, 3.0], "overload": overload}
    text = endpoint.describe(figures)
    assert "a ratio of **0.990** (half of the pairs: 0.990 to 0.990); goal ≥ 0.95: reached" in text
    assert "median **2.00 s**, longest 3.00 s; goal ≤ 5 s: reached" in text
    assert "50% were refused with 429 (within 20 ms at p50, 20 ms at p99), 0 of them without Retry-After" in text
    assert "| ingress | 1.00 GiB | 2.00 GiB | 1.00 GiB |" in text
    assert "single requests took 200 ms, 100 ms before the load: goal ≤ 1.5 ×: not reached" in text


def test_an_adapter_fits_its_base(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    base = {"hidden_size": 6, "intermediate_size": 8, "num_attention_heads": 3, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(base | {"num_hidden_layers": 2}))
    weights = load_file(write_adapter(tmp_path / "adapter", tmp_path, seed=0) / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2
    prefix = "base_model.model.model.layers.1"
    assert weights[f"{prefix}.self_attn.k_proj.lora_B.weight"].shape == (2, 16)
    assert weights[f"{prefix}.mlp.down_proj.lora_A.weight"].shape == (16, 8)
    assert all(np.any(tensor) for tensor in weights.values())


def test_batches_compares_the_client_alone_and_beside_the_batch() -> None:
    firsts = {"alone": 0.5, "beside": 0.7}
    sides = {name: {"first_s": [first_s] * 4, "token_s": [0.1] * 4} for name, first_s in firsts.items()}
    text = batches.describe({"vllm": "1", "rounds": [sides | {"lines_beside": 7, "lines_per_s_alone": 1.5}]})
    assert "500 : 700" in text
    assert "first token **1.40** (goal" in text
    assert "per token **1.00** (goal" in text


def test_fairness_compares_the_quiet_team_alone_and_beside_the_other() -> None:
    round_ = {
        "alone": {"first_s": [0.5, 0.5], "tokens_per_s": 40.0},
        "beside": {"first_s": [1.0, 3.0], "tokens_per_s": 10.0},
        "greedy": {"200": 3, "429": 9},
    }
    attack = {"answers": {"400 unknown_field": 7}, "slowest_s": 6.0, "alone_s": [0.2], "beside_s": [0.3, 2.0]}
    text = fairness.describe({"vllm": "1", "rounds": [round_], "attack": attack | {"after_s": 0.2}})
    assert "| 1 | 0.50 : 2.90 s | 40.0 : 10.0 | 25% | 3 × 200, 9 × 429 |" in text
    assert "median **2.40 s**, goal ≤ 2 s: not reached. Kept of the tokens a second: median **25%**" in text
    assert "**7 malformed and hostile requests**, 8 at once: 7 × 400 unknown_field." in text
    assert "6.0 s (goal ≤ 5 s: not reached)" in text
    assert "2.00 s at most (0.20 s alone; goal ≤ 3 s: reached)" in text


def test_the_checks_of_a_request_add_the_median_of_their_pairs() -> None:
    seconds = {"a kind": {"checked": [0.003, 0.002, 0.009], "unchecked": [0.001, 0.001, 0.001]}}
    text = request_checks.describe({"fastapi": "1", "seconds": seconds})
    assert "| a kind | 3.00 : 1.00 ms | **2.00 ms** |" in text
    assert text.endswith("Most added: goal ≤ 1 ms: not reached.")


def test_a_preparation_is_described_beside_its_peer_and_by_its_growth() -> None:
    pairs = [{"ours": {"wall_s": 10.0, "peak_bytes": 2**30}, "peer": {"wall_s": 30.0, "peak_bytes": 2**29}}]
    growth = [
        {"rows": 1000, "bytes": 2**20, "wall_s": 10.0, "peak_bytes": 2**30},
        {"rows": 4000, "bytes": 2**22, "wall_s": 20.0, "peak_bytes": 5 * 2**30},
    ]
    figures = {"peer": ["datasets==1", "datasketch==2"], "rows": 3000, "pairs": pairs, "growth": growth}
    text = preparation.describe(figures)
    assert "| Kitae on Ray Data | 300 | 1.00 GiB |" in text
    assert "| datasets 1, datasketch 2 | 100 | 0.50 GiB |" in text
    assert "Ratio: **3.00**" in text
    assert "goal ≥ 2: reached" in text
    assert "the power 0.50 of the rows" in text
    assert "**5.00 GiB** (goal ≤ 4.00 GiB: not reached)" in text


def test_dirty_rows_are_described_before_and_after() -> None:
    sides = {"before": (120, 12, 0.7), "standard": (100, 10, 0.75), "after": (90, 4, 0.6)}
    run = {name: {"rows": r, "wrong": w, "accuracy": a, "loss": 0.5} for name, (r, w, a) in sides.items()}
    text = cleaning.describe({"runs": [run, run]})
    assert "| before | 120 | 12 | 70.0% | 0.500 |" in text
    assert "after `standard` +5.0 ± 0.0 (better in 2 of 2)" in text
    assert "-10.0 ± 0.0 (better in 0 of 2)" in text


def test_dirty_rows_are_as_planned() -> None:
    clean = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(100)]
    dirty, wrong = cleaning._dirty(clean, Random(0))
    assert len(dirty) == 120
    texts = Counter(row["text"].removesuffix(" !") for row in dirty)
    assert sum(count == 2 for count in texts.values()) == 20
    assert len({text.removesuffix(" !") for text, _ in wrong}) == 10
