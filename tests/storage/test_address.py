"""The environment variables that name a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.errors import (
    StoreError,
)
from ray_jobs.storage import Store
from tests.storage.builders import make_tree, save


def test_all_missing_variables_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["KITAE_STORE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    for name in [*names, "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError) as caught:
        Store.from_env()
    assert [detail.split()[0] for detail in caught.value.details] == names
    monkeypatch.setenv("AWS_PROFILE", "company")
    with pytest.raises(StoreError) as caught:
        Store.from_env()
    assert [detail.split()[0] for detail in caught.value.details] == names[:2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KITAE_STORE", "bucket/prefix"),
        ("KITAE_STORE", "s3://Bucket_/x"),
        ("AWS_ENDPOINT_URL", "localhost:9000"),
        ("AWS_ENDPOINT_URL", "http://user:secret@host"),
        ("KITAE_STORE_PATIENCE_S", "soon"),
    ],
)
def test_malformed_variables_are_named(
    store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=name) as caught:
        Store.from_env()
    assert "secret" not in str(caught.value)


def test_a_store_is_opened_from_the_environment_alone(
    store: Store, store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "elsewhere"))
    save(store, make_tree(tmp_path / "in", a=1), "t")
    assert Store.from_env().fetch("t").is_relative_to(tmp_path / "elsewhere")
