"""The evals and runs of every team: creates, reads, changes and deletes them. Working on runs is the runner's.

Any number of processes may run it on one store; each step is a conditional write or idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import ObjectNotFound
from ray_jobs.graders.schema import (
    Grader,
    MultiGrader,
    TextSimilarityGrader,
    template_findings,
    unsupported,
)
from ray_jobs.storage import Store
from serving.access.auth import Caller
from serving.access.in_process import key_problem
from serving.evals import records, source
from serving.evals.question import check_question
from serving.evals.records import EVAL, OPEN_RUNS, RUN, StoredEval, StoredRun
from serving.evals.source import StoredAnswers
from serving.files.stored_files import Files
from serving.http.errors import ApiError, bad_request, invalid_fields
from serving.http.eval_types import (
    CompletionsRunSource,
    CreateEval,
    CreateEvalRun,
    CriterionResult,
    CustomSource,
    Eval,
    EvalRun,
    ItemStatus,
    JsonlRunSource,
    OutputItem,
    ResponsesRunSource,
    RunStatus,
    UpdateEval,
)
from serving.http.ids import Order, Page, created_at_s, listed, listed_by_last_write, new_id, page

MAX_EVALS = 1000
"""Evals of a team."""
MAX_RUNS = 1000
"""Runs of an eval."""
MAX_OPEN_RUNS = 50
"""Runs of a team that have not ended."""
_READS_AT_ONCE = 8


@dataclass(frozen=True)
class EvalService:
    """The evals of one store. Thread-safe."""

    store: Store
    files: Files
    stored_answers: StoredAnswers
    wake: Callable[[], None] = lambda: None
    """Called when a run is due."""

    # ---- evals -------------------------------------------------------------------------------------------------------

    def create(self, body: CreateEval, caller: Caller) -> Eval:
        """Create an eval. Raises ApiError for an invalid one, with all findings."""
        config = body.data_source_config
        names, has_sample = None, True
        if isinstance(config, CustomSource):
            source.check_item_schema(config.item_schema, "data_source_config.item_schema")
            names, has_sample = source.item_names(config.item_schema), config.include_sample_schema
        check_graders(body.testing_criteria, item_names=names, has_sample=has_sample)
        folder = records.evals(caller.team)
        _require_room(self.store, folder.prefix, MAX_EVALS, f"team {caller.team} has", "evals", "evals_exceeded")
        identifier = new_id(EVAL, now_s=self.store.now_s())
        record = StoredEval(
            id=identifier,
            team=caller.team,
            created_at=int(created_at_s(identifier)),
            name=body.name or identifier,
            metadata=body.metadata,
            data_source_config=config.model_dump(mode="json"),
            testing_criteria=body.testing_criteria,
        )
        folder.create(self.store, identifier, record)
        return record.to_openai()

    def get(self, team: str, eval_id: str) -> Eval:
        return records.load_eval(self.store, team, eval_id).to_openai()

    def page(
        self, team: str, *, limit: int, after: str | None, order: Order, by_last_write: bool = False
    ) -> Page[Eval]:
        def read(identifier: str) -> Eval | None:
            found = records.evals(team).find(self.store, identifier)
            return None if found is None else found.to_openai()

        folder = records.evals(team).prefix
        if by_last_write:
            return page(listed_by_last_write(self.store, folder, EVAL, after=after, order=order), read, limit=limit)
        return page(listed(self.store, folder, EVAL, self.store.now_s(), after=after, order=order), read, limit=limit)

    def update(self, team: str, eval_id: str, body: UpdateEval) -> Eval:
        """Change the fields that the request has."""
        records.load_eval(self.store, team, eval_id)
        changes = body.model_dump(exclude_unset=True)
        if changes.get("name", "") is None:
            del changes["name"]

        try:
            changed = records.evals(team).change(self.store, eval_id, lambda old: old.model_copy(update=changes))
        except ObjectNotFound:
            raise records.no_eval(eval_id) from None
        return changed.to_openai()

    def delete(self, team: str, eval_id: str) -> None:
        """Delete an eval with its runs, those that have not ended too."""
        records.load_eval(self.store, team, eval_id)
        records.delete_eval(self.store, team, eval_id)

    # ---- runs --------------------------------------------------------------------------------------------------------

    def create_run(self, eval_id: str, body: CreateEvalRun, caller: Caller) -> EvalRun:
        """Create a run. Raises ApiError for an invalid one."""
        found = records.load_eval(self.store, caller.team, eval_id)
        if (problem := key_problem(self.store, caller)) is not None:
            raise ApiError(403, problem, code="insufficient_scope")
        data = body.data_source
        if not isinstance(data, JsonlRunSource):
            check_question(data)
        runs = records.runs(caller.team, eval_id)
        _require_room(self.store, runs.prefix, MAX_RUNS, f"{eval_id} has", "runs", "eval_runs_exceeded")
        marked = f"{OPEN_RUNS.prefix}{caller.team}/"
        _require_room(self.store, marked, MAX_OPEN_RUNS, f"team {caller.team} has", "open runs", "open_runs_exceeded")
        schema = found.data_source_config.get("item_schema", {})
        rows = source.read_rows(caller.team, data.source, schema, self.files, self.stored_answers)
        identifier = new_id(RUN, now_s=self.store.now_s())
        record = StoredRun(
            id=identifier,
            team=caller.team,
            eval_id=eval_id,
            key_id=caller.key_id,
            admin=caller.admin,
            created_at=int(created_at_s(identifier)),
            name=body.name or identifier,
            metadata=body.metadata,
            model="" if isinstance(data, JsonlRunSource) else data.model or "",
            data_source=_without_rows(data),
            rows=len(rows),
            criteria=[CriterionResult(testing_criteria=grader.name) for grader in found.testing_criteria],
        )
        records.create_run(self.store, record, rows)
        self.wake()
        return record.to_openai()

    def get_run(self, team: str, eval_id: str, run_id: str) -> EvalRun:
        return records.load_run(self.store, team, eval_id, run_id).to_openai()

    def page_of_runs(
        self, team: str, eval_id: str, *, limit: int, after: str | None, order: Order, status: RunStatus | None
    ) -> Page[EvalRun]:
        records.load_eval(self.store, team, eval_id)

        def read(identifier: str) -> EvalRun | None:
            found = records.find_run(self.store, team, eval_id, identifier)
            return found.to_openai() if found is not None and status in (None, found.status) else None

        folder = records.runs(team, eval_id).prefix
        return page(listed(self.store, folder, RUN, self.store.now_s(), after=after, order=order), read, limit=limit)

    def cancel_run(self, team: str, eval_id: str, run_id: str, *, retried: bool) -> EvalRun:
        """Cancel a run; its requests to models end within seconds. What is counted stays."""
        run = records.load_run(self.store, team, eval_id, run_id)

        def change(old: StoredRun) -> StoredRun:
            if old.is_open:
                return old.model_copy(update={"status": "canceled", "holder": None})
            if retried and old.status == "canceled":
                return old
            message = f"{run_id} is {old.status} and cannot be canceled"
            raise bad_request(message, code="invalid_state")

        ended = records.update_run(self.store, run, change)
        if ended is None:
            raise records.no_run(eval_id, run_id)
        self.store.delete(OPEN_RUNS.key(f"{team}/{run_id}"))
        return ended.to_openai()

    def delete_run(self, team: str, eval_id: str, run_id: str) -> None:
        """Delete a run with its output items, also one that has not ended."""
        records.load_run(self.store, team, eval_id, run_id)
        records.delete_run(self.store, team, eval_id, run_id)

    # ---- output items ------------------------------------------------------------------------------------------------

    def items(
        self,
        team: str,
        eval_id: str,
        run_id: str,
        *,
        limit: int,
        after: str | None,
        order: Order,
        status: ItemStatus | None,
    ) -> Page[OutputItem]:
        run = records.load_run(self.store, team, eval_id, run_id)
        start = None if after is None else _number_of(run, after)
        found = list[OutputItem]()
        for item in self._items(run, start, order):
            if status in (None, item.status):
                found.append(item)
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    def item(self, team: str, eval_id: str, run_id: str, item_id: str) -> OutputItem:
        run = records.load_run(self.store, team, eval_id, run_id)
        number = _number_in(run, item_id)
        if number is not None and number < run.chunks_done * records.CHUNK_ITEMS:
            chunk = self._chunk(run, number // records.CHUNK_ITEMS)
            if chunk is not None and number % records.CHUNK_ITEMS < len(chunk.items):
                return chunk.items[number % records.CHUNK_ITEMS]
        raise ApiError(404, f"the output item {item_id!r} of {run_id!r} does not exist", code="output_item_not_found")

    def _items(self, run: StoredRun, after: int | None, order: Order) -> Iterator[OutputItem]:
        """Yield the counted items that follow `after`, reading a few chunks at a time."""
        numbers = list(range(run.chunks_done))
        if after is not None:
            place = after // records.CHUNK_ITEMS
            numbers = numbers[place:] if order == "asc" else numbers[: place + 1]
        if order == "desc":
            numbers.reverse()
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for start in range(0, len(numbers), _READS_AT_ONCE):
                some = numbers[start : start + _READS_AT_ONCE]
                for chunk in pool.map(lambda number: self._chunk(run, number), some):
                    items = [] if chunk is None else chunk.items
                    for item in items if order == "asc" else reversed(items):
                        place = item.datasource_item_id
                        if after is None or (place > after if order == "asc" else place < after):
                            yield item

    def _chunk(self, run: StoredRun, number: int) -> records.Chunk | None:
        return records.chunks(run).find(self.store, records.chunk_name(number))


def check_graders(graders: list[Grader], *, item_names: list[str] | None, has_sample: bool) -> None:
    """Raise ApiError 400 with all findings of an eval's graders."""
    places = [(f"testing_criteria[{place}]", grader) for place, grader in enumerate(graders)]
    if refused := [finding for where, grader in places for finding in unsupported(grader, where)]:
        error = invalid_fields(refused)
        error.code = "unsupported"
        raise error
    findings: list[tuple[str | None, str]] = []
    for where, grader in places:
        findings += template_findings(grader, where, item_names=item_names, has_sample=has_sample)
        if isinstance(grader, TextSimilarityGrader | MultiGrader) and grader.pass_threshold is None:
            findings.append((f"{where}.pass_threshold", f"required for {grader.type} in an eval"))
    if findings:
        raise invalid_fields(findings)


def _require_room(store: Store, prefix: str, most: int, who: str, what: str, code: str) -> None:
    """Raise ApiError 429 if a folder has its maximum of objects. Concurrent creates may each find the last room."""
    for count, _ in enumerate(store.list(prefix), 1):
        if count >= most:
            message = f"{who} {count} {what}, and may have {most}: delete some, or wait until some have ended"
            raise ApiError(429, message, code=code, headers={"x-should-retry": "false"})


def _without_rows(data: JsonlRunSource | CompletionsRunSource | ResponsesRunSource) -> dict[str, Any]:
    found: dict[str, Any] = data.model_dump(mode="json", exclude_none=True)
    if "content" in found["source"]:
        found["source"]["content"] = []
    return found


def _number_in(run: StoredRun, item_id: str) -> int | None:
    """Return the number of a row in an output item's id. None: it is no id of this run."""
    text = item_id.removeprefix(records.item_prefix(run.id))
    return int(text) if text != item_id and len(text) == 6 and text.isascii() and text.isdecimal() else None


def _number_of(run: StoredRun, after: str) -> int:
    number = _number_in(run, after)
    if number is None:
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
    return number
