"""Readers of what trackers leave: event files, offline W&B runs and MLflow's database, as {metric: [(step, value)]}."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[int, float]]]

_BLOCK, _W_AND_B_HEADER = 32768, 7


def events(directory: Path) -> Series:
    """Every event file below a directory, as TensorBoard shows it: a file purges later steps of earlier ones."""
    from tensorboardX.proto.event_pb2 import Event

    found: Series = defaultdict(list)
    for path in sorted(directory.rglob("*tfevents*")):
        for data in _tf_records(path.read_bytes()):
            event = Event.FromString(data)
            if event.HasField("session_log"):
                for name, points in found.items():
                    found[name] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[value.tag].append((event.step, value.simple_value))
    return dict(found)


def offline_runs(directory: Path) -> dict[str, Series]:
    """The offline W&B runs below a directory, by the run's id."""
    from wandb.proto import wandb_internal_pb2

    runs: dict[str, Series] = {}
    for path in sorted(directory.rglob("*.wandb")):
        series: Series = defaultdict(list)
        run_id = ""
        for data in _leveldb_records(path.read_bytes()):
            record: Any = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]  # generated
            run_id = record.run.run_id or run_id
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in items.items():
                    if not name.startswith("_"):
                        series[name].append((items["_step"], value))
        earlier = runs.setdefault(run_id, {})
        for name, points in series.items():
            earlier[name] = [*earlier.get(name, []), *points]
    return runs


def mlflow_runs(uri: str, experiment: str) -> dict[str, tuple[Any, Series]]:
    """An experiment's runs by name: MLflow's own object and every metric."""
    from ray_jobs.tracking.mlflow_run import connect

    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "two runs have one name"
    return {
        str(run.info.run_name): (
            run,
            {
                name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        )
        for run in runs
    }


def _tf_records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 12 + length + 4


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    at, parts = _W_AND_B_HEADER, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
