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
from ray_jobs.errors import ConflictError, JobError, ObjectNotFound
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
    warm: tuple[Params, ...] = ()
    """Values to try first: the best of earlier searches."""
    begun_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

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

    def _read(self, name: str) -> Any:
        """A document; None if there is none."""
        with contextlib.suppress(ObjectNotFound):
            return self.store.get_json(f"{self.prefix}/{name}.json")
        return None

    def _write_once(self, name: str, document: Any) -> Any:
        """Write a document unless there is one. Returns the one that was written first."""
        with contextlib.suppress(ConflictError):
            self.store.put_json(f"{self.prefix}/{name}.json", document, if_absent=True)
            return document
        return self._read(name)

    def begin(self, problem: Problem) -> Problem:
        """Write the problem, or read the one written before."""
        self._write_once("problem", problem.model_dump(mode="json"))
        return self.problem()  # as every later start reads it: decisions depend on the order of the space's fields

    def problem(self) -> Problem:
        """Raises ObjectNotFound before `begin`, CorruptObject if it cannot be read."""
        found = Documents(f"{self.prefix}/", Problem, "a search").read(self.store, "problem")
        if found is None:
            raise ObjectNotFound(f"no search has begun at {self.prefix}")
        return found

    def point(self, trial: int, params: Params) -> Params:
        """Write a trial's values once. Returns those that were written first."""
        return dict(self._write_once(f"points/{trial:04d}", params))

    def points(self, results: Mapping[str, Result]) -> dict[int, Params]:
        """Values of the trials that began, by number. `results`: those of this search."""
        points = Documents(f"{self.prefix}/points/", _Values, "the values of a trial").read_all(self.store)
        # A search of an earlier version wrote no points.
        begun = {r.run.trial: r.run.params for r in results.values() if r.run.rung == 0 and not r.run.again}
        return dict(sorted((begun | {int(name): values.root for name, values in points.items()}).items()))

    def segment(self, name: str) -> TrialSegment | None:
        """A segment as an earlier attempt began it. None: none did."""
        document = self._read(f"segments/{name}")
        return document and TrialSegment.model_validate(document)

    def begin_segment(self, run: TrialSegment) -> None:
        """Record a segment before it trains. Checkpoints that another one left under its name are deleted."""
        if self.segment(run.name) != run:
            self.store.delete_tree(self.checkpoints(run))
            self.store.put_json(f"{self.prefix}/segments/{run.name}.json", run.model_dump(mode="json"))

    def results(self) -> dict[str, Result]:
        """Results by segment name, in the order in which they were written."""
        found = Documents(f"{self.prefix}/results/", Result, "the result of a trial").read_all(self.store).values()
        return {result.run.name: result for result in sorted(found, key=lambda result: result.ended_at)}

    def result(self, name: str) -> Result | None:
        """The result of one segment. None: it has none yet."""
        document = self._read(f"results/{name}")
        return document and Result.model_validate(document)

    def add(self, result: Result) -> Result:
        """Write a result once. Returns the one that was written first."""
        document = result.model_copy(update={"ended_at": self.store.now_s()}).model_dump(mode="json")
        return Result.model_validate(self._write_once(f"results/{result.run.name}", document))

    def stop(self, reason: str, results: Mapping[str, Result]) -> SamplingEnd:
        """Record the end of sampling, once."""
        document = SamplingEnd(reason=reason, results=tuple(sorted(results))).model_dump(mode="json")
        return SamplingEnd.model_validate(self._write_once("stop", document))

    def stopped(self) -> SamplingEnd | None:
        document = self._read("stop")
        return document and SamplingEnd.model_validate(document)

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
