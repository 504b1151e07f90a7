"""Runners as Ray jobs: the launcher behind Ray's job API.

Owns how a runner is submitted, stopped, listed and followed, and where a Ray cluster's dashboard is. Does not know what
a job does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ray_jobs.errors import MachineError
from ray_jobs.launch.launcher import UNKNOWN, Needs, Runner, RunnerState

logger = logging.getLogger(__name__)

_RAY_STATES: Mapping[str, RunnerState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "ended",
    "FAILED": "ended",
    "STOPPED": "ended",
}
_TIMEOUT_S = 30.0
_KEPT_S = 86_400.0
"""Seconds before the newest time of a list at which a job must have ended to be deleted; no clock of this machine."""
_DELETED_AT_ONCE = 20
_FOLLOW_AGAIN_S = 1.0
_RAY_LINE = re.compile(r"\d{4}-\d\d-\d\d \S+\s+(INFO|WARNING) \S+\.py:\d+ -- |Running entrypoint for job ")
"""Ray's own lines in the log of a job."""
_RUNNER_CPUS = 0.01
"""CPUs reserved for a runner; its workers reserve their own."""


class RayLauncher:
    """The job API of a Ray cluster (`ray job submit`)."""

    def __init__(self, dashboard_url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = dashboard_url
        self._http = httpx.Client(base_url=dashboard_url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)

    def check(self, needs: Needs) -> None:
        """Always passes: the runner itself compares its needs with its Ray cluster."""

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        request = {
            "entrypoint": shlex.join(["python", "-m", "ray_jobs", *arguments]),
            "submission_id": runner_id,
            "runtime_env": {"env_vars": dict(environment)},
            "entrypoint_num_cpus": _RUNNER_CPUS,
        }
        response = self._request("POST", "/api/jobs/", request)
        if response.status_code != 200 and "already exists" not in response.text:
            raise self._refused(response)

    def stop(self, runner_id: str) -> None:
        response = self._request("POST", f"/api/jobs/{runner_id}/stop")
        if response.status_code not in (200, 404) and "does not exist" not in response.text:
            raise self._refused(response)

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        response = self._request("GET", "/api/jobs/")
        if response.status_code != 200:
            raise self._refused(response)
        jobs = response.json()
        self._delete_ended([job for job in jobs if (job.get("submission_id") or "").startswith(prefix)])
        return {
            job["submission_id"]: Runner(
                _RAY_STATES.get(job["status"], "unknown"),
                job.get("message") or "",
                exit_code=job.get("driver_exit_code"),
            )
            for job in jobs
            if (job.get("submission_id") or "").startswith(prefix)
        }

    def follow(self, runner_id: str, write: Callable[[str], object]) -> Runner:
        """Write the lines of the runner's log as they come, without Ray's own, and return the runner once it has ended.

        A connection that is lost, by a proxy or a sleeping machine, is opened again.
        """
        written = 0
        while True:
            runner = self.runners(runner_id).get(runner_id, UNKNOWN)
            written = asyncio.run(self._tail(runner_id, written, write))
            if runner.state not in ("pending", "running"):
                return runner
            time.sleep(_FOLLOW_AGAIN_S)

    async def _tail(self, runner_id: str, written: int, write: Callable[[str], object]) -> int:
        """Write the log from a line on, to its end or that of the connection; returns the number of lines by then."""
        from ray.job_submission import JobSubmissionClient  # takes a second

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it reports the end of each log
        line, number = "", 0
        try:
            async for text in JobSubmissionClient(self._url).tail_job_logs(runner_id):
                *lines, line = (line + text).split("\n")
                for each in lines:
                    number += 1
                    if number > written and not _RAY_LINE.match(each):
                        write(each)
            number += bool(line)
            if line and number > written:
                write(line)
        except Exception as error:  # noqa: BLE001  # aiohttp, requests and Ray raise their own; the caller reads the state
            logger.info("the log of %s is read again: %s", runner_id, error)
        return max(number, written)

    def _delete_ended(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Delete jobs that ended more than `_KEPT_S` ago, some at a time: Ray keeps and lists them forever."""
        newest_ms = max((job.get("end_time") or job.get("start_time") or 0 for job in jobs), default=0)
        ended = [job for job in jobs if _RAY_STATES.get(job["status"]) == "ended" and job.get("end_time")]
        old = [job["submission_id"] for job in ended if newest_ms - job["end_time"] > 1000 * _KEPT_S]
        for runner_id in old[:_DELETED_AT_ONCE]:
            response = self._request("DELETE", f"/api/jobs/{runner_id}")
            if response.status_code not in (200, 404):
                logger.warning("%s", self._refused(response))

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise MachineError(
                f"Ray does not answer at {self._url} ({type(error).__name__}): start it, or set RAY_DASHBOARD_ADDRESS"
            ) from error

    def _refused(self, response: httpx.Response) -> MachineError:
        last = response.text.strip().splitlines()[-1:] or [""]
        return MachineError(f"Ray at {self._url} answered {response.status_code}: {last[0][:300]}")


@dataclass(frozen=True)
class RayAddress:
    """URL and token of a Ray cluster's dashboard."""

    dashboard_url: str
    """For example http://127.0.0.1:8265."""
    token: str | None
    """None: it requires no token."""

    @classmethod
    def from_env(cls) -> RayAddress:
        """Read RAY_DASHBOARD_ADDRESS (or RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if it is a URL) and RAY_AUTH_*."""
        names = ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
        address = next(filter(None, map(os.environ.get, names)), "")
        return cls(
            dashboard_url=address if address.startswith("http") else "http://127.0.0.1:8265",
            token=_token() if os.environ.get("RAY_AUTH_MODE", "token") == "token" else None,
        )


def _token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
