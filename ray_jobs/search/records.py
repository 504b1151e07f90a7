"""Stored records of a search: its problem, the values of each trial and the result of each trial segment.

A trial's values are written before it starts, and a segment's result and checkpoint before Ray Tune learns of them. So
each attempt gives these records back to Tune, and nothing that they hold runs again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.spec import JobSpec, Range, SearchSection
from ray_jobs.storage import Store

SegmentStatus = Literal["ok", "not_finite", "out_of_memory", "timed_out", "lost", "failed"]
Params = dict[str, Any]


class Problem(BaseModel):
    """A search with the values that the job file leaves open; written once."""

    model_config = ConfigDict(frozen=True)

    spec: JobSpec
    space: dict[str, Range | tuple[Any, ...]]
    rows: int
    """Training rows."""
    warm: tuple[Params, ...] = ()
    """Values to try first: the best of earlier searches."""
    begun_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def lower_is_better(self) -> bool:
        return self.search.judge == "loss"

    @property
    def search(self) -> SearchSection:
        assert self.spec.search is not None
        return self.spec.search


class TrialSegment(BaseModel):
    """A trial segment: a trial's training from before the decay of its last rung to its next rung."""

    model_config = ConfigDict(frozen=True)

    trial: int
    rung: int
    params: Params
    until: int
    """Last optimizer step."""
    source: str | None = None
    """Segment whose checkpoint before the decay it resumes from. None: the base model."""
    again: bool = False
    """A finalist's second training, from the base with another seed."""

    @property
    def name(self) -> str:
        return f"{self.trial:04d}-{'again' if self.again else self.rung}"


class Result(BaseModel):
    """Result of a trial segment."""

    model_config = ConfigDict(frozen=True)

    run: TrialSegment
    status: SegmentStatus
    loss: float | None = None
    """Loss on the held-out rows. None: not measured."""
    accuracy: float | None = None
    steps: int = 0
    """Steps trained in this segment, including the decay."""
    tokens: int = 0
    seconds: float = 0.0
    """Time of training; of a shared process, its share."""
    trunk: str | None = None
    """Key of the checkpoint before the decay, from which the next segment resumes."""
    checkpoint: str | None = None
    """Key of the measured checkpoint."""
    stored_bytes: int = 0
    """Size of its checkpoints."""
    losses: tuple[float, ...] = ()
    """Training loss of every step from the base model on."""
    error: str | None = None
    shared: bool = False
    """Whether it shared a base model with other trials."""
    start_s: float = 0.0
    """Time from its submission to its first step."""
    ended_at: float = 0.0
    """When it was written, Unix seconds. No decision depends on it."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def measured(self, metric: str) -> float | None:
        """A metric by its name in the job file. None: not measured."""
        return {"loss": self.loss, "tokens_per_s": self.tokens_per_s}.get(metric, self.accuracy)

    def value(self, metric: str) -> float:
        """The metric as a value to minimise; infinite for a failed segment."""
        measured = self.measured(metric)
        if self.status != "ok" or self.loss is None or measured is None:
            return float("inf")
        return measured if metric == "loss" else -measured


class SamplingEnd(BaseModel):
    """The end of sampling, because a budget is spent: only the results named here are compared."""

    model_config = ConfigDict(frozen=True)

    reason: str
    results: tuple[str, ...]


class SearchRecords:
    """Reads and writes the records of one search."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix

    def begin(self, problem: Problem) -> Problem:
        """Write the problem, or read the one written before."""
        with contextlib.suppress(ConflictError):
            self.store.put_json(f"{self.prefix}/problem.json", problem.model_dump(mode="json"), if_absent=True)
        return self.problem()  # as every later start reads it: decisions depend on the order of the space's fields

    def problem(self) -> Problem:
        """Raises ObjectNotFound before `begin`."""
        return Problem.model_validate(self.store.get_json(f"{self.prefix}/problem.json"))

    def point(self, trial: int, params: Params) -> Params:
        """Write a trial's values once. Returns those that were written first."""
        key = f"{self.prefix}/points/{trial:04d}.json"
        try:
            self.store.put_json(key, params, if_absent=True)
        except ConflictError:
            params = self.store.get_json(key)
        return params

    def points(self) -> dict[int, Params]:
        """Values of the trials that began, by number."""
        found: dict[int, Params] = {int(name): values for name, values in self._read("points").items()}
        for result in self.results().values():  # a search of an earlier version wrote no points
            if result.run.rung == 0 and not result.run.again:
                found.setdefault(result.run.trial, result.run.params)
        return dict(sorted(found.items()))

    def results(self) -> dict[str, Result]:
        """Results by segment name, in the order in which they were written."""
        found = [Result.model_validate(document) for document in self._read("results").values()]
        return {result.run.name: result for result in sorted(found, key=lambda result: result.ended_at)}

    def result(self, name: str) -> Result | None:
        """The result of one segment. None: it has none yet."""
        try:
            return Result.model_validate(self.store.get_json(f"{self.prefix}/results/{name}.json"))
        except ObjectNotFound:
            return None

    def _read(self, kind: str) -> dict[str, Any]:
        return self.store.documents(f"{self.prefix}/{kind}")

    def add(self, result: Result) -> Result:
        """Write a result once. Returns the one that was written first."""
        key = f"{self.prefix}/results/{result.run.name}.json"
        result = result.model_copy(update={"ended_at": time.time()})
        try:
            self.store.put_json(key, result.model_dump(mode="json"), if_absent=True)
        except ConflictError:
            return Result.model_validate(self.store.get_json(key))
        return result

    def stop(self, reason: str, results: dict[str, Result]) -> SamplingEnd:
        """Record the end of sampling, once."""
        stop = SamplingEnd(reason=reason, results=tuple(sorted(results)))
        with contextlib.suppress(ConflictError):
            self.store.put_json(f"{self.prefix}/stop.json", stop.model_dump(mode="json"), if_absent=True)
        return self.stopped() or stop

    def stopped(self) -> SamplingEnd | None:
        try:
            return SamplingEnd.model_validate(self.store.get_json(f"{self.prefix}/stop.json"))
        except ObjectNotFound:
            return None

    def spent(self) -> dict[str, float]:
        """Hours so far: `wall` and `worker`."""
        try:
            document: dict[str, float] = self.store.get_json(f"{self.prefix}/spent.json")
        except ObjectNotFound:
            return {"wall": 0.0, "worker": 0.0}
        return document

    def spend(self, spent: dict[str, float], running: Iterable[TrialSegment]) -> None:
        """Write the hours so far, and the segments that run now."""
        self.store.put_json(f"{self.prefix}/spent.json", spent)
        self.store.put_json(f"{self.prefix}/running.json", [run.model_dump(mode="json") for run in running])

    def running(self) -> tuple[TrialSegment, ...]:
        """The segments that ran when the hours were last written. Raises ObjectNotFound before that."""
        document = self.store.get_json(f"{self.prefix}/running.json")
        return tuple(TrialSegment.model_validate(run) for run in document)

    def checkpoints(self, run: TrialSegment) -> str:
        """Prefix of a segment's checkpoints."""
        return f"{self.prefix}/trials/{run.name}"


def searches(store: Store, job_id: str) -> list[SearchRecords]:
    """The searches of a job, the newest last; one for each dataset or base that it was resumed with."""
    prefix = f"jobs/{job_id}/search/"
    begun = [SearchRecords(store, prefix + name) for name in store.list_dirs(prefix)]
    return sorted(begun, key=lambda records: records.problem().begun_at)
