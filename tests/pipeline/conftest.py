"""The fixture that the tests of the pipeline share."""

from __future__ import annotations

import pytest

from ray_jobs.storage import Workspace
from tests.pipeline.builders import FakeStages, add_base, write_rows


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, store: Workspace) -> FakeStages:
    """Fake heavy stages, rows, and the bases `small` and `large` in the catalogue."""
    write_rows(store)
    add_base(store, "small")
    add_base(store, "large")
    fakes = FakeStages()
    fakes.install(monkeypatch)
    return fakes
