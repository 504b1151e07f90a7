"""Inputs of training: the dataset, a copy of each base model, and the rows encoded for each base."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ray_jobs.data import dataset
from ray_jobs.data.dataset import Dataset
from ray_jobs.data.encoding import Encoded, encode_rows
from ray_jobs.models import bases, fetch_base, load_processor
from ray_jobs.pipeline import keys
from ray_jobs.pipeline.outputs import BaseCopy, EncodedRows, Flow
from ray_jobs.pipeline.stage import StageContext
from ray_jobs.tasks import TASKS
from ray_jobs.training.inputs import HELD_OUT_FILE, TRAIN_FILE


def make_dataset(flow: Flow, context: StageContext) -> Dataset:
    """Read, check and split the rows."""
    return dataset.prepare(context.store, flow.job_spec.data, TASKS[flow.job_spec.task])


def copy_base(flow: Flow, context: StageContext, base_model: str) -> BaseCopy:
    base = bases.prepare(
        context.store,
        base_model,
        flow.job_spec.task,
        progress=lambda done, total: context.show(done, total, "bytes"),
    )
    return BaseCopy(digest=base.digest, name=base.name, architecture=base.architecture, key=base.key)


def encode(flow: Flow, context: StageContext, base_model: str) -> EncodedRows:
    """Encode the rows of both sides for a base, once."""
    store, spec, base = context.store, flow.job_spec, flow.base_copy(base_model)
    task, labels = TASKS[spec.task], flow.dataset.labels
    files = dataset.load(store, flow.dataset.digest)
    tokenizer = load_processor(fetch_base(store, base.key), spec.task)
    key = keys.encoded_rows(flow.dataset.digest, base.digest, spec.data)
    counts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kitae-encoded-") as scratch:
        for side, rows, name in (
            ("train", files.train_rows, TRAIN_FILE),
            ("held_out", files.held_out_rows, HELD_OUT_FILE),
        ):
            encoded, kept = encode_rows(
                rows,
                task,
                tokenizer,
                labels,
                max_tokens=spec.data.max_tokens,
                too_long=spec.data.too_long,
                source=side.replace("_", "-"),
                progress=lambda done, total: context.show(done, total, "rows"),
            )
            if side == "train":
                task.check_encoded([encoded[i] for i in range(len(encoded))], tokenizer)
            encoded.save(Path(scratch) / name)
            counts |= _counts(side, encoded, len(rows))
        if store.read_manifest(key) is None:
            store.commit(key, store.upload_tree(Path(scratch), key), {"base": base.digest})
    return EncodedRows(**counts, held_out_kept=tuple(kept), key=key, labels=labels)


def _counts(side: str, encoded: Encoded, rows: int) -> dict[str, int]:
    return {
        f"{side}_rows": len(encoded),
        f"{side}_rows_left_out": rows - len(encoded),
        f"{side}_tokens": int(sum(encoded.lengths)),
        f"{side}_supervised": int(sum(encoded.supervised)),
    }
