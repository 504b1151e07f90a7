"""Does what a plan says: uploads files, creates evals and jobs at the target, and records each at once.

Every step can be repeated. What a killed run created without recording it is found again: a file by its name, size and
content, an eval or a job by its metadata, which names OpenAI's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray_jobs.errors import JobError, RemoteError
from ray_jobs.importing.client import ApiClient, Document
from ray_jobs.importing.mapping import EVAL_KEY, JOB_KEY, with_judge, with_targets
from ray_jobs.importing.plan import ImportPlan, PlannedFile, PlannedJob
from ray_jobs.importing.target import TargetFacts
from ray_jobs.importing.workdir import ImportState, UploadedFile, Workdir
from ray_jobs.jobs.progress import StageProgress

_UPLOADS = 3
"""Tries of an upload that is not answered."""


@dataclass
class Brought:
    """What one run did."""

    files: list[str] = field(default_factory=list)
    evals: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Objects that the target refused, with its words."""

    @property
    def count(self) -> int:
        return len(self.files) + len(self.evals) + len(self.jobs)


def bring(
    plan: ImportPlan,
    target: ApiClient,
    facts: TargetFacts,
    state: ImportState,
    workdir: Workdir,
    *,
    judge: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Brought:
    """Bring everything over that is not there. Raises RemoteError, JobError; then starting again resumes."""
    done = Brought()
    with StageProgress("upload") as progress:
        sizes = [each.bytes for each in plan.sent_files if each.action == "bring"]
        sent = 0
        for each in plan.sent_files:
            if each.action == "bring":
                _bring_file(each, target, facts, state, workdir, done, sleep)
                sent += each.bytes
                progress.update(sent, sum(sizes), "bytes")
    _bring_evals(plan, target, state, workdir, done, judge)
    _create_jobs(plan, target, state, workdir, done)
    return done


def _bring_file(
    file: PlannedFile,
    target: ApiClient,
    facts: TargetFacts,
    state: ImportState,
    workdir: Workdir,
    done: Brought,
    sleep: Callable[[float], None],
) -> None:
    try:
        target_id = _same_file(file, target, facts.files) or _upload(file, target, sleep)
    except RemoteError as error:
        if error.status not in (400, 413):
            raise
        done.refused.append(f"{file.id} ({file.filename}): {error.message}")
        done.refused += [f"{file.id} line {each.get('line')}: {each.get('reason')}" for each in error.findings]
        return
    facts.files.setdefault(target_id, {"id": target_id, "filename": file.filename, "bytes": file.bytes})
    state.files[file.id] = UploadedFile(target_id=target_id, sha256=file.sha256)
    workdir.save(state)
    done.files.append(f"{file.id} → {target_id}")


def _same_file(file: PlannedFile, target: ApiClient, there: dict[str, Document]) -> str | None:
    """The id of a file of the target with the same name and content."""
    for identifier, each in there.items():
        if (each.get("filename"), each.get("bytes")) == (file.filename, file.bytes):
            try:
                if target.digest(f"/files/{identifier}/content") == file.sha256:
                    return identifier
            except RemoteError as error:
                if error.status != 404:  # deleted meanwhile
                    raise
    return None


def _upload(file: PlannedFile, target: ApiClient, sleep: Callable[[float], None]) -> str:
    for tried in range(1, _UPLOADS + 1):
        try:
            with Path(file.path).open("rb") as content:
                return str(target.post_file("/files", file.filename, content, {"purpose": "fine-tune"})["id"])
        except RemoteError as error:
            if not error.unanswered or tried == _UPLOADS:
                raise
        sleep(float(tried))
        # The upload may have arrived.
        pages = target.pages("/files", {"purpose": "fine-tune", "limit": 100})
        there = {str(each["id"]): each for page in pages for each in page}
        if (found := _same_file(file, target, there)) is not None:
            return found
    raise AssertionError("unreachable")


def _bring_evals(
    plan: ImportPlan, target: ApiClient, state: ImportState, workdir: Workdir, done: Brought, judge: str | None
) -> None:
    wanted = [each for each in plan.evals if each.action == "bring"]
    if not wanted:
        return
    there = {
        str(pairs[EVAL_KEY]): str(each["id"])
        for page in target.pages("/evals", {"limit": 100})
        for each in page
        if isinstance(pairs := each.get("metadata"), dict) and EVAL_KEY in pairs
    }
    for each in wanted:
        found = there.get(each.mapped.id)
        try:
            found = found or str(target.post("/evals", with_judge(each.mapped, judge), repeats=False)["id"])
        except RemoteError as error:
            if error.status not in (400, 404, 413, 422):
                raise
            done.refused.append(f"{each.mapped.id} ({each.mapped.name}): {error.message}")
            continue
        state.evals[each.mapped.id] = found
        workdir.save(state)
        done.evals.append(f"{each.mapped.id} → {found}")


def _create_jobs(plan: ImportPlan, target: ApiClient, state: ImportState, workdir: Workdir, done: Brought) -> None:
    """Create the chosen jobs. Raises JobError with every one that the endpoint refuses, before any is created."""
    wanted = [each for each in plan.jobs if each.chosen is not None and each.target_id is None]
    uploaded = {identifier: each.target_id for identifier, each in state.files.items()}
    new: list[tuple[PlannedJob, Document]] = []
    problems: list[str] = []
    for each in wanted:
        assert each.chosen is not None
        files = [
            each.mapped.request[name] for name in ("training_file", "validation_file") if name in each.mapped.request
        ]
        if absent := [name for name in files if name not in uploaded]:
            problems.append(f"{each.mapped.id}: the target refused {', '.join(absent)}")
            continue
        request = with_targets(each.mapped, each.chosen, uploaded)
        if (found := _created_before(each, target)) is not None:
            _record(each, found, state, workdir, done)
            continue
        try:
            target.post("/fine_tuning/jobs", {**request, "dry_run": True})
        except RemoteError as error:
            if error.status is None or not 400 <= error.status < 500:
                raise
            problems.append(f"{each.mapped.id}: {error.message}")
        new.append((each, request))
    if problems:
        raise JobError(
            "no job is created, since the endpoint refuses some; choose the others by --job", details=problems
        )
    for each, request in new:
        marked = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
        created = target.post("/fine_tuning/jobs", request, key=f"import-openai-{marked}")
        _record(each, str(created["id"]), state, workdir, done)


def _created_before(job: PlannedJob, target: ApiClient) -> str | None:
    """The id of a job that an earlier run created on this base and did not record."""
    pages = target.pages("/fine_tuning/jobs", {"limit": 100, f"metadata[{JOB_KEY}]": job.mapped.id})
    found = (str(each["id"]) for page in pages for each in page if each.get("model") == job.chosen)
    return next(found, None)


def _record(job: PlannedJob, target_id: str, state: ImportState, workdir: Workdir, done: Brought) -> None:
    state.jobs[f"{job.mapped.id} {job.chosen}"] = target_id
    workdir.save(state)
    done.jobs.append(f"{job.mapped.id} → {target_id} on {job.chosen}")
