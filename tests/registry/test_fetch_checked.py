"""The files of a base or a version are checked again where they are loaded: a job's pods may have replaced them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ray_jobs.errors import RegistryError
from ray_jobs.models import bases
from ray_jobs.registry.files import fetch_checked
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.models import tiny_models
from tests.serving.api_harness import register


def test_a_forged_version_with_a_pickle_is_not_fetched(store: Workspace, tmp_path: Path) -> None:
    register(store, make_spec(), "1")
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    store.commit("models/greeter/2", store.upload_tree(forged, "models/greeter/2"), {})
    with pytest.raises(RegistryError, match="cannot be registered"):
        fetch_checked(store, "models/greeter/2")
    assert fetch_checked(store, "models/greeter/1").is_dir()


def test_a_replaced_base_is_not_fetched(store: Workspace, tmp_path: Path) -> None:
    """A base is named by the digest of its files, so another tree under its name is found out."""
    source = tiny_models.save_causal(tmp_path / "base")
    (source / "a").mkdir()
    for name in ("a/b.txt", "a-b.txt"):
        (source / name).write_bytes(b"the base's own")
    base = bases.prepare(store, str(source), "chat")
    assert fetch_checked(store, base.key).is_dir()
    (source / "a-b.txt").write_bytes(b"another team's")
    store.delete_tree(base.key)
    store.commit(base.key, store.upload_tree(source, base.key), {})
    with pytest.raises(RegistryError, match="does not hold the base of this digest"):
        fetch_checked(store, base.key)
