"""The launcher in another process, at a Unix socket (`sidecar`): the endpoint's side of it.

Owns the requests and the errors that come back. Does not know Kubernetes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from ray_jobs import errors
from ray_jobs.errors import MachineError
from ray_jobs.launch.launcher import Needs, Runner

_TIMEOUT_S = 40.0
"""Longer than the Kubernetes client's, so that its own reason is reported."""
_RUNNERS = TypeAdapter(dict[str, Runner])


class RemoteLauncher:
    """See the module."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        transport = httpx.HTTPTransport(uds=str(socket))
        self._http = httpx.Client(transport=transport, base_url="http://launcher", timeout=_TIMEOUT_S)

    def check(self, needs: Needs) -> None:
        self._post("/check", {"needs": asdict(needs)})

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        body = {"runner_id": runner_id, "arguments": arguments, "environment": dict(environment)}
        self._post("/launch", {**body, "needs": asdict(needs)})

    def stop(self, runner_id: str) -> None:
        self._post("/stop", {"runner_id": runner_id})

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        found = self._post("/runners", {"prefix": prefix, "fresh": fresh})
        return _RUNNERS.validate_python(found["runners"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = self._http.post(path, json=body)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MachineError(
                f"the launcher at {self._socket} does not answer ({type(error).__name__}): see the logs of the API "
                "pod's container `launcher`"
            ) from error
        if response.status_code == 200:
            found: dict[str, Any] = answer
            return found
        kind = getattr(errors, str(answer.get("error")), None)
        known = kind if isinstance(kind, type) and issubclass(kind, MachineError) else MachineError
        raise known(str(answer.get("message")), details=answer.get("details") or [])
