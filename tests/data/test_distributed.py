"""Preparation on Ray Data, and after a kill: the same bytes as in one process, for any number of CPUs and order."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_jobs.data import dataset, distributed
from ray_jobs.data.encoding import Encoded, Kept, encode_rows
from ray_jobs.data.prepare import prepare
from ray_jobs.errors import DataError
from ray_jobs.models import load_processor
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from tests.conftest import StoreServer
from tests.data.builders import CLASSIFY, write_jsonl
from tests.data.clean.support_texts import requests
from tests.models import tiny_models

CLEAN = {"mojibake": "repair", "near_duplicates": "drop", "exact_duplicates": "drop", "boilerplate": "remove"}


def many_rows() -> list[dict[str, Any]]:
    """Rows with a fault of each kind, more than a batch."""
    rows = [{"text": f"{text} No. {i}", "label": label} for i, (text, label) in enumerate(requests(2300, seed=5))]
    rows += [dict(row) for row in rows[:50]]
    rows += [{"text": row["text"] + "!", "label": row["label"]} for row in rows[50:100]]
    rows += [{"text": f"{row['text']} cafÃ©", "label": row["label"]} for row in rows[100:150]]
    rows += [{"text": f"{row['text']} taro{i}@example.co.jp", "label": row["label"]} for i, row in enumerate(rows[:40])]
    return rows


def section(*files: Path, **fields: Any) -> DataSection:
    given = {"train": [str(file) for file in files], "clean": CLEAN, "personal_data": {"email": "redact"}, **fields}
    return DataSection.model_validate(given)


def two_files(directory: Path, seed: int | None = None) -> list[Path]:
    rows = many_rows()
    if seed is not None:
        random.Random(seed).shuffle(rows)
    directory.mkdir(exist_ok=True)
    return [write_jsonl(directory / "a.jsonl", rows[:1500]), write_jsonl(directory / "b.jsonl", rows[1500:])]


@pytest.fixture(scope="module")
def cluster(store_server: StoreServer) -> Iterator[None]:
    """A Ray cluster of this module's own, on which small files count as large ones."""
    import ray

    ray.shutdown()  # other modules of this process may have left theirs
    ray.init(
        "local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": store_server.environment("s3://unused")},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "SMALL_BYTES", 0)
        yield
    ray.shutdown()


@pytest.mark.heavy
def test_any_number_of_cpus_and_any_order_give_the_same_bytes(
    cluster: None, store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data import DataContext
    from ray.data import ExecutionResources as Resources

    files = two_files(tmp_path / "rows")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "SMALL_BYTES", 2**60)
        alone = prepare(store, section(*files), CLASSIFY)
    report, stored = dataset.report_of(store, alone.digest), store.read_manifest(alone.key)
    assert report is not None
    assert {step.step for step in report.steps if step.rows} >= {"mojibake", "personal_data", *CLEAN} - {"boilerplate"}
    options = DataContext.get_current().execution_options
    for cpus in (1, 2, 4):
        monkeypatch.setattr(options, "resource_limits", Resources.for_limits(cpu=cpus))
        store.delete_tree(alone.key)
        assert prepare(store, section(*files), CLASSIFY) == alone
        again = store.read_manifest(alone.key)
        assert again is not None
        assert stored is not None
        assert again.files == stored.files, "the rows of each side, and the report"
    shuffled = two_files(tmp_path / "shuffled", seed=1)
    assert prepare(store, section(*shuffled), CLASSIFY) == alone


@pytest.mark.heavy
def test_what_is_wrong_is_reported_as_in_one_process(
    cluster: None, store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = two_files(tmp_path / "rows")
    for at, file in enumerate(files):
        lines = file.read_text(encoding="utf-8").splitlines()
        lines[1200 - at * 400] = '{"text": ""}'
        lines[7] = "not JSON"
        file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as there:
        prepare(store, section(*files), CLASSIFY)
    monkeypatch.setattr(distributed, "SMALL_BYTES", 2**60)
    with pytest.raises(DataError) as here:
        prepare(store, section(*files), CLASSIFY)
    assert (there.value.message, there.value.details) == (here.value.message, here.value.details)
    assert len(there.value.details) == 4


@pytest.mark.heavy
def test_rows_are_encoded_as_in_one_process(cluster: None, tmp_path: Path) -> None:
    base = tiny_models.save_encoder(tmp_path)
    tokenizer, rows = load_processor(base, "text_classification"), many_rows()
    labels = sorted({row["label"] for row in rows})

    def encoded(*, distributed: bool) -> tuple[Encoded, Kept]:
        return encode_rows(
            rows, CLASSIFY, tokenizer, labels, max_tokens=24, too_long="truncate", source="train",
            distributed=distributed,
        )  # fmt: skip

    (one, kept), (other, also_kept) = encoded(distributed=False), encoded(distributed=True)
    assert kept == also_kept
    assert len(one) == len(rows)
    assert one.lengths == other.lengths
    for name in ("input_ids", "labels"):
        assert np.array_equal(one.values[name], other.values[name])
        assert np.array_equal(one.ends[name], other.ends[name])


KILLED = """
import os, signal, sys
from ray_jobs.data import spool
from ray_jobs.data.prepare import prepare
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS

def killed(self, rows, path):
    os.kill(os.getpid(), signal.SIGKILL)

spool.Spool.write = killed
prepare(Workspace.from_env(), DataSection.model_validate_json(sys.argv[1]), TASKS["text_classification"])
"""


def test_a_kill_in_the_middle_changes_nothing(store: Workspace, store_server: StoreServer, tmp_path: Path) -> None:
    data = section(*two_files(tmp_path / "rows"))
    undisturbed = prepare(store, data, CLASSIFY)
    store.delete_tree(undisturbed.key)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, data.model_dump_json()], check=False, timeout=120,
        env={**store_server.environment(store.root.uri()), "PYTHONPATH": ":".join(sys.path)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr.decode()
    assert store.read_manifest(undisturbed.key) is None
    assert prepare(store, data, CLASSIFY) == undisturbed
