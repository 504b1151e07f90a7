"""The plan of an import: each file checked by the rules of an upload, each job and eval mapped.

`bring` does what a plan says. Owns the decision for each object and its words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray_jobs.data.file_check import check_file, task_of
from ray_jobs.errors import DataError
from ray_jobs.importing.client import Document
from ray_jobs.importing.completions import Asked, asked_of_completion
from ray_jobs.importing.exports import Export, SourceFile
from ray_jobs.importing.mapping import MappedEval, MappedJob, mapped_eval, mapped_job, proposed_base
from ray_jobs.importing.target import TargetFacts
from ray_jobs.importing.workdir import ImportState, Workdir

COMPLETIONS = "completions"
"""Id of the file of rows that the stored completions become."""
_LARGEST_BYTES = 512 * 2**20
_AT_LINE = re.compile(r"(?:line|row) (\d+): ", re.DOTALL)

Action = Literal["bring", "is there", "refused", "kept"]
"""`kept`: it stays in the working directory."""


@dataclass(frozen=True)
class PlannedFile:
    """A file of rows, and whether it comes over."""

    id: str
    filename: str
    bytes: int
    action: Action
    rows: int | None = None
    findings: tuple[str, ...] = ()
    """What Kitae refuses, a row each."""
    dropped: int = 0
    """Refused rows that are left out of what is sent."""
    path: str = ""
    """File that is sent."""
    sha256: str = ""
    target_id: str | None = None


@dataclass(frozen=True)
class PlannedJob:
    """A job, and whether it can be trained again."""

    mapped: MappedJob
    proposed: str | None
    """Base that is proposed. None: the target has none for fine-tuning, or is not known."""
    chosen: str | None
    """Base on which it is to be trained in this run. None: not in this run."""
    target_id: str | None = None


@dataclass(frozen=True)
class PlannedEval:
    """An eval, and whether it comes over."""

    mapped: MappedEval
    action: Action
    target_id: str | None = None


@dataclass
class ImportPlan:
    """Everything that an import would do."""

    files: list[PlannedFile] = field(default_factory=list)
    completions: PlannedFile | None = None
    completion_count: int = 0
    left_out: list[str] = field(default_factory=list)
    """Completions that become no row, with the reason."""
    jobs: list[PlannedJob] = field(default_factory=list)
    evals: list[PlannedEval] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sent_files(self) -> list[PlannedFile]:
        return [*self.files, *([self.completions] if self.completions is not None else [])]

    @property
    def open_count(self) -> int:
        """Objects that are still to be brought."""
        jobs = [job for job in self.jobs if job.chosen is not None and job.target_id is None]
        actions = [*(file.action for file in self.sent_files), *(each.action for each in self.evals)]
        return actions.count("bring") + len(jobs)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build(
    export: Export,
    facts: TargetFacts,
    state: ImportState,
    workdir: Workdir,
    *,
    retrain: str | None = None,
    only_jobs: Collection[str] = (),
    drop_refused: bool = False,
) -> ImportPlan:
    """ImportPlan an import. Raises DataError for a job that is not there or cannot be trained again."""
    plan = ImportPlan(bases=sorted(facts.bases), notes=list(facts.notes), gone=export.gone)
    plan.files = [_planned_file(each, facts, state, workdir, drop_refused) for each in export.files]
    _plan_completions(plan, export, facts, state, workdir)
    refused = {each.id: "Kitae refuses its rows" for each in plan.files if each.action == "refused"}
    refused |= dict.fromkeys(export.gone, "OpenAI has its name, not its content")
    there = {each.id for each in plan.files} | refused.keys()
    named = {str(job[name]) for job in export.jobs for name in ("training_file", "validation_file") if job.get(name)}
    refused |= dict.fromkeys(named - there, "it is not at OpenAI any more, nor in the export")
    mapped = [mapped_job(each, refused) for each in export.jobs]
    _check_choice(mapped, only_jobs)
    for each in mapped:
        wanted = each.id in only_jobs if only_jobs else each.status == "succeeded" and not each.problems
        chosen = retrain if retrain is not None and wanted else None
        target_id = state.jobs.get(f"{each.id} {chosen}") if chosen is not None else None
        plan.jobs.append(PlannedJob(each, proposed_base(each.model, facts.bases), chosen, target_id))
    for document in export.evals:
        found = mapped_eval(document)
        target_id = state.evals.get(found.id)
        action: Action = "is there" if target_id is not None else "bring" if facts.has_evals else "kept"
        plan.evals.append(PlannedEval(found, action, target_id))
    return plan


def _check_choice(mapped: list[MappedJob], only_jobs: Collection[str]) -> None:
    by_id = {each.id: each for each in mapped}
    problems = [f"--job {name}: there is no such job" for name in only_jobs if name not in by_id]
    for name in only_jobs:
        problems += [f"--job {name}: {problem}" for problem in (by_id[name].problems if name in by_id else ())]
    if problems:
        raise DataError("these jobs cannot be trained again", details=problems)


def _planned_file(
    file: SourceFile, facts: TargetFacts, state: ImportState, workdir: Workdir, drop_refused: bool
) -> PlannedFile:
    path, dropped = file.path, 0
    rows, findings = _check(path, file.filename)
    if findings and drop_refused and (smaller := _without(path, findings, workdir.rows / f"{file.id}.jsonl")):
        kept, more = _check(smaller, file.filename)
        if not more:
            path, rows, dropped = smaller, kept, len(findings)
    if findings and not dropped:
        return PlannedFile(file.id, file.filename, file.bytes, "refused", rows, tuple(findings))
    return _to_send(file.id, file.filename, path, rows, findings, dropped, facts, state)


def _to_send(
    identifier: str,
    filename: str,
    path: Path,
    rows: int | None,
    findings: list[str],
    dropped: int,
    facts: TargetFacts,
    state: ImportState,
) -> PlannedFile:
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        reason = f"it has {size:,} bytes; an upload may have {_LARGEST_BYTES:,}: split it into several files"
        return PlannedFile(identifier, filename, size, "refused", rows, (reason,))
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    uploaded = state.files.get(identifier)
    is_there = uploaded is not None and uploaded.sha256 == sha256 and facts.has_file(uploaded.target_id)
    return PlannedFile(
        identifier,
        filename,
        size,
        "is there" if is_there else "bring",
        rows,
        tuple(findings),
        dropped,
        str(path),
        sha256,
        uploaded.target_id if is_there and uploaded is not None else None,
    )


def _plan_completions(
    plan: ImportPlan, export: Export, facts: TargetFacts, state: ImportState, workdir: Workdir
) -> None:
    """Write the completions as rows, without those that Kitae refuses, and plan the file."""
    path = workdir.rows / "completions.jsonl"
    ids: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for completion in export.completions():
            plan.completion_count += 1
            asked = asked_of_completion(completion)
            if isinstance(asked, Asked) and not asked.whole:
                asked = "its answer was cut off"
            if isinstance(asked, str):
                plan.left_out.append(f"{completion['id']}: {asked}")
            else:
                file.write(json.dumps(asked.row, ensure_ascii=False) + "\n")
                ids.append(asked.id)
    if not ids:
        return
    _, findings = _check(path, path.name)
    reasons: dict[int, str] = {}
    for finding in findings:
        if at := _AT_LINE.match(finding):
            reasons.setdefault(int(at[1]), finding[at.end() :])
    if findings:
        plan.left_out += [f"{ids[line - 1]}: {reason}" for line, reason in sorted(reasons.items())]
        whole = path.with_name("completions-checked.jsonl")
        if _without(path, findings, whole) is None:
            return
        path = whole
    count, findings = _check(path, path.name)
    if findings:
        plan.completions = PlannedFile(COMPLETIONS, path.name, path.stat().st_size, "refused", count, tuple(findings))
        return
    plan.completions = _to_send(COMPLETIONS, "openai-completions.jsonl", path, count, [], 0, facts, state)


def _check(path: Path, filename: str) -> tuple[int | None, list[str]]:
    """(rows, what Kitae refuses)."""
    try:
        return check_file(path, filename, task_of(path)).rows, []
    except DataError as error:
        return None, list(error.details) or [error.message]


def _without(path: Path, findings: list[str], target: Path) -> Path | None:
    """A copy without the lines of the findings. None: a finding is about no line, or nothing would stay."""
    lines = {int(at[1]) for finding in findings if (at := _AT_LINE.match(finding))}
    if len([finding for finding in findings if _AT_LINE.match(finding)]) < len(findings):
        return None
    kept = 0
    # Lines end as the check of rows ends them; bytes that are not UTF-8 stay.
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with path.open(**options) as source, target.open("w", **options) as file:
        for number, line in enumerate(source, 1):
            if number not in lines and line.strip():
                file.write(line)
                kept += 1
    return target if kept else None


def criteria_of(mapped: MappedEval) -> list[str]:
    """`{name} ({type})` of each criterion."""
    criteria: list[Document] = mapped.request["testing_criteria"]
    return [f"{each.get('name') or 'unnamed'} ({each.get('type') or 'unknown'})" for each in criteria]
