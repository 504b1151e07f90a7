"""docs/api.md: its code runs, and its tables are complete."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from pathlib import Path

import pytest

from ray_jobs.storage import Workspace
from serving.http.openai_types import CreateFineTuningJob
from tests.repository import ROOT
from tests.serving.api_harness import BASE, KEY, add_base, api_server, rows

PAGE = ROOT / "docs" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_examples_run_from_top_to_bottom(store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) >= 7
    add_base(store)
    (tmp_path / "rows.jsonl").write_bytes(rows(40))
    monkeypatch.chdir(tmp_path)
    output, stop = io.StringIO(), threading.Event()
    with api_server(store) as server:
        for name, value in (("KITAE_URL", f"{server.url}/v1"), ("KITAE_KEY", KEY), ("KITAE_BASE", BASE)):
            monkeypatch.setenv(name, value)

        def work() -> None:
            while not stop.wait(0.1):
                server.run_launched()

        runner = threading.Thread(target=work)
        runner.start()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile("\n".join(BLOCKS), str(PAGE), "exec"), {"__name__": "docs"})
        finally:
            stop.set()
            runner.join()
    said = output.getvalue()
    assert "2 not JSON" in said  # the second invalid line, by its number
    assert "succeeded ft:tiny-chat:default:support:" in said
    assert "invalid_request metadata.k ['metadata.k', 'model', 'training_file']" in said
    assert re.search(r"^\d+ 6 \{'rank': 8", said, flags=re.MULTILINE)  # the dry run


def test_the_table_of_extra_fields_is_complete() -> None:
    openai = {"model", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations", "method"}
    own = set(CreateFineTuningJob.model_fields) - openai - {"hyperparameters"}
    table = TEXT.partition("| field |")[2].partition("\n\n")[0]
    assert own <= set(re.findall(r"`([a-z_]+)`", table))


def test_the_table_of_errors_has_every_code() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (PAGE.parent.parent / "serving").rglob("*.py")]
    codes = {code for source in sources for code in re.findall(r'code="([a-z_]+)"', source)}
    rare = {"unsupported_file", "empty_file", "upload_not_pending", "wrong_team", "not_deletable", "permission_denied"}
    assert len(codes) > 15
    missing = {code for code in codes - rare if f"`{code}`" not in TEXT}
    assert not missing
