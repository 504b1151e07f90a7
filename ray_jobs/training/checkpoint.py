"""Training checkpoints: written locally, uploaded in the background, visible once every worker's part is uploaded.

A checkpoint is `{prefix}/step-{step}-{run}/`: each worker's share of the trained weights and AdamW's moments (whole
fp32 tensors by name, which any number of workers and any ZeRO stage can read), each worker's random state, and, written
last, the manifest, whose `meta` holds the position in the data. All files are safetensors; frozen weights are not
stored. `run` identifies one start of the workers, so that files of a killed start never mix with its successor's.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from ray_jobs.errors import DiskFull, LossNotFinite, ObjectNotFound, StoreError
from ray_jobs.storage import FileEntry, Workspace
from ray_jobs.training.machine_errors import is_disk_full

if TYPE_CHECKING:
    import torch

_PARTS_PATIENCE_S = 900.0
"""Time the first worker waits for the parts of the others."""

_BLOCK = re.compile(r"\.(\d+)\.")
"""Number of a transformer block in the name of a weight."""

State = dict[str, dict[str, "torch.Tensor"]]
"""`weight`, `exp_avg` and `exp_avg_sq` of each trained weight."""


@dataclass(frozen=True)
class Position:
    """Everything besides tensors that a training needs to resume."""

    step: int = 0
    """Optimizer steps taken; they determine the position in the data."""
    held_out_loss: float | None = None
    """Measured after this step. None: not measured."""
    held_out_accuracy: float | None = None
    """Share of the held-out labels that the model predicts, measured after this step."""
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_better: int = 0
    tokens: int = 0
    """Tokens trained so far."""
    seconds: float = 0.0
    """Time spent on the steps so far, without steps that were lost."""
    losses: tuple[float, ...] = ()
    """Training loss of every step."""
    evaluations: tuple[tuple[int, float, float], ...] = ()
    """(step, held-out loss, held-out accuracy) of every evaluation."""

    def after_step(self, loss: float, tokens: int) -> Position:
        """The position after one more step."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            losses=(*self.losses, loss),
            held_out_loss=None,
            held_out_accuracy=None,
        )

    def measured(self, loss: float, accuracy: float) -> Position:
        """The position after scoring the held-out rows. Raises LossNotFinite."""
        if not math.isfinite(loss):
            raise LossNotFinite(f"the held-out loss is {loss} after step {self.step}; lower the learning rate")
        better = self.best_loss is None or loss < self.best_loss
        return replace(
            self,
            held_out_loss=loss,
            held_out_accuracy=accuracy,
            evaluations=(*self.evaluations, (self.step, loss, accuracy)),
            best_loss=loss if better else self.best_loss,
            best_step=self.step if better else self.best_step,
            evaluations_without_better=0 if better else self.evaluations_without_better + 1,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    key: str
    workers: int
    position: Position
    size_bytes: int = 0


def committed(store: Workspace, prefix: str) -> list[Checkpoint]:
    """Every committed checkpoint, the oldest first."""
    found = filter(None, (load(store, key) for key in _trees(store, prefix)))
    return sorted(found, key=lambda checkpoint: checkpoint.position.step)


def load(store: Workspace, key: str) -> Checkpoint | None:
    """The checkpoint at a key. None: none is committed there."""
    manifest = store.read_manifest(key)
    if manifest is None:
        return None
    position = TypeAdapter(Position).validate_python(manifest.meta["position"])
    return Checkpoint(key, manifest.meta["workers"], position, manifest.size_bytes)


def uncommitted(store: Workspace, prefix: str) -> list[str]:
    """Keys of checkpoints without a manifest: being written, or left by a killed worker."""
    whole = {found.key for found in committed(store, prefix)}
    return [key for key in _trees(store, prefix) if key not in whole]


def _trees(store: Workspace, prefix: str) -> list[str]:
    # From the objects: some stores still list the folders of deleted trees.
    names = {info.key.removeprefix(f"{prefix}/").partition("/")[0] for info in store.list(prefix)}
    return [f"{prefix}/{name}" for name in sorted(names)]


def latest(store: Workspace, prefix: str) -> Checkpoint | None:
    """The checkpoint to resume from. None: none is committed."""
    return next(iter(committed(store, prefix)[::-1]), None)


def to_keep(checkpoints: Sequence[Checkpoint], best: int, pinned: frozenset[int] = frozenset()) -> set[str]:
    """Keys to keep: the last, those of `pinned` steps, and the `best` lowest held-out losses."""
    measured = [c for c in checkpoints if c.position.held_out_loss is not None]
    ranked = sorted(measured, key=lambda c: (c.position.held_out_loss, c.position.step))
    pins = [c for c in checkpoints if c.position.step in pinned]
    return {c.key for c in [*ranked[:best], *pins, *checkpoints[-1:]]}


def load_state(store: Workspace, checkpoint: Checkpoint, names: Collection[str] = ()) -> State:
    """Load the trained weights and moments of a checkpoint, whole, fp32, on the CPU.

    `names` are the weights of the model that they are for: see `with_block_numbers`.
    """
    from safetensors.torch import load_file

    state: State = {}
    for path in sorted(store.fetch(checkpoint.key).glob("state-*.safetensors")):
        for key, tensor in load_file(path).items():
            name, _, part = key.rpartition("/")
            state.setdefault(name, {})[part] = tensor
    return with_block_numbers(state, names)


def with_block_numbers(state: State, names: Collection[str]) -> State:
    """The state with its blocks numbered as in `names`. Pure.

    Checkpoints of earlier versions number the trained blocks of a frozen model from 0 where trials shared the others:
    `layers.0` for `layers.2`. The last block of the model is always among them.
    """
    blocks, wanted = ([int(found[1]) for name in part if (found := _BLOCK.search(name))] for part in (state, names))
    if set(names) <= set(state) or not blocks or not wanted:
        return state
    shift = max(wanted) - max(blocks)
    return {_BLOCK.sub(lambda found: f".{int(found[1]) + shift}.", n, count=1): parts for n, parts in state.items()}


def restore_random_state(store: Workspace, checkpoint: Checkpoint, *, rank: int, workers: int) -> bool:
    """Set this worker's random state to the saved one. Returns False, unchanged, when the number of workers differs."""
    from safetensors.torch import load_file

    if checkpoint.workers != workers:
        return False
    import torch

    saved = load_file(store.fetch(checkpoint.key) / f"random-{rank:05d}.safetensors")
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"])
    return True


@dataclass
class Writer:
    """Saves one worker's part. `save` returns once the files are on the local disk; the upload is in the background."""

    store: Workspace
    prefix: str
    run: str
    rank: int
    workers: int
    keep: int
    stall_s: float = 0.0
    """Time the loop has waited in `save`."""
    deletes_older: bool = True
    """Whether a commit deletes older checkpoints. A stopping start leaves them to the next one, which may be reading
    them already."""
    pinned: frozenset[int] = frozenset()
    """Steps whose checkpoints are kept, whatever their loss."""
    on_commit: Callable[[int], None] = lambda _: None
    """Called in the background of the first worker with the step of each committed checkpoint."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _pending: Future[None] | None = None

    def save(self, tensors: Iterable[tuple[str, dict[str, torch.Tensor]]], position: Position) -> None:
        """Write this worker's share of `tensors`. Reading them is a collective: every worker reads all of them.

        Waits for the previous upload and raises its error. Raises DiskFull when the local disk is full.
        """
        started = time.monotonic()
        self.wait()
        directory = Path(tempfile.mkdtemp(prefix="kitae-checkpoint-"))
        try:
            self._write(directory, tensors)
        except Exception as error:  # from the system or safetensors
            shutil.rmtree(directory, ignore_errors=True)
            if not is_disk_full(error):
                raise
            free = shutil.disk_usage(directory.parent).free
            raise DiskFull(
                f"no room for a checkpoint of step {position.step} below {directory.parent}: {free} bytes are free; "
                "make room, or set TMPDIR to a larger disk"
            ) from error
        self._pending = self._pool.submit(self._upload, directory, position)
        self.stall_s += time.monotonic() - started

    def wait(self) -> None:
        """Wait until the last `save` is committed. Raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last `save` and end the background thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown(wait=True)

    def _write(self, directory: Path, tensors: Iterable[tuple[str, dict[str, torch.Tensor]]]) -> None:
        import torch
        from safetensors.torch import save_file

        share: dict[str, torch.Tensor] = {}
        for i, (name, parts) in enumerate(tensors):
            if i % self.workers == self.rank:
                share |= {f"{name}/{part}": tensor.contiguous() for part, tensor in parts.items()}
        save_file(share, directory / f"state-{self.rank:05d}.safetensors")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        save_file(random, directory / f"random-{self.rank:05d}.safetensors")

    def _upload(self, directory: Path, position: Position) -> None:
        key = f"{self.prefix}/step-{position.step:08d}-{self.run}"
        try:
            entries = self.store.upload_tree(directory, key)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self.store.put_json(f"{key}/part-{self.rank:05d}.json", [asdict(entry) for entry in entries])
        if self.rank == 0:
            parts = [self._part(f"{key}/part-{rank:05d}.json") for rank in range(self.workers)]
            meta = {"workers": self.workers, "position": asdict(position)}
            self.store.commit(key, [entry for part in parts for entry in part], meta)
            self.on_commit(position.step)
            if self.deletes_older:
                self._delete_others()

    def _part(self, key: str) -> list[FileEntry]:
        deadline = time.monotonic() + _PARTS_PATIENCE_S
        while True:
            try:
                return [FileEntry(**entry) for entry in self.store.get_json(key)]
            except ObjectNotFound as error:
                if time.monotonic() > deadline:
                    why = f"a worker did not upload its part {key} within {_PARTS_PATIENCE_S:.0f} s"
                    raise StoreError(why) from error
                time.sleep(0.1)

    def _delete_others(self) -> None:
        """Delete older checkpoints, after a newer one is committed."""
        whole = committed(self.store, self.prefix)
        keep = to_keep(whole, self.keep, self.pinned)
        # Uncommitted ones of earlier starts; this start writes its next one after this returns.
        left = [key for key in uncommitted(self.store, self.prefix) if not key.endswith(f"-{self.run}")]
        for key in [*(c.key for c in whole if c.key not in keep), *left]:
            self.store.delete_tree(key)
