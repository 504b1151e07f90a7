"""What makes two job files the same job: all that decides the trained weights, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray_jobs.digests import json_digest

FORMER_FRACTION = 0.1
"""Default of `data.held_out_fraction` in earlier versions. In digests it still stands for "not given"."""

NOT_TRAINED = ("evaluation", "serving", "suffix", "compute", "priority", "tracking")
"""Fields of a job file that do not change the trained weights: what follows the training, and how it runs."""
KEPT_CHECKPOINTS = ("publish_checkpoints", "checkpoints_to_keep")
"""Fields of `training` that do not change the trained weights."""


def identity_of(document: Mapping[str, Any]) -> str:
    """10 hex digits of the identity of a resolved job file, as `model_dump(exclude_none=True)` gives it."""
    document = {name: value for name, value in document.items() if name not in NOT_TRAINED}
    training = {name: value for name, value in document["training"].items() if name not in KEPT_CHECKPOINTS}
    document |= {
        "training": training,
        "data": _data(document["data"]),
        "base_model": one_spelling(document["base_model"]),
    }
    if "search" in document:
        document["search"] = _search(document["search"])
    return json_digest(document, 10)


def one_spelling(address: str) -> str:
    """An address as it is written in identities: `./rows.csv`, `rows.csv` and its absolute path are one.

    A path below the working directory is relative to it, so that a job has the same id on another machine; any other
    is absolute.
    """
    if not address or "://" in address:
        return address.rstrip("/")
    path = os.path.normpath(os.path.expanduser(address))
    if not os.path.isabs(path) and path.split(os.sep)[0] != os.pardir:
        return path
    folder, name = os.path.split(os.path.abspath(path))
    path, here = os.path.join(os.path.realpath(folder), name), os.path.realpath(os.curdir)
    return os.path.relpath(path, here) if os.path.commonpath([path, here]) == here else path


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data`, with its addresses in one spelling."""
    found = {"held_out_fraction": FORMER_FRACTION, **data}
    for field in ("held_out", "test"):
        if field in found:
            found[field] = one_spelling(found[field])
    train = found.get("train")
    if isinstance(train, str):
        found["train"] = one_spelling(train)
    elif train is not None:
        found["train"] = [
            one_spelling(each) if isinstance(each, str) else {**each, "source": one_spelling(each["source"])}
            for each in train
        ]
    cleaning = found.get("clean")
    if isinstance(cleaning, dict) and isinstance(cleaning.get("drop_rows"), str):
        found["clean"] = {**cleaning, "drop_rows": one_spelling(cleaning["drop_rows"])}
    return found


def _search(search: Mapping[str, Any]) -> dict[str, Any]:
    """The section `search`, with its bases in one spelling."""
    space = search.get("space") or {}
    bases = space.get("base_model")
    if not isinstance(bases, list):
        return dict(search)
    return {**search, "space": {**space, "base_model": [one_spelling(each) for each in bases]}}
