"""One API process without HTTP, on a store and a launcher that crash it, and the caller that uses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Workspace
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import Caller
from serving.files.stored_files import Files
from serving.files.uploads import Uploads
from serving.fine_tuning.service import FineTuningService
from serving.http.errors import ApiError
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_harness import NoTokens
from tests.serving.crash_injector import CrashingLauncher, CrashPoint, crashing_store

TEAM = DEFAULT_TEAM


def developer(max_jobs: int | None = None) -> Caller:
    """Return the caller; `max_jobs`: the limit of the key's concurrent jobs."""
    return Caller("key", TEAM, Limits(concurrent_jobs=max_jobs), admin=False)


class SingleRunnerLauncher(FakeLauncher):
    """Asserts that a job has no second runner, except one that resumes it after a pause."""

    def launch(self, runner_id: str, arguments: list[str], environment: Any, needs: Any) -> None:
        job, _, number = runner_id.rpartition("-")
        last = self.known.get(f"{job}-{int(number) - 1}")
        if runner_id not in self.known and "--paused-at" not in arguments:
            assert last is None or last.state == "ended", f"{runner_id} is launched beside the previous one: {last}"
        super().launch(runner_id, arguments, environment, needs)


class ApiReplica:
    """One API process: what `serving.app` wires, without HTTP, which crashes at its crash point."""

    def __init__(self, store: Workspace, launcher: FakeLauncher, now: Callable[[], float], crash: CrashPoint) -> None:
        self.crash = crash
        self.store = crashing_store(store, crash)
        self.files = Files(self.store, NoTokens(self.store))
        self.uploads = Uploads(self.store, self.files)
        self.tuning = FineTuningService(
            self.store,
            self.files,
            CrashingLauncher(launcher, crash),
            now=now,
            parallel_jobs=1,  # makes the order of requests deterministic
        )

    def delete_file(self, identifier: str, retried: bool) -> None:
        """Delete a file as the route does."""
        if retried and self.files.find(TEAM, identifier) is None:
            return
        self.files.get(TEAM, identifier)
        in_use = partial(self.tuning.open_jobs_using, TEAM, identifier)
        if needed_by := in_use() or self.files.delete_unless(TEAM, identifier, in_use):
            raise ApiError(409, f"{identifier} is read by {needed_by}", code="file_in_use")
