"""A team keeps no more files, bytes and open jobs than its limits allow, and is refused with the reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import SpecError
from ray_jobs.storage import Workspace
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.files.stored_files import FINE_TUNE, FileRecord, Files
from serving.files.uploads import Uploads
from serving.fine_tuning import records
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.settings import EndpointSettings
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import BASE, NoTokens, add_base, rows
from tests.serving.api_replica import TEAM, developer

ROWS = rows(12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS)
    return file


def files_with(store: Workspace, **limits: Any) -> Files:
    return Files(store, NoTokens(store), TeamQuotas(**limits))


def put(files: Files, path: Path, team: str = TEAM) -> FileRecord:
    return files.create(team, "key", path, filename="rows.jsonl", purpose=FINE_TUNE)


def refused(code: str, call: Any, *arguments: Any, **named: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments, **named)
    assert (caught.value.status, caught.value.code) == (429, code)
    assert caught.value.headers == {"x-should-retry": "false"}
    return caught.value


def test_files_and_bytes_have_limits_by_team(store: Workspace, path: Path) -> None:
    files = files_with(store, files=2, teams={"large": {"files": 3}, "small": {"file_bytes": len(ROWS)}})
    first = put(files, path)
    put(files, path)
    assert f"team {TEAM} has 2 files, and may have 2" in refused("files_exceeded", put, files, path).message
    files.delete(TEAM, first.id)
    put(files, path)
    for _ in range(3):
        put(files, path, "large")
    refused("files_exceeded", put, files, path, "large")
    put(files, path, "small")
    assert f"its limit of {len(ROWS)}" in refused("file_bytes_exceeded", put, files, path, "small").message
    assert len(list(store.list("files/small/"))) == 1, "a refused file leaves nothing"


def test_files_that_arrive_together_do_not_exceed_the_limit(store: Workspace, path: Path) -> None:
    files = files_with(store, files=3)

    def attempt(_: int) -> bool:
        try:
            put(files, path)
        except ApiError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        stored = sum(pool.map(attempt, range(6)))
    assert len(list(store.list(f"teams/{TEAM}/files"))) == len(list(store.list("files/blue/"))) == stored <= 3


def test_an_upload_counts_from_its_first_part(store: Workspace, path: Path) -> None:
    files = files_with(store, files=2, file_bytes=2 * len(ROWS))
    uploads = Uploads(store, files)
    body = openai_types.CreateUpload(bytes=len(ROWS), filename="a.jsonl", mime_type="text/plain", purpose=FINE_TUNE)
    begun = uploads.create(TEAM, "key", body, None)
    uploads.add_part(TEAM, begun.id, path)
    put(files, path)
    refused("files_exceeded", put, files, path)
    large = body.model_copy(update={"bytes": 3 * len(ROWS)})
    refused(
        "file_bytes_exceeded",
        Uploads(store, files_with(store, file_bytes=2 * len(ROWS))).create,
        TEAM,
        "k",
        large,
        None,
    )
    uploads.cancel(TEAM, begun.id)
    put(files, path)


def test_the_uploads_begun_in_an_hour_have_a_limit(store: Workspace) -> None:
    uploads = Uploads(store, files_with(store, files=2))
    body = openai_types.CreateUpload(bytes=9, filename="a.jsonl", mime_type="text/plain", purpose=FINE_TUNE)
    for _ in range(2):
        uploads.create(TEAM, "key", body, None)
    refused("files_exceeded", uploads.create, TEAM, "key", body, None)
    uploads.sweep(store.now_s() + 90_000)
    assert list(store.list(f"teams/{TEAM}/uploads")) == []
    uploads.create(TEAM, "key", body, None)


def test_the_open_jobs_of_a_team_have_a_limit_over_all_its_keys(store: Workspace, path: Path) -> None:
    add_base(store)
    launcher = FakeLauncher()
    clock_s = [store.now_s()]
    tuning = FineTuningService(store, files_with(store, open_jobs=2), launcher, now=lambda: clock_s[0])
    body = openai_types.CreateFineTuningJob(model=BASE, training_file=put(tuning.files, path).id)

    def create(key_id: str, most: int | None = None) -> str:
        return tuning.create(body, replace(developer(most), key_id=key_id), key=None, retried=False).id

    first = create("one")
    create("two")
    assert f"team {TEAM} has 2 open jobs, which is its limit" in refused("open_jobs_exceeded", create, "three").message
    refused("open_jobs_exceeded", create, "four", 1)
    tuning.cancel(TEAM, first)
    clock_s[0] += 5
    tuning.reconcile()  # its runner is stopped
    create("four", 1)  # the refusal took none of the key's slots
    refused("open_jobs_exceeded", create, "one")
    assert len(records.all_open(store)) == 2


@pytest.mark.parametrize(
    "text",
    ['{"files": 0}', '{"fils": 3}', '{"teams": {"blue": {"fils": 3}}}', '{"teams": {"blue": {"files": 0}}}', "["],
)
def test_an_invalid_setting_is_refused_with_what_it_may_be(text: str) -> None:
    environment = {"KITAE_AUTH": "off", "KITAE_TEAM_LIMITS": text}
    with pytest.raises(SpecError, match="JSON object with any of files, file_bytes, open_jobs"):
        EndpointSettings.from_env(environment)


def test_the_setting_has_defaults_and_teams() -> None:
    environment = {"KITAE_AUTH": "off", "KITAE_TEAM_LIMITS": '{"files": 5, "teams": {"blue": {"open_jobs": 7}}}'}
    quotas = EndpointSettings.from_env(environment).team_quotas
    assert (quotas.of("blue").files, quotas.of("blue").open_jobs) == (5, 7)
    assert (quotas.of("red").files, quotas.of("red").open_jobs) == (5, 1000)
