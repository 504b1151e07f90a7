"""What the store keeps of evals and their runs.

    teams/{team}/evals/{eval}.json                 the eval
    teams/{team}/eval-runs/{eval}/{run}.json       the run: status, lease, counts; written after its rows
    open-evals/{team}/{run}.json                   marker of a run that has not ended; written before the run
    evals/{team}/{eval}/{run}/rows.jsonl           the run's rows, frozen at its creation
    evals/{team}/{eval}/{run}/items/{chunk}.json   output items of `CHUNK_ITEMS` rows, each object written once

A chunk counts once the run's `chunks_done` includes it, so that its counts are added once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel

from ray_jobs.errors import ObjectNotFound
from ray_jobs.graders.schema import Grader
from ray_jobs.spec import Name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.unreadable import parse_document
from serving.http.errors import ApiError
from serving.http.eval_types import (
    CriterionResult,
    Eval,
    EvalError,
    EvalRun,
    OutputItem,
    ResultCounts,
    RunModelUsage,
    RunStatus,
    SourceRow,
)
from serving.http.ids import created_at_s, is_id

EVAL, RUN, ITEM = "eval", "evalrun", "outputitem"
CHUNK_ITEMS = 16
MAX_ROWS_BYTES = 16 * 2**20
_OPEN: tuple[RunStatus, ...] = ("queued", "in_progress")
_ORPHAN_AFTER_S = 3600.0
"""Age at which what has no record is left from an interrupted create or delete."""


class StoredEval(BaseModel, frozen=True):
    """One eval of one team."""

    id: str
    team: Name
    created_at: int
    name: str
    metadata: dict[str, str] | None = None
    data_source_config: dict[str, Any]
    """As requested."""
    testing_criteria: list[Grader]

    def to_openai(self) -> Eval:
        return Eval(
            id=self.id,
            created_at=self.created_at,
            name=self.name,
            metadata=self.metadata,
            data_source_config=_with_schema(self.data_source_config),
            testing_criteria=self.testing_criteria,
        )


class StoredRun(BaseModel, frozen=True):
    """One run of an eval."""

    id: str
    team: Name
    eval_id: str
    key_id: str
    """The key that started it, which is checked again while it runs."""
    admin: bool
    """Whether that key has access to everything."""
    created_at: int
    name: str
    metadata: dict[str, str] | None = None
    model: str = ""
    data_source: dict[str, Any]
    """As requested, without rows."""
    rows: int
    status: RunStatus = "queued"
    error: EvalError | None = None
    chunks_done: int = 0
    counts: ResultCounts = ResultCounts()
    criteria: list[CriterionResult]
    usage: list[RunModelUsage] = []
    first_error: EvalError | None = None
    """The error of the first item that has one."""
    holder: str | None = None
    """The process that works on it."""
    lease_until_s: float = 0.0
    """Unix seconds at which another process may take it."""

    @property
    def is_open(self) -> bool:
        return self.status in _OPEN

    @property
    def chunks(self) -> int:
        return -(-self.rows // CHUNK_ITEMS)

    @property
    def folder(self) -> str:
        return f"evals/{self.team}/{self.eval_id}/{self.id}"

    def to_openai(self) -> EvalRun:
        return EvalRun(
            id=self.id,
            eval_id=self.eval_id,
            created_at=self.created_at,
            name=self.name,
            metadata=self.metadata,
            status=self.status,
            model=self.model,
            data_source=self.data_source,
            error=self.error,
            result_counts=self.counts,
            per_testing_criteria_results=self.criteria,
            per_model_usage=self.usage,
            report_url=f"/v1/evals/{self.eval_id}/runs/{self.id}",
        )


class OpenRun(BaseModel, frozen=True):
    """Marks a run that has not ended."""

    eval_id: str


class Chunk(BaseModel, frozen=True):
    """Output items of consecutive rows, and what they used."""

    items: list[OutputItem]
    usage: list[RunModelUsage] = []


OPEN_RUNS = Documents("open-evals/", OpenRun, "a marker of an open run of an eval")


def evals(team: str) -> Documents[StoredEval]:
    return Documents(f"teams/{team}/evals/", StoredEval, "an eval")


def runs(team: str, eval_id: str) -> Documents[StoredRun]:
    return Documents(f"teams/{team}/eval-runs/{eval_id}/", StoredRun, "a run of an eval")


def chunks(run: StoredRun) -> Documents[Chunk]:
    return Documents(f"{run.folder}/items/", Chunk, "output items of an eval")


def chunk_name(number: int) -> str:
    return f"{number:06d}"


def item_prefix(run_id: str) -> str:
    return f"{ITEM}-{run_id.removeprefix(f'{RUN}-')}-"


def load_eval(store: Store, team: str, eval_id: str) -> StoredEval:
    """Return a team's eval. Raises ApiError 404, or CorruptObject if it cannot be read."""
    found = evals(team).read(store, eval_id) if is_id(EVAL, eval_id) else None
    if found is None:
        raise no_eval(eval_id)
    return found


def find_run(store: Store, team: str, eval_id: str, run_id: str) -> StoredRun | None:
    """Return a run; None if it does not exist or cannot be read, which is reported."""
    known = is_id(EVAL, eval_id) and is_id(RUN, run_id)
    return runs(team, eval_id).find(store, run_id) if known else None


def load_run(store: Store, team: str, eval_id: str, run_id: str) -> StoredRun:
    """Return a run of a team's eval. Raises ApiError 404, or CorruptObject if it cannot be read."""
    load_eval(store, team, eval_id)
    found = runs(team, eval_id).read(store, run_id) if is_id(RUN, run_id) else None
    if found is None:
        raise no_run(eval_id, run_id)
    return found


def no_eval(eval_id: str) -> ApiError:
    return ApiError(404, f"the eval {eval_id!r} does not exist", code="eval_not_found")


def no_run(eval_id: str, run_id: str) -> ApiError:
    return ApiError(404, f"the run {run_id!r} of {eval_id!r} does not exist", code="eval_run_not_found")


def create_run(store: Store, run: StoredRun, rows: list[SourceRow]) -> None:
    """Store a new run: its rows, its marker, then its record."""
    lines = [json.dumps(row.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) for row in rows]
    store.put(f"{run.folder}/rows.jsonl", "\n".join(lines).encode())
    OPEN_RUNS.create(store, f"{run.team}/{run.id}", OpenRun(eval_id=run.eval_id))
    runs(run.team, run.eval_id).create(store, run.id, run)


def read_rows(store: Store, run: StoredRun) -> list[SourceRow]:
    content = store.get(f"{run.folder}/rows.jsonl", max_bytes=2 * MAX_ROWS_BYTES)
    return [SourceRow.model_validate(parse_document(line)) for line in content.split(b"\n")]


def update_run(store: Store, run: StoredRun, change: Callable[[StoredRun], StoredRun]) -> StoredRun | None:
    """Change a run by a conditional write; `change` may run several times. None: it is deleted."""
    try:
        return runs(run.team, run.eval_id).change(store, run.id, change)
    except ObjectNotFound:
        return None


def put_chunk(store: Store, run: StoredRun, number: int, chunk: Chunk) -> Chunk:
    """Store the output items of a chunk. Returns the stored ones if another process was first."""
    return chunks(run).get_or_create(store, chunk_name(number), chunk)


def with_chunk(run: StoredRun, chunk: Chunk) -> StoredRun:
    """Return the run with the counts of its next chunk. Pure."""
    statuses = [item.status for item in chunk.items]
    counts = ResultCounts(
        total=run.counts.total + len(statuses),
        passed=run.counts.passed + statuses.count("pass"),
        failed=run.counts.failed + statuses.count("fail"),
        errored=run.counts.errored + statuses.count("error"),
    )
    criteria = list(run.criteria)
    for item in chunk.items:
        for place, result in enumerate(item.results):
            old = criteria[place]
            change = {"passed": old.passed + 1} if result.passed else {"failed": old.failed + 1}
            criteria[place] = old.model_copy(update=change)
    errors = (
        error for item in chunk.items for error in (item.sample.error, *(each.error for each in item.results)) if error
    )
    return run.model_copy(
        update={
            "chunks_done": run.chunks_done + 1,
            "counts": counts,
            "criteria": criteria,
            "usage": added([*run.usage, *chunk.usage]),
            "first_error": run.first_error or next(errors, None),
        }
    )


def added(usage: Iterable[RunModelUsage]) -> list[RunModelUsage]:
    """One entry a model, sorted. Pure."""
    sums: dict[str, RunModelUsage] = {}
    for each in usage:
        known = sums.get(each.model_name, RunModelUsage(model_name=each.model_name)).model_dump()
        new = each.model_dump()
        sums[each.model_name] = RunModelUsage.model_validate(
            {name: value if name == "model_name" else value + new[name] for name, value in known.items()}
        )
    return [sums[name] for name in sorted(sums)]


def delete_run(store: Store, team: str, eval_id: str, run_id: str) -> None:
    """Delete a run: first its record, so that no run is found without its items. Its runner then stops."""
    store.delete(runs(team, eval_id).key(run_id))
    store.delete(OPEN_RUNS.key(f"{team}/{run_id}"))
    store.delete_tree(f"evals/{team}/{eval_id}/{run_id}")


def delete_eval(store: Store, team: str, eval_id: str) -> None:
    """Delete an eval with its runs: first its record."""
    store.delete(evals(team).key(eval_id))
    for run_id in runs(team, eval_id).names(store):
        delete_run(store, team, eval_id, run_id)
    store.delete_tree(f"evals/{team}/{eval_id}")


def sweep(store: Store, now_s: float) -> int:
    """Delete what interrupted creates and deletes of evals and runs have left; returns the number of runs."""
    done = 0
    for team in store.list_dirs("evals/"):
        known = set(evals(team).names(store))
        eval_ids = {*store.list_dirs(f"evals/{team}/"), *store.list_dirs(f"teams/{team}/eval-runs/")}
        for eval_id in sorted(each for each in eval_ids if is_id(EVAL, each)):
            kept = set(runs(team, eval_id).names(store)) if eval_id in known else set()
            present = {*store.list_dirs(f"evals/{team}/{eval_id}/"), *runs(team, eval_id).names(store)}
            for run_id in sorted(each for each in present - kept if is_id(RUN, each)):
                if created_at_s(run_id) < now_s - _ORPHAN_AFTER_S:
                    delete_run(store, team, eval_id, run_id)
                    done += 1
    return done


def _with_schema(config: dict[str, Any]) -> dict[str, Any]:
    """Return a data source's configuration as a response has it: the schema of a whole row."""
    item, sample = config.get("item_schema", {"type": "object"}), {"type": "object"}
    has_sample = config["type"] != "custom" or config["include_sample_schema"]
    properties = {"item": item} | ({"sample": sample} if has_sample else {})
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    metadata = {"metadata": config["metadata"]} if config["type"] != "custom" else {}
    return {"type": config["type"], "schema": schema} | metadata
