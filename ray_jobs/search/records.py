"""Stored records of a search: its problem, the values of each trial and the result of each trial segment.

A trial's values are written before it starts, and a segment's result and checkpoint before Ray Tune learns of them. So
each attempt gives these records back to Tune, and nothing that they hold runs again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, RootModel

from ray_jobs import jobs
from ray_jobs.errors import JobError, ObjectNotFound
from ray_jobs.sharing.segments import Params, Result, TrialSegment
from ray_jobs.spec import JobSpec, Range, SearchSection
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents


class Problem(BaseModel):
    """A search with the values that the job file leaves open; written once."""

    model_config = ConfigDict(frozen=True)

    spec: JobSpec
    space: dict[str, Range | tuple[Any, ...]]
    rows: int
    """Training rows."""
    labels_a_row: dict[str, float] = {}
    """Supervised labels of a validation row, by base model, where the tokenizers of several bases give different
    numbers: a loss a label would favour the base with the shorter tokens, so trials are compared by the loss a row.
    Empty: one number for all."""
    warm: tuple[Params, ...] = ()
    """Values to try first: the best of earlier searches."""
    begun_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    def comparable(self, result: Result) -> Result:
        """A segment's result with its loss as the search compares it."""
        base = result.run.params.get("base_model", self.spec.base_model)
        if result.loss is None or base not in self.labels_a_row:
            return result
        return result.model_copy(update={"loss": result.loss * self.labels_a_row[base]})

    @property
    def lower_is_better(self) -> bool:
        return self.search.judge == "loss"

    @property
    def search(self) -> SearchSection:
        assert self.spec.search is not None
        return self.spec.search


EVERY_TRIAL = "every trial has run"
"""Why sampling ends, where nothing ended it early."""


class SamplingEnd(BaseModel):
    """The end of sampling: only the results named here are compared."""

    model_config = ConfigDict(frozen=True)

    reason: str
    results: tuple[str, ...]


class Unsaved:
    """`Tuner` pickles its parts so that `Tuner.restore` finds them. Each attempt builds them anew from the records, so
    that no pickle is ever read and no state of a process is written."""

    def __getstate__(self) -> dict[str, object]:
        return {}

    def save_to_dir(self, *_: object, **__: object) -> None:
        """Write no state of a sampler."""


class _Values(RootModel[Params]):
    """The values of a trial."""


class SearchRecords:
    """Reads and writes the records of one search."""

    def __init__(self, store: Workspace, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self._problems = Documents(f"{prefix}/", Problem, "a search")
        self._ends = Documents(f"{prefix}/", SamplingEnd, "the end of a search")
        self._points = Documents(f"{prefix}/points/", _Values, "the values of a trial")
        self._segments = Documents(f"{prefix}/segments/", TrialSegment, "a trial segment")
        self._results = Documents(f"{prefix}/results/", Result, "the result of a trial")

    def begin(self, problem: Problem) -> Problem:
        """Write the problem, or read the one written before."""
        self._problems.get_or_create(self.store, "problem", problem)
        return self.problem()  # as every later start reads it: decisions depend on the order of the space's fields

    def problem(self) -> Problem:
        """Raises ObjectNotFound before `begin`, CorruptObject if it cannot be read."""
        found = self._problems.read(self.store, "problem")
        if found is None:
            raise ObjectNotFound(f"no search has begun at {self.prefix}")
        return found

    def point(self, trial: int, params: Params) -> Params:
        """Write a trial's values once. Returns those that were written first."""
        return self._points.get_or_create(self.store, f"{trial:04d}", _Values(dict(params))).root

    def points(self, results: Mapping[str, Result]) -> dict[int, Params]:
        """Values of the trials that began, by number. `results`: those of this search."""
        # A search of an earlier version wrote no points.
        begun = {r.run.trial: r.run.params for r in results.values() if r.run.rung == 0 and not r.run.again}
        points = self._points.read_all(self.store).items()
        return dict(sorted((begun | {int(name): values.root for name, values in points}).items()))

    def segment(self, name: str) -> TrialSegment | None:
        """A segment as an earlier attempt began it. None: none did."""
        return self._segments.read(self.store, name)

    def begin_segment(self, run: TrialSegment) -> None:
        """Record a segment before it trains. Checkpoints that another one left under its name are deleted."""
        if self.segment(run.name) != run:
            self.store.delete_tree(self.checkpoints(run))
            self.store.put_json(self._segments.key(run.name), run.model_dump(mode="json"))

    def results(self) -> dict[str, Result]:
        """Results by segment name, in the order in which they were written."""
        found = sorted(self._results.read_all(self.store).values(), key=lambda result: result.ended_at)
        return {result.run.name: result for result in found}

    def result(self, name: str) -> Result | None:
        """The result of one segment. None: it has none yet."""
        return self._results.read(self.store, name)

    def add(self, result: Result) -> Result:
        """Write a result once. Returns the one that was written first."""
        timed = result.model_copy(update={"ended_at": self.store.now_s()})
        return self._results.get_or_create(self.store, result.run.name, timed)

    def stop(self, reason: str, results: Mapping[str, Result]) -> SamplingEnd:
        """Record the end of sampling, once."""
        end = SamplingEnd(reason=reason, results=tuple(sorted(results)))
        return self._ends.get_or_create(self.store, "stop", end)

    def stopped(self) -> SamplingEnd | None:
        return self._ends.read(self.store, "stop")

    def spent(self) -> dict[str, float]:
        """Hours so far: `wall` and `worker`."""
        return self._read("spent") or {"wall": 0.0, "worker": 0.0}

    def spend(self, spent: dict[str, float], running: Iterable[TrialSegment]) -> None:
        """Write the hours so far, and the segments that run now."""
        self.store.put_json(f"{self.prefix}/spent.json", spent)
        self.store.put_json(f"{self.prefix}/running.json", [run.model_dump(mode="json") for run in running])

    def running(self) -> list[TrialSegment] | None:
        """The segments that ran when the hours were last written. None: they never were."""
        document = self._read("running")
        return None if document is None else [TrialSegment.model_validate(run) for run in document]

    def _read(self, name: str) -> Any:
        with contextlib.suppress(ObjectNotFound):
            return self.store.get_json(f"{self.prefix}/{name}.json")
        return None

    def checkpoints(self, run: TrialSegment) -> str:
        """Prefix of a segment's checkpoints."""
        return f"{self.prefix}/trials/{run.name}"


def newest_search(store: Workspace, job_id: str) -> SearchRecords:
    """The newest search of a job. Raises JobError for an unknown job and for one without a search."""
    jobs.load(store, job_id)
    found = searches(store, job_id)
    if not found:
        raise JobError(f"job {job_id} has no search yet; `search:` in its job file adds one")
    return found[-1]


def searches(store: Workspace, job_id: str) -> list[SearchRecords]:
    """The searches of a job, the newest last; one for each dataset or base that it was resumed with."""
    prefix = f"jobs/{job_id}/search/"
    begun = [SearchRecords(store, prefix + name) for name in store.list_dirs(prefix)]
    return sorted(begun, key=lambda records: records.problem().begun_at)
