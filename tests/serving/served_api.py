"""The endpoint in its own process, for tests that kill it.

    python tests/serving/served_api.py PORT FOLDER

The environment names the store, engines are fakes, and a runner is a file in FOLDER that the test starts and ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import uvicorn

from ray_jobs.launch.launcher import Needs, Runner
from ray_jobs.storage import Workspace
from serving.app import create_app
from serving.settings import EndpointSettings
from tests.serving.api_harness import KEY, UNPACED, NoTokens
from tests.serving.fake_backend import FakeBackend


class FolderLauncher:
    """A launcher whose runners outlive the process that launched them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, needs: Needs) -> None:
        pass

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".") as whole:
            Path(whole.name).write_text(json.dumps(arguments))
            with suppress(FileExistsError):
                os.link(whole.name, self.folder / f"{runner_id}.json")

    def stop(self, runner_id: str) -> None:
        (self.folder / f"{runner_id}.ended").touch()

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        names = [path.stem for path in self.folder.glob(f"{prefix}*.json")]
        ended = {path.stem for path in self.folder.glob(f"{prefix}*.ended")}
        return {name: Runner("ended" if name in ended else "running") for name in names}

    def arguments(self, runner_id: str) -> list[str]:
        found: list[str] = json.loads((self.folder / f"{runner_id}.json").read_text())
        return found


def main(port: int, folder: Path) -> None:
    store = Workspace.from_env(check=False)
    app = create_app(
        EndpointSettings(api_key=KEY, refusals_per_s=UNPACED),
        store,
        FakeBackend(),
        check_rows=NoTokens(store),
        launcher=FolderLauncher(folder),
    )
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
