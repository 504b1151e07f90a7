"""Training has the losses of a plain PyTorch loop in every ZeRO stage, on any number of workers, after a resume."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, Example, loss_sum
from ray_jobs.training import checkpoint
from ray_jobs.training.adamw import MOMENTS
from ray_jobs.training.batching import batch_plan
from ray_jobs.training.inputs import TRAIN_FILE, TrainHooks, TrainInputs, TrainOutcome
from ray_jobs.training.lr_schedule import learning_rate_at
from ray_jobs.training.trainer import Trainer
from tests.models import tiny_models
from tests.training.harness import make_spec, on_workers, publish

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]

GOLDEN = Path(__file__).parent / "golden" / "tiny_chat_full_fp32.json"
CLOSE = 1e-4
Section = dict[str, Any]
ROWS, HELD_OUT = tiny_models.chat_rows(30), tiny_models.chat_rows(40)[30:]


@dataclass(frozen=True)
class Case:
    """A training run: its inputs, and the step at which it stops (None: at its end)."""

    store: Workspace
    inputs: TrainInputs
    stop_after: int | None = None


@dataclass(frozen=True)
class Answer:
    losses: tuple[float, ...]
    first_step: int
    frozen_changed: tuple[str, ...]
    trained_changed: tuple[str, ...]
    outcome: TrainOutcome


def run_case(case: Case) -> Answer:
    """Train, then compare every weight with the base's files. Runs on each process."""
    from deepspeed import zero as deepspeed_zero

    calls = iter(range(10_000))
    stop = case.stop_after
    hooks = TrainHooks(should_stop=lambda: stop is not None and next(calls) + 1 >= stop)
    trainer = Trainer(case.inputs, case.store, hooks)
    first = trainer.state.step
    outcome = trainer.run()
    spec = case.inputs.spec
    base = models.load_base(
        case.store.fetch(case.inputs.base_key), spec.task, case.inputs.labels, torch.float32, seed=spec.training.seed
    )
    original = dict(models.attach(base, spec.training, spec.task).named_parameters())
    frozen: list[str] = []
    trained: list[str] = []
    for name, parameter in trainer.optimizer.module.named_parameters():
        with deepspeed_zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if not torch.equal(parameter.detach().float(), original[name].detach().to(parameter.dtype).float()):
                (trained if parameter.requires_grad else frozen).append(name)
    answer = Answer(trainer.state.position.losses, first, tuple(frozen), tuple(trained), outcome)
    trainer.optimizer.engine.destroy()
    return answer


def plain_losses(inputs: TrainInputs, store: Workspace) -> list[float]:
    """The same job as a bare single-process loop: one unpacked row a forward pass, all logits, torch's own AdamW."""
    spec = inputs.spec
    rows = Encoded.load(store.fetch(inputs.encoded_key) / TRAIN_FILE)
    plan = batch_plan(spec, rows)
    model: Any = models.load_base(
        store.fetch(inputs.base_key), spec.task, inputs.labels, torch.float32, seed=spec.training.seed
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
    losses = []
    for step in range(plan.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, plan.total_steps, spec)
        supervised, total = plan.supervised_in(step), 0.0
        for i in plan.rows_of(step):
            ids, labels = torch.tensor([rows[i].input_ids]), torch.tensor([rows[i].labels])
            logits = model(input_ids=ids).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum"
            )
            (loss / supervised).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / supervised
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def relative(losses: tuple[float, ...], reference: list[float] | tuple[float, ...]) -> float:
    assert len(losses) == len(reference)
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_models.save_causal(tmp_path / "tiny-causal")


def inputs_for(
    store: Workspace, base: Path, name: str, *, training: Section | None = None, compute: Section | None = None
) -> TrainInputs:
    return publish(
        store,
        make_spec(training=training or {}, compute=compute or {}),
        base,
        ROWS,
        HELD_OUT,
        checkpoints=f"checkpoints/{name}",
    )


def test_every_zero_stage_reaches_the_losses_of_a_plain_loop(store: Workspace, base: Path) -> None:
    computes: dict[str, Section] = {
        **{f"zero{stage}": {"zero_stage": stage} for stage in range(4)},
        "zero2-offload": {"zero_stage": 2, "offload": "optimizer"},
        "zero3-offload": {"zero_stage": 3, "offload": "optimizer_and_parameters"},
    }
    cases = [Case(store, inputs_for(store, base, name, compute=compute)) for name, compute in computes.items()]
    reference = plain_losses(cases[0].inputs, store)
    assert reference[-1] < reference[0] * 0.9  # it learns, so that the comparison means something
    assert relative(tuple(reference), json.loads(GOLDEN.read_text())["losses"]) < CLOSE
    for name, answer in zip(computes, on_workers(2, run_case, cases), strict=True):
        assert relative(answer.losses, reference) < CLOSE, name


def test_a_job_resumes_with_other_workers_and_another_stage(store: Workspace, base: Path) -> None:
    whole = inputs_for(store, base, "whole", training={"checkpoint_every_steps": 3})
    shrinks = inputs_for(store, base, "shrinks", compute={"zero_stage": 2})
    grows = inputs_for(store, base, "grows", compute={"zero_stage": 3})
    undisturbed, first_half, _ = on_workers(
        2, run_case, [Case(store, whole), Case(store, shrinks, stop_after=3), Case(store, grows, stop_after=1)]
    )
    assert len(first_half.losses) == 3
    one = shrinks.model_copy(update={"spec": make_spec(compute={"workers": 1, "zero_stage": 0})})
    shrunk, _ = on_workers(
        1, run_case, [Case(store, one), Case(store, one.model_copy(update={"checkpoints": "checkpoints/one"}), 5)]
    )
    two = grows.model_copy(update={"checkpoints": "checkpoints/one"})
    grown, same_again = on_workers(2, run_case, [Case(store, two), Case(store, grows)])
    assert (shrunk.first_step, grown.first_step, same_again.first_step) == (3, 5, 1)
    for answer in (shrunk, grown, same_again):
        assert relative(answer.losses, undisturbed.losses) < CLOSE


@pytest.mark.parametrize("task", ["chat", "text_classification"])
def test_frozen_weights_stay_bit_identical_in_every_stage_and_after_a_resume(
    store: Workspace, base: Path, tmp_path: Path, task: str
) -> None:
    rows: list[dict[str, Any]] = ROWS
    held_out: list[dict[str, Any]] = HELD_OUT
    if task == "text_classification":
        base = tiny_models.save_encoder(tmp_path / "tiny-encoder")
        rows, held_out = list(tiny_models.label_rows(30)), list(tiny_models.label_rows(40)[30:])
    cases = []
    for stage in range(4):
        frozen = {"method": "frozen", "trainable_blocks": 1, "learning_rate": 1e-2}
        spec = make_spec(task, training=frozen, compute={"zero_stage": stage})
        inputs = publish(store, spec, base, rows, held_out, checkpoints=f"checkpoints/{stage}")
        cases += [Case(store, inputs, stop_after=2), Case(store, inputs)]
    for answer in on_workers(2, run_case, cases):
        assert answer.frozen_changed == ()
        assert answer.trained_changed
        prefixes = ("model.layers.2.",) if task == "chat" else ("classifier.", "bert.pooler.")
        assert all(name.startswith(prefixes) for name in answer.trained_changed)


def test_lora_trains_adapters_alone_and_bf16_runs_in_every_stage(store: Workspace, base: Path) -> None:
    lora = {"method": "lora", "lora": {"rank": 4, "alpha": 8.0}, "learning_rate": 1e-2}
    cases = []
    for precision in ("fp32", "bf16"):
        for stage in (0, 2, 3):
            training = {**lora, "precision": precision}
            inputs = inputs_for(store, base, f"{precision}{stage}", training=training, compute={"zero_stage": stage})
            cases += [Case(store, inputs, stop_after=4), Case(store, inputs)]
    answers = on_workers(2, run_case, cases)
    finished = answers[1::2]
    for answer in answers:
        assert answer.frozen_changed == ()
        assert all("lora_" in name for name in answer.trained_changed)
    for answer in finished[1:3]:
        assert relative(answer.losses, finished[0].losses) < CLOSE
    for answer in finished[3:]:
        assert relative(answer.losses, finished[0].losses) < 0.02  # bf16 keeps 8 bits


def test_training_stops_early_and_the_best_checkpoint_is_kept(store: Workspace, base: Path) -> None:
    """At a rate at which the loss rises: after `patience` evaluations, and no further step after a resume."""
    worse = {"learning_rate": 0.3, "schedule": "constant", "eval_every_steps": 1, "early_stopping_patience": 2}
    inputs = inputs_for(store, base, "worse", training=worse)
    first, resumed = on_workers(2, run_case, [Case(store, inputs), Case(store, inputs)])
    assert first.outcome.stopped == resumed.outcome.stopped == "early"
    assert first.outcome.step == resumed.outcome.step == first.outcome.best_step + 2 < len(ROWS)
    assert resumed.losses == first.losses
    best = next(c for c in checkpoint.committed(store, inputs.checkpoints) if c.key == first.outcome.checkpoint)
    assert best.position.held_out_loss == first.outcome.best_loss
    assert best.position.step == first.outcome.best_step


def test_a_packed_batch_has_the_losses_of_its_rows(base: Path) -> None:
    tokenizer = models.load_processor(base, "chat")
    task = TASKS["chat"]
    examples = [example for row in ROWS[:9] for example in task.encode(row, tokenizer, [])]
    model = models.load_base(base, "chat", [], torch.float32, seed=0)

    def losses_of(group: list[Example], *, packed: bool) -> torch.Tensor:
        batch = task.collate(group, packed=packed, pad_id=0)
        with torch.no_grad():
            logits = task.logits(model, batch)
        return torch.nn.functional.cross_entropy(logits, batch.targets_S, reduction="none")

    alone = torch.cat([losses_of([example], packed=False) for example in examples])
    for together in (losses_of(examples, packed=True), losses_of(examples, packed=False)):
        assert together.shape == alone.shape
        assert torch.allclose(together, alone, rtol=CLOSE, atol=1e-5)
    shuffled = losses_of(examples[1:] + examples[:1], packed=True)
    assert torch.allclose(shuffled.roll(int(examples[0].supervised)), alone, rtol=CLOSE, atol=1e-5)


def test_an_empty_pass_changes_nothing(base: Path) -> None:
    model = models.load_base(base, "chat", [], torch.float32, seed=0)
    for packed in (True, False):
        batch = TASKS["chat"].collate([], packed=packed, pad_id=0)
        loss = loss_sum(TASKS["chat"].logits(model, batch), batch.targets_S)
        loss.backward()  # type: ignore[no-untyped-call]
        assert float(loss.detach()) == 0.0
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_training_state_is_read_back_from_the_store(store: Workspace, base: Path) -> None:
    inputs = inputs_for(store, base, "kept", training={"checkpoint_every_steps": 1, "checkpoints_to_keep": 1})
    on_workers(2, run_case, [Case(store, inputs)])
    whole = checkpoint.committed(store, inputs.checkpoints)
    best = min((c for c in whole if c.position.held_out_loss is not None), key=lambda c: c.position.held_out_loss or 0)
    assert {c.key for c in whole} == {best.key, whole[-1].key}
    state = checkpoint.load_state(store, whole[-1])
    assert set(state["model.norm.weight"]) == {"weight", *MOMENTS}
    assert {entry.path.rsplit(".", 1)[-1] for c in whole for entry in _files(store, c.key)} == {"safetensors"}


def _files(store: Workspace, key: str) -> Any:
    manifest = store.read_manifest(key)
    assert manifest is not None
    return manifest.files
