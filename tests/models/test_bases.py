"""Base models: adding, preparing and removing entries of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import assets
from ray_jobs.errors import ModelError
from ray_jobs.models import bases
from ray_jobs.registry import catalogue
from ray_jobs.storage import Workspace
from tests.models.tiny_models import save_causal, save_encoder
from tests.serving.served_models import smollm2


def test_the_catalogue_records_a_bases_tasks_and_keeps_its_name(store: Workspace, tmp_path: Path) -> None:
    for name in ("chat", "encoder", "other"):
        (tmp_path / name).mkdir()
    entry = bases.add(store, str(save_causal(tmp_path / "chat")), "tiny")
    assert (entry.tasks, entry.max_tokens) == (("chat",), 256)
    assert bases.add(store, str(tmp_path / "chat"), "tiny").digest == entry.digest  # again
    assert bases.add(store, str(save_encoder(tmp_path / "encoder"))).tasks == ("text_classification",)
    with pytest.raises(ModelError, match="is another base"):
        bases.add(store, str(save_causal(tmp_path / "other", seed=1)), "tiny")
    assert bases.fingerprint(store, "tiny") == entry.digest
    assert bases.prepare(store, "tiny", "chat").key == entry.key
    with pytest.raises(ModelError, match="cannot do task: text_classification"):
        bases.prepare(store, "tiny", "text_classification")
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        catalogue.remove(store, "tinny")
    catalogue.remove(store, "tiny")
    assert [entry.name for entry in catalogue.entries(store)] == ["encoder"]


@pytest.mark.heavy
def test_a_gguf_file_and_the_directory_made_from_it_are_the_same_base(store: Workspace) -> None:
    """The real file: the same name, weights, configuration and tokenizer, so that its copy in the store is the same."""
    directory = smollm2()
    found = bases.prepare(store, str(directory.parent / assets.SMOLLM2_GGUF), "chat")
    assert found == bases.prepare(store, str(directory), "chat")
    assert found.name == "smollm2-135m-instruct"
