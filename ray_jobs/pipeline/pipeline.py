"""The whole flow, top to bottom: rows → dataset → base → encoded rows → training → evaluation → parity → registry →
endpoint.

Every stage is idempotent: its record is found by a hash of its inputs, and a stage that has one is not run again. So a
job that was killed goes on where it was, and running a finished job again does nothing. Stages do the work; this says
in which order and with what.

A little over 400 lines, so that the flow, what it comes to and what it would do are read together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import yaml

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, JobSuperseded, KitaeError, MachineError
from ray_jobs.evaluation.evaluate import EvaluateInputs, Evaluation, gate
from ray_jobs.evaluation.publish import alias_of
from ray_jobs.jobs import Job, Launched, checkpoint_request, sigterm
from ray_jobs.jobs.progress import stage_progress
from ray_jobs.models import bases
from ray_jobs.pipeline import stages as work
from ray_jobs.pipeline.stages import Outputs
from ray_jobs.search.space import describe
from ray_jobs.spec import JobSpec, SearchSection
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training.checkpoint import is_disk_full
from ray_jobs.training.trainer import TrainInputs

T = TypeVar("T")


@dataclass(frozen=True)
class StageTime:
    """What a stage took in this run."""

    name: str
    seconds: float
    skipped: bool
    """Its record was there already."""


@dataclass(frozen=True)
class JobResult:
    """What a job came to."""

    job_id: str
    model: str
    version: str
    base_name: str
    endpoint: str | None
    base: dict[str, float]
    tuned: dict[str, float]
    base_is: str
    tokens_per_s: float
    parity_mean_gap: float | None
    search: dict[str, Any] | None = None
    """The trial that won (`run`, `params`), how many `trials` there were, and the key of the `page` that shows them."""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    """Those that can be called, if the job file asks for it: `step`, `version` and the figures of each."""
    trained_tokens: int = 0
    """Over all trials of a search, too."""
    metrics_csv: str | None = None
    """Key of a file with the losses of every step."""
    stages: tuple[StageTime, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For the job's record."""
        return vars(self) | {"stages": [vars(stage) for stage in self.stages]}

    def as_text(self) -> str:
        """A table for people."""
        rows = [
            f"{name:<16} {_figure(self.base.get(name)):>12} {_figure(value):>12}" for name, value in self.tuned.items()
        ]
        steps = [str(checkpoint["step"]) for checkpoint in self.checkpoints]
        times = ", ".join(f"{s.name} {'skipped' if s.skipped else f'{s.seconds:.0f} s'}" for s in self.stages)
        lines = [
            f"{self.model}@{self.version}  (job {self.job_id})",
            "",
            f"{'held-out':<16} {self.base_is[:12] if self.base_is != 'the base model' else 'base':>12} {'tuned':>12}",
            *rows,
            "",
            f"training    {self.tokens_per_s:,.0f} tokens/s",
            *(
                []
                if self.parity_mean_gap is None
                else [f"parity      mean log-probability gap {self.parity_mean_gap:.2g}"]
            ),
            *([] if self.search is None else [f"search      {searched(self.search)}"]),
            *([] if not self.checkpoints else [f"checkpoints {', '.join(steps)}, as {self.model}@{alias_of('N')}"]),
            f"stages      {times}",
            f"endpoint    {self.endpoint or 'not deployed'}",
        ]
        return "\n".join(lines)


def searched(found: Mapping[str, Any]) -> str:
    """A search in a line."""
    params = found["params"].items()
    values = [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params]
    return f"{found['trials']} trials; the best has {', '.join(values)}"


@dataclass(frozen=True)
class TuneResult:
    """What a search came to."""

    job_id: str
    run: str
    """The run that won."""
    params: dict[str, Any]
    page: str
    """Key of the page that shows it."""


@dataclass(frozen=True)
class PlanReport:
    """What a run would do."""

    job_id: str
    spec: JobSpec
    stages: tuple[tuple[str, str], ...]
    """(stage, what will become of it)."""

    def as_text(self) -> str:
        """The resolved spec as YAML, then a line a stage."""
        document = yaml.safe_dump(self.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        lines = [f"  {name:<10} {what}" for name, what in self.stages]
        return f"{document}\njob {self.job_id}\n" + "\n".join(lines)


def run(store: Store, spec: JobSpec, *, launched: Launched | None = None) -> JobResult:
    """Run or go on with a job, to the end. Raises what went wrong, after writing it down in the job's record."""

    def work(job: Job) -> tuple[JobResult, dict[str, Any]]:
        result = _flow(_Stages(job), store, spec)
        job.event("info", f"registered {result.model}@{result.version}", result.tuned)
        return result, result.as_json()

    return _attempt(store, spec, work, launched)


def tune(store: Store, spec: JobSpec) -> TuneResult:
    """The job as far as its search goes, and no further; `run` goes on from there. Raises as `run`."""
    spec = spec if spec.search is not None else spec.model_copy(update={"search": SearchSection()})

    def work(job: Job) -> tuple[TuneResult, dict[str, Any]]:
        stages = _Stages(job)
        _, materials = _material(stages, store, spec)
        found = _search(stages, store, spec, materials)
        result = TuneResult(job.id, found["run"], found["params"], found["page"])
        return result, vars(result)

    return _attempt(store, spec, work)


def _attempt(
    store: Store,
    spec: JobSpec,
    work: Callable[[Job], tuple[T, dict[str, Any]]],
    launched: Launched | None = None,
) -> T:
    """An attempt at a job. `work` gives what it came to, and that as JSON for its record."""
    job = jobs.start_attempt(store, spec, launched=launched)
    job.event("info", f"attempt {job.attempt} started")
    try:
        with sigterm.saves_first(job, pauses=launched is None):
            result, document = work(job)
        job.finish("succeeded", result=document)
    except (JobCancelled, JobPaused, JobSuperseded) as error:
        job.event("warning", str(error))
        raise
    except KeyboardInterrupt:
        with contextlib.suppress(KitaeError):
            job.finish("cancelled")
        raise
    except Exception as error:
        known = _known(error)
        if _is_taken_away(job):
            with contextlib.suppress(KitaeError):
                job.event("warning", f"its machines were taken away; it goes on where there are others ({known})")
            raise known from error
        with contextlib.suppress(KitaeError):  # what happened is more important than that it cannot be noted
            job.event("error", str(known))
            job.finish("failed", error=str(known))
        if known is error:
            raise
        raise known from error
    return result


def _is_taken_away(job: Job) -> bool:
    """Whether what went wrong follows from the end of the machines, which this attempt was told of. If it does not, the
    next attempt meets it again."""
    with contextlib.suppress(KitaeError):
        return checkpoint_request.is_given(job.store, job.id, job.attempt)
    return False


def stages_of(spec: JobSpec) -> list[str]:
    """A job's stages in their order."""
    search = [] if spec.search is None else ["search"]
    train = ["train"] if spec.search is None or spec.search.retrain else []
    publish = ["publish"] if spec.training.publish_checkpoints else []
    return ["dataset", "base", "encode", *search, *train, "evaluate", "parity", "register", *publish, "deploy"]


def plan(store: Store, spec: JobSpec) -> PlanReport:
    """Which stages a run would skip. Reads the rows and the base's listing, writes nothing."""
    problems, inputs = _first_inputs(store, spec)
    if problems:
        raise _all_of(problems)
    done = {record.name: record for record in jobs.stages(store, spec.job_id)}
    stages: list[tuple[str, str]] = []
    stale = False
    for name in stages_of(spec):
        record = done.get(name)
        given = inputs.get(f"base {spec.base_model}" if name == "base" else name)
        if name == "parity" and not TASKS[spec.task].checks_parity:
            stages.append((name, "not needed: no engine serves this task"))
        elif name == "deploy" and not spec.serving.deploy:
            stages.append((name, "off (serving.deploy)"))
        elif record is None or stale or (given is not None and record.inputs != given):
            stages.append((name, f"will run: {describe(spec)}" if name == "search" else "will run"))
            stale = True
        else:
            stages.append((name, f"skipped: done in {record.seconds:.0f} s by attempt {record.attempt}"))
    return PlanReport(spec.job_id, spec, tuple(stages))


def _material(stages: _Stages, store: Store, spec: JobSpec) -> tuple[Outputs, dict[str, tuple[Outputs, Outputs]]]:
    """The dataset, and every base the job may train with the rows encoded for it."""
    problems, first = _first_inputs(store, spec)
    if problems:
        raise _all_of(problems)

    data = stages.run("dataset", first["dataset"], lambda _: work.make_dataset(store, spec))
    materials: dict[str, tuple[Outputs, Outputs]] = {}
    for source in _bases(spec):
        own = spec.model_copy(update={"base_model": source})
        base = stages.run("base", first[f"base {source}"], partial(work.prepare_base, store, own))
        encoded = stages.run(
            "encode",
            {"dataset": data["digest"], "base": base["digest"], "data": spec.data.model_dump(mode="json")},
            partial(work.encode, store, own, data, base),
        )
        materials[source] = (base, encoded)
    return data, materials


def _search(stages: _Stages, store: Store, spec: JobSpec, materials: work.Materials) -> Outputs:
    return stages.run(
        "search",
        {"search": work.search_prefix(spec, materials)},
        lambda show: work.search(stages.job, store, spec, materials, show),
    )


def _train(stages: _Stages, store: Store, inputs: TrainInputs) -> Outputs:
    return stages.run(
        "train", {"checkpoints": inputs.checkpoints}, lambda show: work.train(stages.job, store, inputs, show)
    )


def _flow(stages: _Stages, store: Store, job_spec: JobSpec) -> JobResult:
    data, materials = _material(stages, store, job_spec)
    found = _search(stages, store, job_spec, materials) if job_spec.search is not None else None
    spec = job_spec if found is None else JobSpec.model_validate(found["inputs"]["spec"])
    base, encoded = materials[spec.base_model]
    if found is not None and job_spec.search is not None and not job_spec.search.retrain:
        inputs, trained = TrainInputs.model_validate(found["inputs"]), found
    else:
        inputs = TrainInputs(
            spec=spec,
            labels=tuple(data["labels"]),
            encoded_key=encoded["key"],
            base_key=base["key"],
            checkpoints=work.checkpoints_prefix(stages.job.id, spec, encoded["key"], base["key"]),
        )
        trained = _train(stages, store, inputs)
    evaluate_inputs = EvaluateInputs(
        train=inputs,
        checkpoint_key=trained["checkpoint"],
        dataset_digest=data["digest"],
        held_out_kept=tuple(encoded["held_out_kept"]),
        candidate_key=work.candidate_key(stages.job.id, trained["checkpoint"]),
    )
    evaluation = Evaluation.model_validate(
        stages.run(
            "evaluate",
            {"checkpoint": trained["checkpoint"], "evaluation": spec.evaluation.model_dump(mode="json")},
            lambda show: work.evaluate_candidate(stages.job, store, evaluate_inputs, show),
        )
    )
    gate(evaluation, spec)
    parity: Outputs = {}
    if TASKS[spec.task].checks_parity:
        parity = stages.run(
            "parity",
            {
                "candidate": evaluation.candidate_key,
                "parity": spec.evaluation.parity.model_dump(mode="json"),
                "serving": spec.serving.model_dump(mode="json", exclude={"deploy", "max_queued_requests"}),
            },
            lambda show: work.compare_served(stages.job, store, spec, evaluation, base["key"], show),
        )
    trial = None if found is None else found["run"]
    registered = stages.run(
        "register",
        {"candidate": evaluation.candidate_key, "name": spec.name},
        lambda _: work.register(stages.job, store, spec, evaluation, data, base, parity, trial),
    )
    published: Outputs = {"checkpoints": []}
    if spec.training.publish_checkpoints:
        published = stages.run(
            "publish",
            {"checkpoints": inputs.checkpoints, **registered},
            lambda show: work.publish_checkpoints(
                stages.job, store, inputs, evaluation, data, base, registered, trained["checkpoint"], trial, show
            ),
        )
    endpoint = None
    if spec.serving.deploy:
        # Never skipped: whether it answers now is not for a record to say.
        endpoint = stages.do("deploy", lambda show: work.deploy_version(store, registered, show))["url"]
    return JobResult(
        job_id=stages.job.id,
        model=registered["name"],
        version=registered["version"],
        base_name=base["name"],
        endpoint=endpoint,
        base=evaluation.base,
        tuned=evaluation.tuned,
        base_is=evaluation.base_is,
        tokens_per_s=trained["tokens_per_s"],
        parity_mean_gap=parity.get("mean_gap"),
        search=None if found is None else {key: found[key] for key in ("run", "params", "trials", "page")},
        checkpoints=published["checkpoints"],
        trained_tokens=trained["tokens"] if found is None or trained is found else found["tokens"] + trained["tokens"],
        metrics_csv=work.write_metrics(store, stages.job.id, inputs),
        stages=tuple(stages.times),
    )


class _Stages:
    """Runs stages that have no record yet, shows their progress and keeps their times."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.times: list[StageTime] = []

    def run(self, name: str, inputs: Mapping[str, Any], work: Callable[[Callable[..., None]], Outputs]) -> Outputs:
        """The stage's outputs, from its record or by doing it. `work` gets a function to report progress with."""
        self.job.check(fresh=True)
        record = self.job.stage(name, inputs)
        if record is not None:
            self.times.append(StageTime(name, record.seconds, skipped=True))
            print(f"{name:<9}  skipped: done before, in {record.seconds:.0f} s", flush=True)
            return dict(record.outputs)
        started = time.monotonic()
        outputs = self.do(name, work)
        self.job.finish_stage(name, inputs, outputs, time.monotonic() - started)
        return outputs

    def do(self, name: str, work: Callable[[Callable[..., None]], Outputs]) -> Outputs:
        """The stage, without a record."""
        started = time.monotonic()
        self.job.event("info", f"stage {name} started")
        print(f"{name:<9}  started", flush=True)
        with stage_progress(name) as progress:
            outputs = work(progress.update)
        self.job.check(fresh=True)
        seconds = time.monotonic() - started
        self.job.event("info", f"stage {name} finished", {"seconds": round(seconds, 1)})
        self.times.append(StageTime(name, seconds, skipped=False))
        return outputs


def _first_inputs(store: Store, spec: JobSpec) -> tuple[list[KitaeError], dict[str, dict[str, Any]]]:
    """Inputs of the stages that read from outside; both are looked at, so that both kinds of error are told at once."""
    problems: list[KitaeError] = []
    inputs: dict[str, dict[str, Any]] = {}
    try:
        sources = [spec.data.train, *([spec.data.held_out] if spec.data.held_out else [])]
        inputs["dataset"] = {
            "data": spec.data.model_dump(mode="json", exclude={"max_tokens", "too_long"}),
            "task": spec.task,
            "sources": [work.rows_fingerprint(store, source) for source in sources],
        }
    except KitaeError as error:
        problems.append(error)
    for source in _bases(spec):
        try:
            fingerprint = bases.fingerprint(store, source)
            inputs[f"base {source}"] = {"source": source, "fingerprint": fingerprint, "task": spec.task}
        except KitaeError as error:
            problems.append(error)
    return problems, inputs


def _bases(spec: JobSpec) -> list[str]:
    """Every base model the job may train, its own first."""
    searched = (spec.search.space or {}).get("base_model", ()) if spec.search is not None else ()
    return list(dict.fromkeys([spec.base_model, *(searched if isinstance(searched, tuple) else ())]))


def _known(error: Exception) -> Exception:
    """An error of ours for one that any stage may meet."""
    if isinstance(error, KitaeError) or not is_disk_full(error):
        return error
    return MachineError(f"the disk is full: make room, or set TMPDIR and KITAE_CACHE to a larger disk ({error})")


def _all_of(problems: list[KitaeError]) -> KitaeError:
    """One error for several: the first one's kind, so that its exit code stays."""
    if len(problems) == 1:
        return problems[0]
    return type(problems[0])("the job cannot run", details=[str(problem) for problem in problems])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
