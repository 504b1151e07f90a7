"""Trials that share a process: each has the losses that it has when it is trained alone.

Over 400 lines: every test compares with the same solo runs, on the same rows and models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ray_jobs import jobs
from ray_jobs.data.encoding import Encoded
from ray_jobs.models import lora_linear
from ray_jobs.search.adapters import SharedLora
from ray_jobs.search.at_once import AtOnce
from ray_jobs.search.decide import trial_spec
from ray_jobs.search.features import SharedFeatures, Unshareable
from ray_jobs.search.records import Problem, Result, Run, SearchRecords
from ray_jobs.search.runner import Search
from ray_jobs.search.shared_trainer import Clock, Host, Task
from ray_jobs.search.together import Sharing, Together, Trial, fill, pass_tokens, spread
from ray_jobs.spec import ComputeSection, JobSpec, parse_spec
from ray_jobs.storage import Store
from ray_jobs.tasks.base import Scores
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.lr_schedule import trunk_end
from ray_jobs.training.trainer import HELD_OUT_FILE, TRAIN_FILE, Stretch, TrainInputs, train
from tests.models import tiny_models
from tests.training.harness import make_spec, on_workers, publish

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]

CLOSE = 1e-4
ROWS, HELD_OUT = tiny_models.chat_rows(30), tiny_models.chat_rows(40)[30:]
LABELLED, LABELLED_HELD_OUT = tiny_models.label_rows(40), tiny_models.label_rows(52)[40:]
Params = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Rows and base of one task, in the store."""

    store: Store
    inputs: TrainInputs
    rows: Encoded
    held_out: Encoded
    directory: Path

    def spec(self, params: Params) -> JobSpec:
        return self.inputs.spec.with_values(params)

    def together(self, sharing: Sharing, limit: int = 128, at_once: AtOnce | None = None) -> Together:
        packed = self.inputs.spec.task == "chat"
        return Together(self.store, sharing, self.rows, self.held_out, packed, limit, at_once or AtOnce())

    def run_together(
        self, sharing: Sharing, runs: Sequence[Run], *, prefix: str, limit: int = 128, at_once: AtOnce | None = None
    ) -> dict[str, Result]:
        together = self.together(sharing, limit, at_once)
        for run in runs:
            together.add(run, self.spec(run.params), f"{prefix}/{run.name}", self.stretch(run, prefix))
        results: dict[str, Result] = {}
        while together.trials:
            results |= {result.run.name: result for result in together.round()}
        return results

    def stretch(self, run: Run, prefix: str) -> Stretch:
        source = None
        if run.source is not None:
            before = checkpoint.committed(self.store, f"{prefix}/{run.source}")
            source = before[0].key
        return Stretch(rung=run.until, source=source)

    def alone(self, run: Run) -> TrainInputs:
        return self.inputs.model_copy(
            update={
                "spec": self.spec(run.params),
                "checkpoints": f"alone/{run.name}",
                "stretch": self.stretch(run, "alone"),
            }
        )


def make_setting(store: Store, tmp_path: Path, task: str, **training: Any) -> Setting:
    chat = task == "chat"
    base = tiny_models.save_causal(tmp_path / "base") if chat else tiny_models.save_encoder(tmp_path / "base")
    spec = make_spec(task, training={"epochs": 3, **training}, compute={"workers": 1})
    rows, held_out = (ROWS, HELD_OUT) if chat else (LABELLED, LABELLED_HELD_OUT)
    inputs = publish(store, spec, base, rows, held_out, checkpoints="unused")
    encoded = store.fetch(inputs.encoded_key)
    return Setting(
        store,
        inputs,
        Encoded.load(encoded / TRAIN_FILE),
        Encoded.load(encoded / HELD_OUT_FILE),
        store.fetch(inputs.base_key),
    )


def lora(setting: Setting) -> SharedLora:
    spec = setting.inputs.spec
    return SharedLora.load(spec, setting.directory, setting.inputs.labels, setting.rows, torch.device("cpu"))


def features(setting: Setting, depth: int = 2) -> SharedFeatures:
    return SharedFeatures.load(
        setting.inputs.spec,
        setting.directory,
        setting.inputs.labels,
        setting.rows,
        setting.held_out,
        torch.device("cpu"),
        depth,
    )


def run_alone(case: tuple[TrainInputs, Store]) -> tuple[tuple[float, ...], float, float]:
    """Losses, held-out loss and held-out accuracy of a run."""
    train(*case)
    last = checkpoint.committed(case[1], case[0].checkpoints)[-1].position
    assert last.held_out_loss is not None
    assert last.held_out_accuracy is not None
    return last.losses, last.held_out_loss, last.held_out_accuracy


def assert_same(setting: Setting, runs: Sequence[Run], results: dict[str, Result]) -> None:
    """Assert that runs that trained together have the metrics they have alone."""
    cases = [(setting.alone(run), setting.store) for run in runs]
    for run, (losses, held_out_loss, accuracy) in zip(runs, on_workers(1, run_alone, cases), strict=True):
        result = results[run.name]
        assert result.status == "ok", result.error
        assert result.losses == pytest.approx(losses, rel=CLOSE), run.name
        assert result.loss == pytest.approx(held_out_loss, rel=CLOSE)
        assert result.accuracy == pytest.approx(accuracy, abs=0.02)


LORA_TRIALS: list[Params] = [
    {"method": "lora", "learning_rate": 1e-2, "lora.rank": 4},
    {"method": "lora", "learning_rate": 3e-3, "lora.rank": 8, "batch_size": 4, "max_grad_norm": 0.1},
    {
        "method": "lora",
        "learning_rate": 3e-2,
        "lora.alpha": 8.0,
        "seed": 7,
        "lora.target_modules": ["q_proj", "v_proj"],
    },
    {"method": "lora", "learning_rate": 1e-2, "batch_size": 16, "weight_decay": 0.1, "warmup_fraction": 0.3},
]


@pytest.mark.parametrize("packing", [True, False])
def test_lora_trials_in_one_pass_have_their_own_losses(store: Store, tmp_path: Path, packing: bool) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora", packing=packing)
    runs = [Run(trial=i, rung=0, params=params, until=6) for i, params in enumerate(LORA_TRIALS)]
    sharing = lora(setting)
    sharing.packed = packing
    together = setting.together(sharing)
    together.packed = packing
    for run in runs:
        together.add(run, setting.spec(run.params), f"together/{run.name}", Stretch(rung=run.until))
    results: dict[str, Result] = {}
    while together.trials:
        results |= {result.run.name: result for result in together.round()}
    assert_same(setting, runs, results)
    assert len({result.losses[-1] for result in results.values()}) == len(runs)


def test_lora_trials_on_an_encoder_have_their_own_heads(store: Store, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="lora")
    every = [{**p, "lora.target_modules": "all-linear"} for p in LORA_TRIALS]
    runs = [Run(trial=i, rung=0, params=params, until=6) for i, params in enumerate(every)]
    results = setting.run_together(lora(setting), runs, prefix="together")
    assert_same(setting, runs, results)


def test_a_promoted_trial_resumes_from_its_trunk_wherever_it_runs(store: Store, tmp_path: Path) -> None:
    """Together, then alone, then together; the trunk is that of a run straight to the last rung."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    params = LORA_TRIALS[0]
    first = Run(trial=0, rung=0, params=params, until=4)
    whole = Run(trial=1, rung=2, params=params, until=12)
    straight = setting.run_together(lora(setting), [whole], prefix="straight")[whole.name]
    short = setting.run_together(lora(setting), [first], prefix="mixed")[first.name]
    assert short.trunk is not None
    kept = trunk_end(first.until)
    assert short.losses[:kept] == pytest.approx(straight.losses[:kept], rel=1e-6)
    second = Run(trial=0, rung=1, params=params, until=8, source=first.name)
    alone = setting.inputs.model_copy(
        update={
            "spec": setting.spec(params),
            "checkpoints": f"mixed/{second.name}",
            "stretch": Stretch(rung=8, source=short.trunk),
        }
    )
    on_workers(1, run_alone, [(alone, store)])
    third = Run(trial=0, rung=2, params=params, until=12, source=second.name)
    last = setting.run_together(lora(setting), [third], prefix="mixed")[third.name]
    assert last.losses == pytest.approx(straight.losses, rel=CLOSE)
    assert last.loss == pytest.approx(straight.loss, rel=CLOSE)
    assert last.steps == 12 - trunk_end(8)


def test_a_run_that_was_cut_off_resumes_from_its_last_checkpoint(store: Store, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    run = Run(trial=0, rung=0, params=LORA_TRIALS[0], until=10)
    whole = setting.run_together(lora(setting), [run], prefix="whole")[run.name]
    cut = setting.together(lora(setting))
    cut.add(run, setting.spec(run.params), f"cut/{run.name}", Stretch(rung=10))
    cut_at = [cut.round() for _ in range(trunk_end(10))]
    cut.drop(run.name)
    again = setting.run_together(lora(setting), [run], prefix="cut")[run.name]
    assert again.steps == 10
    assert len(cut_at) == trunk_end(10) == 8
    assert again.losses == pytest.approx(whole.losses, rel=1e-6)


def test_a_trial_that_diverges_does_not_affect_the_others(store: Store, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    wild = {"method": "lora", "learning_rate": 1e30, "max_grad_norm": None, "warmup_fraction": 0.0}
    runs = [Run(trial=0, rung=0, params=LORA_TRIALS[0], until=6), Run(trial=1, rung=0, params=wild, until=6)]
    results = setting.run_together(lora(setting), runs, prefix="together")
    bad = results[runs[1].name]
    assert bad.status == "not_finite"
    assert bad.error is not None
    assert "learning rate" in bad.error
    assert bad.checkpoint is None
    assert_same(setting, runs[:1], results)


def test_a_pass_that_does_not_fit_is_tried_in_halves(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = [Run(trial=i, rung=0, params=params, until=3) for i, params in enumerate(LORA_TRIALS[:2])]
    sharing, whole = lora(setting), SharedLora.logits

    def small(self: SharedLora, parts: Any) -> Any:
        if sum(len(example.input_ids) for _, share in parts for example in share) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", small)
    assert_same(setting, runs, setting.run_together(sharing, runs, prefix="together"))

    def never(self: SharedLora, parts: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SharedLora, "logits", never)
    results = setting.run_together(lora(setting), runs, prefix="never")
    assert {result.status for result in results.values()} == {"out_of_memory"}


@pytest.mark.parametrize("task", ["chat", "text_classification"])
def test_frozen_trials_share_the_backbones_features(store: Store, tmp_path: Path, task: str) -> None:
    setting = make_setting(store, tmp_path, task, method="frozen")
    trials: list[Params] = [
        {"learning_rate": 1e-2, "trainable_blocks": 1},
        {"learning_rate": 3e-3, "trainable_blocks": 2, "batch_size": 4},
        {"learning_rate": 3e-3, "seed": 9, "weight_decay": 0.1, "trainable_blocks": 1},
    ]
    runs = [Run(trial=i, rung=0, params=params, until=6) for i, params in enumerate(trials)]
    results = setting.run_together(features(setting), runs, prefix="together")
    assert_same(setting, runs, results)


def test_a_model_that_is_not_its_two_parts_is_not_cut(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="frozen")
    whole = SharedFeatures._hidden

    def scaled(self: SharedFeatures, examples: Any) -> torch.Tensor:
        return whole(self, examples) * 1.5  # as a model that scales its embeddings would

    monkeypatch.setattr(SharedFeatures, "_hidden", scaled)
    with pytest.raises(Unshareable, match="is not the whole model"):
        features(setting)


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[AtOnce]:
    """Two threads that alternate in the middle of their passes."""
    whole = lora_linear.linear

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(1e-4)
        return whole(*given)

    monkeypatch.setattr(lora_linear, "linear", slow)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    at_once = AtOnce(2)
    yield at_once
    at_once.close()
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", ["chat", "text_classification"])
@pytest.mark.parametrize("method", ["lora", "frozen"])
def test_concurrent_passes_have_the_same_losses_each_time(
    store: Store, tmp_path: Path, two_at_once: AtOnce, task: str, method: str
) -> None:
    setting = make_setting(store, tmp_path, task, method=method, gradient_checkpointing=method == "lora")
    depth: Params = {} if method == "lora" else {"trainable_blocks": 2}
    shared = ("learning_rate", "batch_size", "seed", "lora.rank", "lora.alpha")
    every = [{k: v for k, v in params.items() if method == "lora" and k in shared} | depth for params in LORA_TRIALS]
    runs = [Run(trial=i, rung=0, params={"seed": i, **params}, until=4) for i, params in enumerate(every)]
    kind: Any = SharedLora if method == "lora" else SharedFeatures
    made, names, whole = lora if method == "lora" else features, set(), kind.logits

    def seen(self: Any, parts: Any) -> Any:
        name = threading.current_thread().name
        if name.startswith("at-once"):  # a single pass has all threads
            names.add(name)
            assert torch.get_num_threads() == 1
        return whole(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "logits", seen)
        results = setting.run_together(made(setting), runs, prefix="once", at_once=two_at_once)
        again = setting.run_together(made(setting), runs, prefix="again", at_once=two_at_once)
    assert len(names) == 2
    assert torch.get_num_threads() == 2
    for run in runs:
        assert (again[run.name].losses, again[run.name].loss) == (results[run.name].losses, results[run.name].loss)
    assert_same(setting, runs, results)


def test_a_failure_in_one_thread_does_not_affect_the_others(
    store: Store, tmp_path: Path, two_at_once: AtOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial diverges, another's passes do not fit before they are halved."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    wild = {"method": "lora", "learning_rate": 1e30, "max_grad_norm": None, "warmup_fraction": 0.0}
    every = [*LORA_TRIALS[:2], wild, LORA_TRIALS[3]]
    runs = [Run(trial=i, rung=0, params=params, until=4) for i, params in enumerate(every)]
    whole, failures = SharedLora.logits, []

    def small(self: SharedLora, parts: Any) -> Any:
        tokens = sum(len(example.input_ids) for _, share in parts for example in share)
        if tokens > 64 and runs[1].name in dict(parts):
            failures.append(threading.current_thread().name)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", small)
    results = setting.run_together(lora(setting), runs, prefix="together", at_once=two_at_once)
    assert failures
    assert results[runs[2].name].status == "not_finite"
    assert_same(setting, [runs[0], runs[1], runs[3]], results)


def test_passes_that_do_not_fit_together_run_one_at_a_time(
    store: Store, tmp_path: Path, two_at_once: AtOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = [Run(trial=i, rung=0, params=params, until=2) for i, params in enumerate(LORA_TRIALS[:2])]
    whole = SharedLora.logits

    def one(self: SharedLora, parts: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", one)
    assert_same(setting, runs, setting.run_together(lora(setting), runs, prefix="together", at_once=two_at_once))


def test_a_process_that_computes_on_a_cpu_uses_jemalloc() -> None:
    class Mapped:
        def files(self) -> str:
            return Path("/proc/self/maps").read_text()

    ray_workers.connect()
    actor = ray_workers.start_actor(Mapped, compute=ComputeSection())
    try:
        assert "libjemalloc" in ray.get(actor.files.remote())
    finally:
        ray.kill(actor)


def test_concurrent_jobs_all_end_before_the_first_error_is_raised(two_at_once: AtOnce) -> None:
    ended, both = [], threading.Barrier(2, timeout=30)

    def job(i: int) -> int:
        if i < 2:
            both.wait()  # needs two that run at the same time
        if i in (1, 2):
            raise ValueError(i)
        time.sleep(0.05)
        ended.append(i)
        return torch.get_num_threads()

    with pytest.raises(ValueError, match="1"):
        two_at_once.run([lambda i=i: job(i) for i in range(4)])  # type: ignore[misc]
    assert sorted(ended) == [0, 3]
    assert two_at_once.run([lambda: job(4), lambda: job(5)]) == [1, 1]
    assert two_at_once.run([lambda: job(6)]) == [2]
    assert torch.get_num_threads() == 2


def test_trials_are_distributed_evenly() -> None:
    assert spread([5, 9, 3, 9, 20, 1], 2) == [[2, 4, 5], [0, 1, 3]]
    assert spread([5, 9], 4) == [[1], [0]]
    assert spread([], 2) == []
    assert spread([3, 1], 1) == [[0, 1]]


def test_passes_stay_within_the_token_limit() -> None:
    lengths = [5, 9, 3, 9, 20, 1]
    packed = fill(lengths, 12, packed=True)
    assert sorted(i for group in packed for i in group) == list(range(6))
    assert all(sum(lengths[i] for i in group) <= 12 or len(group) == 1 for group in packed)
    padded = fill(lengths, 18, packed=False)
    assert all(len(group) * max(lengths[i] for i in group) <= 18 or len(group) == 1 for group in padded)
    assert fill([], 8, packed=True) == []


def test_frozen_trials_have_their_own_passes_and_a_head_that_reads_one_token_takes_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen")
    sharing, passes, whole = features(setting), [], SharedFeatures.logits

    def seen(self: SharedFeatures, parts: Any) -> Any:
        passes.append([(name, len(rows)) for name, rows in parts])
        return whole(self, parts)

    monkeypatch.setattr(SharedFeatures, "logits", seen)
    runs = [Run(trial=i, rung=0, params={"batch_size": 8}, until=1) for i in range(3)]
    setting.run_together(sharing, runs, prefix="together", limit=len(LABELLED_HELD_OUT))
    assert passes == [[(run.name, size)] for size in (8, len(LABELLED_HELD_OUT)) for run in runs]


def test_a_cpu_has_small_passes_and_holds_only_the_trials_it_computes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pass_tokens(4096, torch.device("cuda")) == 4096
    assert pass_tokens(64, torch.device("cpu")) == 64
    setting = make_setting(store, tmp_path, "chat", method="lora", micro_batch_tokens=4096, batch_size=16)
    sizes, whole = [], SharedLora.logits

    def seen(self: SharedLora, parts: Any) -> Any:
        sizes.append(sum(len(example.input_ids) for _, share in parts for example in share))
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", seen)
    host = Host(store, "cpu")
    runs = [Run(trial=i, rung=0, params={}, until=1) for i in range(2)]
    for run in runs:
        host.submit(Task(run=run, inputs=setting.alone(run)))
    results: list[Result] = []
    while len(results) < len(runs):
        results += host.poll().results
        time.sleep(0.01)
    host.close()
    longest = max(setting.rows.lengths)
    assert sum(sizes) > 2 * 128
    assert 64 < max(sizes) <= max(128, longest)


def test_runs_that_end_together_are_uploaded_while_others_are_scored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose held-out loss is not a number gets no checkpoint and does not affect the others."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = [Run(trial=i, rung=0, params=params, until=2) for i, params in enumerate(LORA_TRIALS[:3])]
    seen, score, committed = [], Together._score, Together._committed

    def scored(self: Together, name: str) -> Scores:
        seen.append("scored")
        return score(self, name) if name != runs[1].name else Scores(float("nan"), 1, 0)

    def waited_for(self: Together, trial: Trial) -> Result:
        seen.append("waited for")
        return committed(self, trial)

    monkeypatch.setattr(Together, "_score", scored)
    monkeypatch.setattr(Together, "_committed", waited_for)
    results = setting.run_together(lora(setting), runs, prefix="together")
    assert [results[run.name].status for run in runs] == ["ok", "not_finite", "ok"]
    assert [results[run.name].checkpoint is None for run in runs] == [False, True, False]
    assert seen == ["scored"] * 3 + ["waited for"] * 2


def test_the_clock_of_a_single_run_separates_its_start_from_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr("ray_jobs.search.shared_trainer.time.monotonic", lambda: next(times))
    clock, run = Clock(), Run(trial=0, rung=0, params={}, until=2)
    clock.step()
    clock.step()
    timed = clock.timed(Result(run=run, status="ok"))
    assert (timed.start_s, timed.seconds) == (3.0, 7.0)


@dataclass
class Inline:
    """Runs a search's trials in a host of this process."""

    host: Host
    parallel: int
    steps: dict[str, int] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    def running(self) -> dict[str, float]:
        return dict(self.since)

    def busy_workers(self) -> int:
        return 1

    def has_room(self, task: Task) -> bool:
        return len(self.since) < self.parallel

    def start(self, task: Task) -> None:
        self.since[task.run.name] = time.monotonic()
        self.host.submit(task)

    def drop(self, name: str) -> None:
        self.since.pop(name)
        self.host.drop(name)

    def poll(self) -> list[Result]:
        results = list(self.host.poll().results)
        for result in results:
            self.since.pop(result.run.name)
        return results


@pytest.mark.parametrize("algorithm", ["asha", "pbt"])
def test_a_search_ends_with_a_trained_winner(store: Store, tmp_path: Path, algorithm: str) -> None:
    """Two algorithms with rungs are trained; `test_algorithms.py` decides all four without training."""
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    section = {
        "space": {"learning_rate": {"min": 1e-3, "max": 1e-1, "scale": "log"}, "weight_decay": [0.0, 0.01]},
        "algorithm": algorithm,
        "trials": 4,
        "finalists": 1,
    }
    spec = parse_spec(setting.inputs.spec.model_dump() | {"search": section})
    assert spec.search is not None
    job = jobs.start_attempt(store, spec)
    records = SearchRecords(store, f"jobs/{job.id}/search/x")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=len(setting.rows)))
    host = Host(store, "cpu")

    def inputs(run: Run) -> TrainInputs:
        return setting.inputs.model_copy(update={"spec": trial_spec(problem, run)})

    try:
        schedule = Search(job, records, problem, inputs, Inline(host, 4), lambda *_, **__: None).run()
    finally:
        host.close()
    assert schedule.winner is not None
    winner = records.results()[schedule.winner.name]
    assert winner.run.until == 20
    whole = [result.loss for result in records.results().values() if result.run.until == 20]
    assert winner.loss == min(loss for loss in whole if loss is not None)
    assert winner.checkpoint is not None
    assert checkpoint.load(store, winner.checkpoint) is not None
    if algorithm == "pbt":
        moved = [r.run for r in records.results().values() if r.run.source and int(r.run.source[:4]) != r.run.trial]
        assert moved
        for run in moved:  # it starts from the other trial's weights
            source = records.results()[run.source or ""]
            kept = trunk_end(source.run.until)
            assert records.results()[run.name].losses[:kept] == source.losses[:kept]
