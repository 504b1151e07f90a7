"""Checkpoints in a store: only committed ones are read; an older one is deleted once a newer one is committed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_jobs.errors import MachineError, StoreError
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Checkpoint, Position, Writer

PREFIX = "jobs/j/checkpoints/c"


def save(
    store: Workspace, step: int, *, run: str, held_out_loss: float | None = None, deletes_older: bool = True
) -> None:
    writer = Writer(store, PREFIX, run, rank=0, workers=1, keep=1, deletes_older=deletes_older)
    parts = {name: torch.full((3,), float(step)) for name in ("weight", "exp_avg", "exp_avg_sq")}
    writer.save([("layer", parts)], Position(step=step, held_out_loss=held_out_loss, losses=(1.0,) * step))
    writer.close()


def leave_half(store: Workspace, step: int, *, run: str) -> str:
    """The files of a worker that was killed before it wrote the manifest."""
    key = f"{PREFIX}/step-{step:08d}-{run}"
    store.put(f"{key}/state-00000.safetensors", b"half of it")
    return key


def steps(store: Workspace) -> list[int]:
    return [found.position.step for found in checkpoint.committed(store, PREFIX)]


def test_a_half_written_checkpoint_is_never_read_and_is_deleted_by_the_next_commit(store: Workspace) -> None:
    save(store, 5, run="first")
    key = leave_half(store, 10, run="first")
    latest = checkpoint.latest(store, PREFIX)
    assert latest is not None
    assert latest.position == Position(step=5, losses=(1.0,) * 5)
    assert torch.equal(checkpoint.load_state(store, latest)["layer"]["weight"], torch.full((3,), 5.0))
    save(store, 10, run="second")
    assert steps(store) == [10]
    assert list(store.list(key)) == []


def test_blocks_that_an_earlier_version_numbered_from_the_cut_are_found() -> None:
    """Frozen trials that shared a backbone of two blocks under two trained ones."""
    state = {f"model.layers.{i}.mlp.weight": {"weight": torch.tensor([float(i)])} for i in range(2)}
    names = [f"model.layers.{i}.mlp.weight" for i in (2, 3)]
    found = checkpoint.with_block_numbers(state, names)
    assert {name: parts["weight"].item() for name, parts in found.items()} == {names[0]: 0.0, names[1]: 1.0}
    assert checkpoint.with_block_numbers(found, names) is found
    assert checkpoint.with_block_numbers(state, list(state)) is state
    head = {"score.weight": {"weight": torch.zeros(1)}}
    assert checkpoint.with_block_numbers(head, ["other.weight"]) is head


def test_a_superseded_runner_deletes_nothing(store: Workspace) -> None:
    save(store, 5, run="first")
    key = leave_half(store, 10, run="second")  # by the runner that took over
    save(store, 7, run="first", deletes_older=False)
    assert steps(store) == [5, 7]
    assert len(list(store.list(key))) == 1


def test_a_failed_upload_is_raised_at_the_next_save(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("refused")

    writer = Writer(store, PREFIX, "first", rank=0, workers=1, keep=1)
    monkeypatch.setattr(store, "upload_tree", refuse)
    writer.save([], Position(step=1))
    with pytest.raises(StoreError, match="refused"):
        writer.save([], Position(step=2))
    assert checkpoint.latest(store, PREFIX) is None


def test_a_full_disk_is_an_error_and_leaves_no_files(store: Workspace, small_disk: Path) -> None:
    writer = Writer(store, PREFIX, "first", rank=0, workers=1, keep=1)
    with pytest.raises(MachineError) as full:
        writer.save([("layer", {"weight": torch.ones(2**16)})], Position(step=3))
    assert f"no room for a checkpoint of step 3 below {small_disk}: " in str(full.value)
    assert "set TMPDIR to a larger disk" in str(full.value)
    assert list(small_disk.iterdir()) == []
    writer.save([("layer", {"weight": torch.ones(4)})], Position(step=3))
    writer.close()
    assert steps(store) == [3]


def test_the_best_and_the_last_are_kept() -> None:
    losses = {1: 0.9, 2: 0.5, 3: None, 4: 0.7, 5: 0.5, 6: None}
    every = [Checkpoint(str(step), 1, Position(step=step, held_out_loss=loss)) for step, loss in losses.items()]
    assert checkpoint.to_keep(every, best=1) == {"2", "6"}
    assert checkpoint.to_keep(every, best=2) == {"2", "5", "6"}
    assert checkpoint.to_keep(every[:3], best=3) == {"1", "2", "3"}
    assert checkpoint.to_keep([], best=2) == set()
