"""The type of a stage, and the context it runs in. Knows no particular stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ray_jobs.jobs import Job, StageRecord
from ray_jobs.pipeline.outputs import Flow, O
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Store
from ray_jobs.training import ray_workers
from ray_jobs.training.ray_workers import MetricValues

T = TypeVar("T")
Show = Callable[..., None]
"""`Progress.update` of the stage's display."""


@dataclass(frozen=True)
class StageContext:
    """A stage's attempt and progress display."""

    job: Job
    show: Show

    @property
    def store(self) -> Store:
        return self.job.store

    def report(self, done: float, total: float, unit: str, metrics: MetricValues) -> None:
        """Show progress that comes from a worker."""
        self.show(done, total, unit, **metrics)

    def on_worker(self, function: Callable[..., T], *arguments: object, compute: ComputeSection) -> T:
        """Call `function(*arguments, store, report)` on a worker. Raises as `ray_workers.call_on_worker`."""
        ray_workers.connect()
        return ray_workers.call_on_worker(
            function, *arguments, self.store, compute=compute, report=self.report, check=self.job.check
        )


@dataclass(frozen=True)
class Stage(Generic[O]):
    """One step of a job. A stage whose record exists under the hash of its inputs is not run again."""

    name: str
    inputs: Callable[[Flow], dict[str, Any]] | None
    """The document that its record is found by; pure. None: the stage has no record and always runs."""
    run: Callable[[Flow, StageContext], O]
    output: type[O]
    base_model: str = ""
    """The base it works on. Empty: the stage exists once a job."""
    off: str | None = None
    """Why the job does not run it. None: it does."""
    gate: Callable[[Flow], None] = lambda _: None
    """Raises GateError where the job must end after this stage; called for a recorded output, too."""
    description: str = ""
    """Its work in a few words, for the plan."""

    def read(self, record: StageRecord) -> O | None:
        """The output that a record keeps. None: a version that this one cannot read wrote it."""
        try:
            return TypeAdapter(self.output).validate_python(record.outputs, extra="ignore")
        except ValidationError:
            return None

    def document(self, output: O) -> dict[str, Any]:
        """The output as JSON for its record."""
        document: dict[str, Any] = TypeAdapter(self.output).dump_python(output, mode="json")
        return document
