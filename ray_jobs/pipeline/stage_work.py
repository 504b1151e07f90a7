"""The work of each stage, in the order of `stages.py`: from rows to an answering endpoint."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from ray_jobs import __version__, deploy, registry
from ray_jobs.data import dataset, prepare, versions
from ray_jobs.data.dataset import Dataset
from ray_jobs.data.distributed import SMALL_BYTES, is_worthwhile
from ray_jobs.data.encoding import ENCODING, encode_rows
from ray_jobs.data.split import SIDES
from ray_jobs.digests import json_digest
from ray_jobs.errors import ModelError, RegistryError
from ray_jobs.evaluation import publish
from ray_jobs.evaluation.champion import Champion, champion_of
from ray_jobs.evaluation.evaluate import Evaluation, evaluate
from ray_jobs.evaluation.gate import reason_champion_stays, reason_not_judged
from ray_jobs.evaluation.parity import ParityReport
from ray_jobs.evaluation.served import compare_with_engine
from ray_jobs.jobs import Job
from ray_jobs.models import bases, fetch_base, load_config, load_processor, longest_read
from ray_jobs.pipeline.outputs import (
    BaseCopy,
    DeployedEndpoint,
    EncodedRows,
    Flow,
    Published,
    PublishedCheckpoint,
    Registered,
    SearchOutcome,
    candidate_key,
)
from ray_jobs.registry import catalogue
from ray_jobs.registry.model import Lineage, ModelVersion
from ray_jobs.search import page, standing
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.rungs import trial_spec
from ray_jobs.search.space import default_space
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.tasks.positions import capped
from ray_jobs.tracking.job_run import track
from ray_jobs.training import checkpoint, ray_train, ray_workers
from ray_jobs.training.inputs import TEST_FILE, TRAIN_FILE, VALIDATION_FILE, TrainOutcome
from ray_jobs.training.metrics import TrainingMetrics
from ray_jobs.training.ray_workers import MetricValues

if TYPE_CHECKING:
    from ray.tune import Callback

T = TypeVar("T")
_METRICS_SHOWN = ("loss", "tokens_per_s", "held_out_loss")
"""Metrics of a step beside the progress bar."""


@dataclass(frozen=True)
class StageContext:
    """A stage's attempt and progress display."""

    job: Job
    show: Callable[..., None]
    """`StageProgress.update`."""
    may_join_cluster: bool = False
    """Whether this process may start Ray, or join the cluster: it is the job's runner."""

    @property
    def store(self) -> Workspace:
        return self.job.store

    def report(self, done: float, total: float, unit: str, metrics: MetricValues) -> None:
        """Show progress that comes from a worker."""
        self.show(done, total, unit, **metrics)

    def join_cluster_for(self, size_bytes: int) -> None:
        """Join the Ray cluster if rows of this size are worth it."""
        if self.may_join_cluster and size_bytes > SMALL_BYTES:
            ray_workers.connect()

    def on_worker(self, function: Callable[..., T], *arguments: object, compute: ComputeSection) -> T:
        """Call `function(*arguments, store, report)` on a worker. Raises as `ray_workers.call_on_worker`."""
        ray_workers.connect()
        return ray_workers.call_on_worker(
            function, *arguments, self.store, compute=compute, report=self.report, check=self.job.check
        )


def make_dataset(flow: Flow, context: StageContext) -> Dataset:
    """Read, check and split the rows."""
    store, spec, data = context.store, flow.job_spec, flow.job_spec.data
    if data.dataset is not None:
        return versions.dataset_of(store, data.dataset, spec.task)
    name = data.name or spec.name
    made = prepare.prepare(
        store, data, TASKS[spec.task], lambda notice: context.job.event("info", f"data: {notice}"), name=name,
        join_cluster=context.join_cluster_for,
    )  # fmt: skip
    return made.model_copy(update={"version": versions.record(store, name, data, made, context.job.id).label})


def copy_base(flow: Flow, context: StageContext, base_model: str) -> BaseCopy:
    """Copy a base model into the store."""

    def progress(done: int, total: int) -> None:
        context.show(done, total, "bytes")

    base = bases.prepare(context.store, base_model, flow.job_spec.task, progress=progress)
    entry = catalogue.find(context.store, base.name)
    if entry is not None and entry.digest != base.digest:
        raise ModelError(
            f"base_model {base_model} would be served as {base.name!r}, and the catalogue has another base of this "
            f"name: write base_model: {base.name}, or rename the directory"
        )
    return BaseCopy(digest=base.digest, name=base.name, architecture=base.architecture, key=base.key)


def encode(flow: Flow, context: StageContext, base_model: str) -> EncodedRows:
    """Encode the rows of every side for a base, once."""
    store, spec, base = context.store, flow.job_spec, flow.base_copy(base_model)
    labels, limits = flow.dataset.labels, spec.data
    files = dataset.load(store, flow.dataset.digest)
    directory = fetch_base(store, base.key)
    tokenizer, max_tokens = load_processor(directory, spec.task), capped(limits.max_tokens, longest_read(directory))
    if max_tokens < limits.max_tokens:
        note = f"data.max_tokens is {limits.max_tokens}; {base.name} reads at most {max_tokens} tokens, so that is used"
        context.job.event("info", note)
    file_of_side = zip(SIDES, (TRAIN_FILE, VALIDATION_FILE, TEST_FILE), strict=True)
    sides = [(side, files.side(side), name) for side, name in file_of_side]
    named = ((f"{side} row {i}", row) for side, rows, _ in sides for i, row in enumerate(rows, 1))
    prompts = TASKS[spec.task].setting_for(named, tokenizer, store.now().date())
    task = TASKS[spec.task].with_setting(prompts)
    how = [ENCODING, base.digest, max_tokens, limits.too_long]
    how += [prompts.model_dump(mode="json")] if prompts != PromptSetting() else []
    key = f"{flow.dataset.key}/encoded/{json_digest(how)}"
    counts: dict[str, Any] = {}
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kitae-encoded-") as scratch:
        for side, rows, name in sides:
            size_bytes = rows.path.stat().st_size
            context.join_cluster_for(size_bytes)
            encoded, found = encode_rows(
                rows,
                task,
                tokenizer,
                labels,
                max_tokens=max_tokens,
                too_long=limits.too_long,
                source=side,
                progress=lambda done, total: context.show(done, total, "rows"),
                distributed=is_worthwhile(size_bytes, local=True),
            )
            left_out += found.sentences(side)
            if side == "train":
                task.check_encoded(encoded, tokenizer)
            encoded.save(Path(scratch) / name)
            counts |= {
                f"{side}_rows": len(set(found.kept)),
                f"{side}_rows_left_out": found.rows - len(set(found.kept)),
                f"{side}_examples": len(encoded),
                f"{side}_tokens": int(sum(encoded.lengths)),
                f"{side}_supervised": int(sum(encoded.supervised)),
            }
        if store.read_manifest(key) is None:
            store.commit(key, store.upload_tree(Path(scratch), key), {"base": base.digest})
    for note in prompts.notes():
        context.job.event("info", note)
    for sentence in left_out:
        context.job.event("warning", f"data: {sentence}")
    return EncodedRows(**counts, test_kept=tuple(found.kept), key=key, labels=labels, prompts=prompts)


def search(flow: Flow, context: StageContext) -> SearchOutcome:
    """Search to the best trial."""
    from ray_jobs.search.driver import Search  # imports Ray Tune
    from ray_jobs.tracking.tune import tune_callbacks

    job, store, spec = context.job, context.store, flow.job_spec
    assert spec.search is not None
    ray_workers.connect()
    records = SearchRecords(store, flow.search_prefix)
    encoded = flow.get(EncodedRows, spec.base_model)
    base = fetch_base(store, flow.base_copy(spec.base_model).key)
    config = load_config(base) if base is not None else {}
    begun = Problem(
        spec=spec,
        space=spec.search.space or default_space(spec, config, encoded.train_supervised),
        rows=encoded.train_examples or encoded.train_rows,
        labels_a_row=labels_a_row({model: flow.get(EncodedRows, model) for model in flow.base_models}),
    )
    warm = standing.warm_points(store, begun, job.id)
    problem = records.begin(begun.model_copy(update={"warm": warm}))
    # The machines may be others than at the first attempt's.
    problem = problem.model_copy(update={"spec": problem.spec.model_copy(update={"compute": spec.compute})})

    def note(text: str) -> None:
        job.event("warning", f"search: {text}")
        print(f"search     {text}", flush=True)

    materials = {model: flow.inputs_of(spec.with_values({"base_model": model}), "") for model in flow.base_models}

    def loggers() -> list[Callback]:
        return tune_callbacks(flow.job_spec, job.id, store, note, PurePosixPath(flow.search_prefix).name)

    now = Search(job, records, problem, materials, context.show, note, loggers).run()
    assert now.winner is not None
    results = records.results()
    winner = results[now.winner.name]
    assert winner.checkpoint is not None
    print(page.table(problem, results, now, limit=12), flush=True)
    return SearchOutcome(
        inputs=flow.inputs_of(trial_spec(problem, winner.run), records.checkpoints(winner.run)),
        run=winner.run.name,
        params=winner.run.params,
        checkpoint=winner.checkpoint,
        tokens_per_s=winner.tokens / max(winner.seconds, 1e-9),
        trials=len({result.run.trial for result in results.values()}),
        tokens=sum(result.tokens for result in results.values()),
        page=f"{records.prefix}/page.html",
    )


def labels_a_row(encoded: Mapping[str, EncodedRows]) -> dict[str, float]:
    """Supervised labels of a validation row by base model; none where all bases have as many. Pure."""
    found = {model: rows.validation_supervised / max(rows.validation_rows, 1) for model, rows in encoded.items()}
    return found if len(set(found.values())) > 1 else {}


def train(flow: Flow, context: StageContext) -> TrainOutcome:
    """Train to the end on Ray Train workers. Raises as `Job.check` where the job was stopped."""
    ray_workers.connect()
    job, events = context.job, TrainingMetrics(context.job)
    digest = PurePosixPath(flow.train_inputs.checkpoints).name
    with track(job, flow.spec, flow.job_spec.tracking, digest) as record:

        def report(done: float, total: float, unit: str, metrics: MetricValues) -> None:
            record(int(done), metrics)
            context.report(done, total, unit, {name: metrics[name] for name in _METRICS_SHOWN if name in metrics})
            events.record(int(done), int(total), metrics)

        outcome = ray_train.train_on_workers(
            flow.train_inputs, context.store, job_id=job.id, attempt=job.attempt, report=report
        )
        if outcome.stopped == "on_request":
            job.check(fresh=True)  # raises
    return outcome


def evaluate_candidate(flow: Flow, context: StageContext) -> Evaluation:
    """Build the candidate and score it, its base and the model's champion on the test rows."""
    inputs = flow.evaluate_inputs.model_copy(update={"champion": _champion(flow, context.store)})
    return context.on_worker(evaluate, inputs, compute=flow.spec.compute)


def _champion(flow: Flow, store: Workspace) -> Champion | None:
    """The version that the model's alias `champion` points at. None: it decides nothing, or is deleted."""
    pointed = registry.aliases(store, flow.job_spec.name).get(registry.CHAMPION)
    if pointed is None or not flow.spec.evaluation.must_beat_base:
        return None
    try:
        version = registry.get(store, f"{flow.job_spec.name}@{pointed}")
    except RegistryError:
        return None
    return champion_of(version, flow.spec, flow.base.digest, flow.dataset.labels)


def compare_served(flow: Flow, context: StageContext) -> ParityReport:
    """Compare what is served with what was trained. Raises GateError where they differ."""
    entry = catalogue.find_base(context.store, flow.base.name, flow.base.digest)
    shared = entry is not None and flow.evaluation.is_adapter
    serving = entry.serving if entry is not None and shared else flow.spec.serving
    rank = entry.max_lora_rank if entry is not None and shared else flow.evaluation.lora_rank
    return context.on_worker(
        compare_with_engine,
        flow.spec,
        serving,
        rank,
        flow.evaluation,
        flow.base.key,
        flow.encoded.prompts,
        compute=flow.spec.compute,
    )


def register(flow: Flow, context: StageContext) -> Registered:
    """Register the candidate, and point the alias `champion` at it if it is better than its base and the champion."""
    metrics = flow.evaluation.tuned | {f"base_{name}": value for name, value in flow.evaluation.base.items()}
    if flow.parity is not None:
        metrics |= {"parity_mean_gap": flow.parity.mean_gap}
    lacking = reason_not_judged(flow.evaluation, flow.spec)
    version = _register_tree(
        flow, context, flow.evaluation.candidate_key, metrics, gated=not lacking, not_judged=lacking
    )
    if lacking:
        context.job.event("warning", f"{version.name}@{version.version} is not judged: {lacking}")
        return Registered(name=version.name, version=version.version, not_judged=lacking)
    now = registry.aliases(context.store, version.name).get(registry.CHAMPION)
    stays = "" if now == version.version else reason_champion_stays(flow.evaluation, flow.spec, now)
    if stays:
        move = f"kitae models alias {version.name} {registry.CHAMPION} {version.version}"
        context.job.event("warning", f"{version.name}@{now} stays the champion: {stays}. To move it: {move}")
    else:
        registry.set_alias(context.store, version.name, registry.CHAMPION, version.version)
    return Registered(name=version.name, version=version.version, champion_stays=stays)


def publish_checkpoints(flow: Flow, context: StageContext) -> Published:
    """Register each remaining checkpoint of an adapter as a version, and give each registered checkpoint its alias."""
    store, inputs, best = context.store, flow.train_inputs, flow.trained.checkpoint
    found = checkpoint.committed(store, inputs.checkpoints)
    chosen = publish.others(found, best) if publish.has_adapters(inputs.spec) else []
    trees = {one.key: candidate_key(context.job.id, one.key) for one in chosen}
    if chosen:
        context.on_worker(
            publish.build_adapters, publish.AdapterInputs(train=inputs, trees=trees), compute=inputs.spec.compute
        )
    published = [_published(one, flow.registered.version) for one in found if one.key == best]
    for one in chosen:
        metrics = publish.lineage_metrics(one, inputs.spec)
        version = _register_tree(flow, context, trees[one.key], metrics, gated=False)
        published.append(_published(one, version.version))
    for row in published:
        alias = publish.alias_of(row.step)
        registry.set_alias(store, flow.registered.name, alias, row.version)
    return Published(checkpoints=tuple(sorted(published, key=lambda row: row.step)))


def deploy_version(flow: Flow, context: StageContext) -> DeployedEndpoint:
    """Deploy the model and wait until the version answers."""
    settings = deploy.ServeSettings.from_env()
    deployed = deploy.deploy(
        context.store,
        flow.registered.name,
        settings,
        ungated=bool(flow.registered.not_judged),  # for its own team: nothing else answers for the name
        progress=lambda doing, seconds: context.show(seconds, max(seconds, settings.timeout_s), "s", doing=doing),
    )
    return DeployedEndpoint(url=deployed.url, version=deployed.version)


def _register_tree(
    flow: Flow, context: StageContext, key: str, metrics: dict[str, float], *, gated: bool = True, not_judged: str = ""
) -> ModelVersion:
    """Register a tree of the store. The same tree and job are the same version."""
    spec = flow.spec
    training = spec.training.model_copy(update={"precision": flow.evaluation.dtype})  # what `auto` became
    max_model_len = capped(spec.serving.max_model_len, flow.evaluation.longest_read)
    serving = spec.serving.model_copy(update={"max_model_len": max_model_len})
    lineage = Lineage(
        dataset_digest=flow.dataset.digest,
        dataset=flow.dataset.version,
        base_digest=flow.base.digest,
        spec=spec.model_copy(update={"training": training, "serving": serving}),
        code_version=__version__,
        job_id=context.job.id,
        metrics=metrics,
        labels=flow.dataset.labels,
        trial=None if flow.search is None else flow.search.run,
        gated=gated,
        not_judged=not_judged,
        base_is=flow.evaluation.base_is,
        prompts=flow.encoded.prompts,
    )
    with tempfile.TemporaryDirectory(prefix="kitae-register-") as scratch:
        # The registry writes a model card into the tree; the store's cached copy is shared.
        tree = Path(scratch) / "tree"
        shutil.copytree(context.store.fetch(key), tree)
        return registry.register(
            context.store, spec.name, tree, lineage=lineage, lineage_digest=json_digest([key, spec.digest()])
        )


def _published(one: checkpoint.Checkpoint, version: str) -> PublishedCheckpoint:
    position = one.position
    return PublishedCheckpoint(
        step=position.step,
        version=version,
        train_loss=position.losses[-1] if position.losses else None,
        valid_loss=position.held_out_loss,
        valid_mean_token_accuracy=position.held_out_accuracy,
    )
