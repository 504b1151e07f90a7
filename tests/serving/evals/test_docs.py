"""docs/evals.md: its code runs, and its limits are those of the code."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from ray_jobs.graders import formula, schema, templates, text_metrics
from ray_jobs.storage import Workspace
from serving.evals import item_grading, records, service, source
from serving.http.eval_types import MAX_CONTENT_ITEMS
from tests.builders import make_spec
from tests.repository import ROOT
from tests.serving.api_harness import BASE, KEY, add_base, api_server, register, write_deployment

TEXT = (ROOT / "docs" / "evals.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_examples_run_from_top_to_bottom(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) == 2
    add_base(store)
    for name in ("greeter", "capitals"):
        register(store, make_spec(name, base_model=BASE), name)
        write_deployment(store, name)
    output = io.StringIO()
    with api_server(store) as server:
        given = {"KITAE_URL": f"{server.url}/v1", "KITAE_KEY": KEY, "KITAE_BASE": "greeter", "KITAE_TUNED": "capitals"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with contextlib.redirect_stdout(output):
            exec(compile("\n".join(BLOCKS), "docs/evals.md", "exec"), {"__name__": "docs"})
    said = output.getvalue()
    assert "greeter completed 0 of 2" in said
    assert "capitals completed 0 of 2" in said
    assert "日本の首都は？ 日本の首都は？" in said  # the fake model echoes
    assert "0.8 False" in said


def test_the_limits_are_those_of_the_code() -> None:
    values = (
        f"{service.MAX_EVALS:,}, {service.MAX_RUNS:,}, {service.MAX_OPEN_RUNS}",
        f"{MAX_CONTENT_ITEMS:,} with {records.MAX_ROWS_BYTES // 2**20} MiB",
        f"each at most {source.MAX_ROW_BYTES // 1024} KiB",
        f"| {schema.MAX_GRADERS} |",
        f"65,536, {templates.MAX_TEXT:,}, {text_metrics.MAX_CHARACTERS:,} characters",
        f"{source.MAX_SCHEMA_BYTES // 1024} KiB; {formula.MAX_LENGTH:,} characters and {formula.MAX_DEPTH} levels",
        f"{item_grading.MAX_ITEM_BYTES // 1024} KiB; a longer one",
    )
    assert not [value for value in values if value not in TEXT]
