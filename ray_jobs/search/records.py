"""What a search keeps: its problem, and what each stretch of each trial came to. Everything else follows from these.

A search is found again after any crash since nothing is decided that these records do not decide (see `decide`).
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.spec import JobSpec, Range
from ray_jobs.storage import Store

Status = Literal["ok", "not_finite", "out_of_memory", "timed_out", "lost", "failed"]
Params = dict[str, Any]


class Problem(BaseModel):
    """A search as it was begun: what the job file leaves open is settled here once."""

    model_config = ConfigDict(frozen=True)

    spec: JobSpec
    space: dict[str, Range | tuple[Any, ...]]
    rows: int
    """To train on."""
    warm: tuple[Params, ...] = ()
    """What is tried first: the best of earlier searches."""
    begun_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def lower_is_better(self) -> bool:
        assert self.spec.search is not None
        return self.spec.search.metric == "loss"


class Run(BaseModel):
    """A stretch of a trial: from its last rung's trunk to the next rung."""

    model_config = ConfigDict(frozen=True)

    trial: int
    rung: int
    params: Params
    until: int
    """The optimizer step it ends at."""
    source: str | None = None
    """The run whose trunk it goes on from; None: from the base."""
    again: bool = False
    """A finalist's second time, from the base and with another seed."""

    @property
    def name(self) -> str:
        return f"{self.trial:04d}-{'again' if self.again else self.rung}"


class Result(BaseModel):
    """What a run came to."""

    model_config = ConfigDict(frozen=True)

    run: Run
    status: Status
    loss: float | None = None
    """On held-out rows. None: it did not come so far."""
    accuracy: float | None = None
    steps: int = 0
    """Trained in this run, the decay included."""
    tokens: int = 0
    seconds: float = 0.0
    """Of training, its share of a process that trials share."""
    trunk: str | None = None
    """The checkpoint from which it can go on."""
    checkpoint: str | None = None
    """The one that was measured."""
    stored_bytes: int = 0
    """Of its checkpoints."""
    losses: tuple[float, ...] = ()
    """Training loss of every step since the base."""
    error: str | None = None
    shared: bool = False
    """Whether it shared a process's base with other trials."""
    start_s: float = 0.0
    """From its turn to its first step."""
    ended_at: float = 0.0
    """Seconds since 1970, when it was written down. Nothing is decided by it."""

    def value(self, metric: str) -> float:
        """The metric as something to minimise; infinite for a run that failed."""
        if self.status != "ok" or self.loss is None or self.accuracy is None:
            return float("inf")
        return self.loss if metric == "loss" else -self.accuracy


class Stop(BaseModel):
    """The budget's end: what had come in by then is all that is decided on."""

    model_config = ConfigDict(frozen=True)

    reason: str
    results: tuple[str, ...]


class SearchRecords:
    """A search's place in the store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix

    def begin(self, problem: Problem) -> Problem:
        """Settle the problem, or read how it was settled."""
        with contextlib.suppress(ConflictError):
            self.store.put_json(f"{self.prefix}/problem.json", problem.model_dump(mode="json"), if_absent=True)
        return self.problem()  # as every later start reads it: the order of the space's fields decides too

    def problem(self) -> Problem:
        """Raises ObjectNotFound before `begin`."""
        return Problem.model_validate(self.store.get_json(f"{self.prefix}/problem.json"))

    def results(self) -> dict[str, Result]:
        """By the run's name, in the order in which they came."""
        keys = [info.key for info in self.store.list(f"{self.prefix}/results")]
        found = [Result.model_validate(self.store.get_json(key)) for key in keys]
        return {result.run.name: result for result in sorted(found, key=lambda result: result.ended_at)}

    def add(self, result: Result) -> Result:
        """Write a result down, once: what was written first stands."""
        key = f"{self.prefix}/results/{result.run.name}.json"
        result = result.model_copy(update={"ended_at": time.time()})
        try:
            self.store.put_json(key, result.model_dump(mode="json"), if_absent=True)
        except ConflictError:
            return Result.model_validate(self.store.get_json(key))
        return result

    def stop(self, reason: str, results: dict[str, Result]) -> Stop:
        """End sampling here, once."""
        stop = Stop(reason=reason, results=tuple(sorted(results)))
        with contextlib.suppress(ConflictError):
            self.store.put_json(f"{self.prefix}/stop.json", stop.model_dump(mode="json"), if_absent=True)
        return self.stopped() or stop

    def stopped(self) -> Stop | None:
        try:
            return Stop.model_validate(self.store.get_json(f"{self.prefix}/stop.json"))
        except ObjectNotFound:
            return None

    def spent(self) -> dict[str, float]:
        """Hours so far: `wall` and `worker`."""
        try:
            document: dict[str, float] = self.store.get_json(f"{self.prefix}/spent.json")
        except ObjectNotFound:
            return {"wall": 0.0, "worker": 0.0}
        return document

    def spend(self, spent: dict[str, float]) -> None:
        self.store.put_json(f"{self.prefix}/spent.json", spent)

    def checkpoints(self, run: Run) -> str:
        """Where a run's checkpoints are."""
        return f"{self.prefix}/trials/{run.name}"
