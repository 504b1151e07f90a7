"""Parquet, with the names of labels that Hugging Face's `datasets` keeps in the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.data.formats.records import MOST_COLUMNS, Items, Notice, Record, Unreadable, Unusable

_BATCH_ROWS = 256
_MOST_BATCH_BYTES = 1 << 30


def read_parquet(path: Path) -> Items:
    """The records of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if len(schema.names) > MOST_COLUMNS:
                raise Unusable(f"{len(schema.names)} columns; a file may have {MOST_COLUMNS}")
            names = label_names(schema.metadata or {})
            for column in names:
                yield Notice(f"the numbers in {column!r} become the names of its labels (a ClassLabel feature)")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                if batch.nbytes > _MOST_BATCH_BYTES:
                    raise Unusable(f"{len(batch)} rows from row {number + 1} on hold more than 1 GiB")
                for values in batch.to_pylist():
                    number += 1
                    yield _record(number, _without_nulls(values), names)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
        yield Unreadable(0, f"not readable as Parquet after {number} rows: {error}", "row")


def label_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Names of the labels of each ClassLabel column, also of a list of them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {column: _names(feature) for column, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # not written by `datasets`
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> Sequence[str]:
    while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    return [str(name) for name in names] if isinstance(names, list) else ()


def _record(number: int, values: dict[str, Any], names: Mapping[str, Sequence[str]]) -> Record | Unreadable:
    for column, known in names.items():
        if column not in values:
            continue
        try:
            values[column] = _named(values[column], known)
        except IndexError:
            last = len(known) - 1
            reason = f"{column} is {values[column]!r}, and its labels are 0 to {last}: remove rows without a label"
            return Unreadable(number, reason, "row")
    return Record(number, values, "row")


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 0 <= value < len(names):
        raise IndexError
    return names[value]


def _without_nulls(value: Any) -> Any:
    """The value without null keys: Parquet gives every struct every key, and null means absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
