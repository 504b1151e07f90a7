"""An endpoint with a base, in this process, that the commands of a test import into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ray_jobs.__main__ import cli
from ray_jobs.storage import Workspace
from tests.importing.openai_stub import KEY
from tests.serving import api_harness
from tests.serving.api_harness import ApiServer, add_base, api_server

Kitae = Callable[..., Result]


@pytest.fixture
def target(store: Workspace) -> Iterator[ApiServer]:
    add_base(store)
    with api_server(store) as server:
        yield server


@pytest.fixture
def kitae(tmp_path: Path, target: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    """Run `kitae import openai` in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KITAE_STORE", "s3://not-used/x")
    monkeypatch.setenv("KITAE_ENDPOINT_URL", target.url)
    monkeypatch.setenv("KITAE_API_KEY", api_harness.KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(*arguments: str, fails: bool = False) -> Result:
        done = CliRunner().invoke(cli, ["import", "openai", *arguments], prog_name="kitae")
        assert (done.exception is not None) == fails, done.output + repr(done.exception)
        return done

    return run
