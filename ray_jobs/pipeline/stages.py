"""What each stage of the pipeline does: its inputs turned into outputs that fit into a JSON record.

One function a stage, in the pipeline's order. Owns how the parts are put together; when a stage runs, and whether it
has to, is the pipeline's.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_jobs import __version__, deploy, registry
from ray_jobs.data import dataset
from ray_jobs.data.encoding import Encoded, encode_rows
from ray_jobs.data.ingest import local_copy
from ray_jobs.digests import json_digest
from ray_jobs.engine import EngineSettings, detect_hardware, serving_dtype
from ray_jobs.errors import DataError
from ray_jobs.evaluation import publish
from ray_jobs.evaluation.evaluate import EvaluateInputs, Evaluation, evaluate
from ray_jobs.evaluation.parity import ParityPrompt, check_parity
from ray_jobs.jobs import Job
from ray_jobs.models import bases, load_config, load_tokenizer
from ray_jobs.registry import Lineage, ModelVersion
from ray_jobs.search import decide, page
from ray_jobs.search.executors import Executor
from ray_jobs.search.records import Problem, Run, SearchRecords
from ray_jobs.search.runner import Search, warm_points
from ray_jobs.search.space import space_of
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.metrics import TrainingMetrics, write_csv
from ray_jobs.training.trainer import HELD_OUT_FILE, TRAIN_FILE, TrainInputs, TrainOutcome

Outputs = dict[str, Any]
Materials = Mapping[str, tuple[Outputs, Outputs]]
"""By base_model: what the base and the encode stage gave for it."""
Show = Callable[..., None]
"""`Progress.update` of the stage's display."""
_TRIALS_SHOWN = 12
_FIGURES_SHOWN = ("loss", "tokens_per_s", "held_out_loss")
"""Of a step, beside the bar."""


def rows_fingerprint(store: Store, source: str) -> str:
    """What tells whether a file of rows has changed. Raises DataError where there is none."""
    if not source.startswith("s3://"):
        with local_copy(store, source) as path, path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder, _, name = source.rpartition("/")
    for info in store.at(folder).list():
        if info.key == name:
            return json_digest([info.size_bytes, info.etag])
    raise DataError(f"no rows at {source}: upload the file there, or correct the address")


def make_dataset(store: Store, spec: JobSpec) -> Outputs:
    return dataset.as_json(dataset.prepare(store, spec.data, TASKS[spec.task]))


def prepare_base(store: Store, spec: JobSpec, show: Show) -> Outputs:
    base = bases.prepare(store, spec.base_model, spec.task, progress=lambda done, total: show(done, total, "bytes"))
    return {"digest": base.digest, "name": base.name, "architecture": base.architecture, "key": base.key}


def encode(store: Store, spec: JobSpec, data: Outputs, base: Outputs, show: Show) -> Outputs:
    files = dataset.load(store, data["digest"])
    task = TASKS[spec.task]
    tokenizer = load_tokenizer(store.fetch(base["key"]), spec.task)
    outputs: Outputs = {}
    with tempfile.TemporaryDirectory(prefix="kitae-encoded-") as scratch:
        for side, rows, name in (
            ("train", files.train_rows, TRAIN_FILE),
            ("held_out", files.held_out_rows, HELD_OUT_FILE),
        ):
            encoded, kept = encode_rows(
                rows,
                task,
                tokenizer,
                data["labels"],
                max_tokens=spec.data.max_tokens,
                too_long=spec.data.too_long,
                source=side.replace("_", "-"),
                progress=lambda done, total: show(done, total, "rows"),
            )
            if side == "train":
                task.check_encoded([encoded[i] for i in range(len(encoded))], tokenizer)
            encoded.save(Path(scratch) / name)
            outputs |= _counts(side, encoded, len(rows)) | {f"{side}_kept": kept}
        inputs = json_digest([base["digest"], spec.data.max_tokens, spec.data.too_long])
        key = f"datasets/{data['digest']}/encoded/{inputs}"
        if store.read_manifest(key) is None:
            store.commit(key, store.upload_tree(Path(scratch), key), {"base": base["digest"]})
    del outputs["train_kept"]  # as long as the data, and nobody needs it
    return outputs | {"key": key, "labels": data["labels"]}


def _counts(side: str, encoded: Encoded, rows: int) -> Outputs:
    return {
        f"{side}_rows": len(encoded),
        f"{side}_rows_left_out": rows - len(encoded),
        f"{side}_tokens": int(sum(encoded.lengths)),
        f"{side}_supervised": int(sum(encoded.supervised)),
    }


def train(job: Job, store: Store, inputs: TrainInputs, show: Show) -> Outputs:
    ray_workers.connect()
    metrics = TrainingMetrics(job)

    def report(done: float, total: float, unit: str, figures: ray_workers.Figures) -> None:
        show(done, total, unit, **{name: figures[name] for name in _FIGURES_SHOWN if name in figures})
        metrics.tell(int(done), int(total), figures)

    outcome: TrainOutcome = ray_workers.train_on_workers(
        inputs, store, job_id=job.id, attempt=job.attempt, report=report
    )
    if outcome.stopped == "on_request":
        job.check(fresh=True)  # raises
    return outcome.model_dump(mode="json")


def search(job: Job, store: Store, spec: JobSpec, materials: Materials, show: Show) -> Outputs:
    """Search to the winner. `inputs` of the answer are those of its training."""
    assert spec.search is not None
    ray_workers.connect()
    records = SearchRecords(store, search_prefix(spec, materials))
    _, encoded = materials[spec.base_model]
    config = load_config(store.fetch(materials[spec.base_model][0]["key"]))
    begun = Problem(
        spec=spec,
        space=space_of(spec, config, encoded["train_supervised"]),
        rows=encoded["train_rows"],
    )
    begun = begun.model_copy(update={"warm": warm_points(store, begun, job.id)})
    problem = records.begin(begun)

    def inputs(run: Run) -> TrainInputs:
        trial = decide.trial_spec(problem, run).model_copy(update={"compute": spec.compute})
        base, rows = materials[trial.base_model]
        return TrainInputs(
            spec=trial,
            labels=tuple(rows["labels"]),
            encoded_key=rows["key"],
            base_key=base["key"],
            checkpoints=records.checkpoints(run),
        )

    def note(text: str) -> None:
        job.event("warning", f"search: {text}")
        print(f"search     {text}", flush=True)

    executor = Executor(store, spec.compute, spec.search.parallel, job.id, job.attempt, note)
    try:
        schedule = Search(job, records, problem, inputs, executor, show).run()
    finally:
        executor.close()
    assert schedule.winner is not None
    results = records.results()
    winner = results[schedule.winner.name]
    print(page.table(problem, results, schedule, limit=_TRIALS_SHOWN), flush=True)
    return {
        "inputs": inputs(winner.run).model_dump(mode="json"),
        "run": winner.run.name,
        "params": winner.run.params,
        "checkpoint": winner.checkpoint,
        "tokens_per_s": winner.tokens / max(winner.seconds, 1e-9),
        "trials": len({result.run.trial for result in results.values()}),
        "tokens": sum(result.tokens for result in results.values()),
        "page": f"{records.prefix}/page.html",
    }


def search_prefix(spec: JobSpec, materials: Materials) -> str:
    """Where a search is: the same for the same job on the same rows and bases."""
    keys = {source: (base["key"], rows["key"]) for source, (base, rows) in materials.items()}
    return f"jobs/{spec.job_id}/search/{json_digest(keys)}"


def evaluate_candidate(job: Job, store: Store, inputs: EvaluateInputs, show: Show) -> Outputs:
    ray_workers.connect()
    evaluation = ray_workers.call_on_worker(
        evaluate,
        inputs,
        store,
        compute=inputs.train.spec.compute,
        report=lambda done, total, unit, figures: show(done, total, unit, **figures),
        check=job.check,
    )
    return evaluation.model_dump(mode="json")


def compare_served(job: Job, store: Store, spec: JobSpec, evaluation: Evaluation, base_key: str, show: Show) -> Outputs:
    ray_workers.connect()
    return ray_workers.call_on_worker(
        compare_with_engine,
        spec,
        evaluation,
        base_key,
        store,
        compute=spec.compute,
        report=lambda done, total, unit, figures: show(done, total, unit, **figures),
        check=job.check,
    )


def compare_with_engine(spec: JobSpec, evaluation: Evaluation, base_key: str, store: Store, report: Show) -> Outputs:
    """Served equals trained, on a machine of the kind that serves."""
    hardware = detect_hardware()
    trained: Any = evaluation.dtype
    settings = EngineSettings(
        dtype=serving_dtype(trained, hardware),
        hardware=hardware,
        max_model_len=spec.serving.max_model_len,
        max_lora_rank=evaluation.lora_rank,
        max_loras=spec.serving.max_loras,
        kv_cache_gib=spec.serving.kv_cache_gib,
        max_num_seqs=spec.serving.max_ongoing_requests,
    )
    candidate = store.fetch(evaluation.candidate_key)
    result = check_parity(
        store.fetch(base_key) if evaluation.is_adapter else candidate,
        [ParityPrompt(**_tuples(prompt)) for prompt in evaluation.parity_prompts],
        settings,
        trained_dtype=trained,
        adapter_dir=candidate if evaluation.is_adapter else None,
        max_mean_gap=spec.evaluation.parity.max_mean_logprob_gap,
        progress=lambda done, total: report((done, total, "prompts", {})),
    )
    return dict(vars(result))


def register(
    job: Job,
    store: Store,
    spec: JobSpec,
    evaluation: Evaluation,
    data: Outputs,
    base: Outputs,
    parity: Outputs,
    trial: str | None,
) -> Outputs:
    metrics = evaluation.tuned | {f"base_{name}": value for name, value in evaluation.base.items()}
    if parity:
        metrics |= {"parity_mean_gap": parity["mean_gap"]}
    lineage = _lineage(job, spec, evaluation.dtype, data, base, trial, metrics)
    version = _register_tree(store, lineage, evaluation.candidate_key, spec)
    registry.set_alias(store, version.name, "champion", version.version)
    return {"name": version.name, "version": version.version}


def publish_checkpoints(
    job: Job,
    store: Store,
    inputs: TrainInputs,
    evaluation: Evaluation,
    data: Outputs,
    base: Outputs,
    registered: Outputs,
    best: str,
    trial: str | None,
    show: Show,
) -> Outputs:
    """Every checkpoint that is left as a version of its own, where it can be; the registered one gets its alias.

    `best` is the registered checkpoint's key.
    """
    spec, name = inputs.spec, registered["name"]
    found = checkpoint.committed(store, inputs.checkpoints)
    rows = [publish.row(one, registered["version"]) for one in found if one.key == best]
    chosen = publish.others(found, best) if publish.has_adapters(spec) else []
    trees = {one.key: candidate_key(job.id, one.key) for one in chosen}
    if chosen:
        ray_workers.connect()
        ray_workers.call_on_worker(
            publish.build_adapters,
            publish.AdapterInputs(train=inputs, trees=trees),
            store,
            compute=spec.compute,
            report=lambda done, total, unit, figures: show(done, total, unit, **figures),
            check=job.check,
        )
    for one in chosen:
        metrics = publish.lineage_metrics(one, spec)
        lineage = _lineage(job, spec, evaluation.dtype, data, base, trial, metrics)
        rows.append(publish.row(one, _register_tree(store, lineage, trees[one.key], spec).version))
    for row in rows:
        registry.set_alias(store, name, publish.alias_of(row["step"]), row["version"])
    return {"checkpoints": sorted(rows, key=lambda row: int(row["step"]))}


def write_metrics(store: Store, job_id: str, inputs: TrainInputs) -> str | None:
    """The training's figures as a file beside the job. None: its checkpoints are gone."""
    return write_csv(store, job_id, checkpoint.committed(store, inputs.checkpoints))


def candidate_key(job_id: str, checkpoint_key: str) -> str:
    """Where that which a checkpoint would be published as is."""
    return f"jobs/{job_id}/candidates/{checkpoint_key.rsplit('/', 1)[-1]}"


def _lineage(
    job: Job,
    spec: JobSpec,
    dtype: str,
    data: Outputs,
    base: Outputs,
    trial: str | None,
    metrics: dict[str, float],
) -> Lineage:
    training = spec.training.model_copy(update={"precision": dtype})  # as it was on that machine
    return Lineage(
        dataset_digest=data["digest"],
        base_digest=base["digest"],
        spec=spec.model_copy(update={"training": training}),
        code_version=__version__,
        job_id=job.id,
        metrics=metrics,
        labels=tuple(data["labels"]),
        trial=trial,
    )


def _register_tree(store: Store, lineage: Lineage, key: str, spec: JobSpec) -> ModelVersion:
    """A tree of the store as a version; the same tree and job are the same version."""
    with _writable_copy(store.fetch(key)) as directory:
        return registry.register(
            store, spec.name, directory, lineage=lineage, lineage_digest=json_digest([key, spec.digest()])
        )


def deploy_version(store: Store, registered: Outputs, show: Show) -> Outputs:
    settings = deploy.ServeSettings.from_env()
    answer = deploy.deploy(
        store,
        registered["name"],
        settings,
        progress=lambda doing, seconds: show(seconds, max(seconds, settings.timeout_s), "s", doing=doing),
    )
    return {"url": answer.url, "version": answer.version}


@contextlib.contextmanager
def _writable_copy(directory: Path) -> Iterator[Path]:
    """The registry writes a model card into the tree; a cached tree is shared and must stay as it is."""
    with tempfile.TemporaryDirectory(prefix="kitae-register-") as scratch:
        copy = Path(scratch) / "tree"
        shutil.copytree(directory, copy)
        yield copy


def checkpoints_prefix(job_id: str, spec: JobSpec, encoded_key: str, base_key: str) -> str:
    """Where a training's checkpoints are: the same for all that trains the same, on however many workers."""
    training = spec.training.model_dump(mode="json", exclude={"checkpoints_to_keep", "publish_checkpoints"})
    return f"jobs/{job_id}/checkpoints/{json_digest([encoded_key, base_key, spec.task, training])}"


def _tuples(document: Mapping[str, Any]) -> Outputs:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
