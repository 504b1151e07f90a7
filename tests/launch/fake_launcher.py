"""A launcher that starts no process: a test sets the state of its runners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.errors import MachineError
from ray_jobs.launch.launcher import Needs, Runner


@dataclass
class FakeLauncher:
    """Keeps every launched runner, at first `pending`."""

    known: dict[str, Runner] = field(default_factory=dict)
    arguments: dict[str, list[str]] = field(default_factory=dict)
    needs: dict[str, Needs] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    too_large: MachineError | None = None
    """Raised by `check`."""
    answers: bool = True

    def check(self, needs: Needs) -> None:
        self._must_answer()
        if self.too_large is not None:
            raise self.too_large

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        self._must_answer()
        if runner_id not in self.known:
            self.known[runner_id] = Runner("pending")
            self.arguments[runner_id] = arguments
            self.needs[runner_id] = needs

    def stop(self, runner_id: str) -> None:
        self._must_answer()
        self.stopped.append(runner_id)
        if runner_id in self.known:
            self.known[runner_id] = Runner("ended", "stopped")

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        self._must_answer()
        return {runner_id: runner for runner_id, runner in self.known.items() if runner_id.startswith(prefix)}

    def become(self, runner_id: str, state: str, message: str = "", **facts: Any) -> None:
        """Set the state of a runner."""
        self.known[runner_id] = Runner(state, message, **facts)  # type: ignore[arg-type]  # a test gives a valid state

    def _must_answer(self) -> None:
        if not self.answers:
            raise MachineError("the launcher does not answer")
