"""Search and training: from encoded rows to a checkpoint."""

from __future__ import annotations

from ray_jobs.models import fetch_base, load_config
from ray_jobs.pipeline.outputs import EncodedRows, Flow, SearchOutcome
from ray_jobs.pipeline.stage import StageContext
from ray_jobs.search import decide, page
from ray_jobs.search.executors import Executor
from ray_jobs.search.records import Problem, SearchRecords, TrialSegment
from ray_jobs.search.runner import Search, warm_points
from ray_jobs.search.space import space_of
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainOutcome
from ray_jobs.training.metrics import TrainingMetrics
from ray_jobs.training.ray_workers import MetricValues

_TRIALS_SHOWN = 12
_METRICS_SHOWN = ("loss", "tokens_per_s", "held_out_loss")
"""Metrics of a step beside the progress bar."""


def train(flow: Flow, context: StageContext) -> TrainOutcome:
    """Train to the end on Ray Train workers. Raises as `Job.check` where the job was stopped."""
    ray_workers.connect()
    job, events = context.job, TrainingMetrics(context.job)

    def report(done: float, total: float, unit: str, metrics: MetricValues) -> None:
        context.report(done, total, unit, {name: metrics[name] for name in _METRICS_SHOWN if name in metrics})
        events.record(int(done), int(total), metrics)

    outcome = ray_train.train_on_workers(
        flow.train_inputs, context.store, job_id=job.id, attempt=job.attempt, report=report
    )
    if outcome.stopped == "on_request":
        job.check(fresh=True)  # raises
    return outcome


def search(flow: Flow, context: StageContext) -> SearchOutcome:
    """Search to the best trial."""
    job, store, spec = context.job, context.store, flow.job_spec
    assert spec.search is not None
    ray_workers.connect()
    records = SearchRecords(store, flow.search_prefix)
    encoded = flow.get(EncodedRows, spec.base_model)
    base = fetch_base(store, flow.base_copy(spec.base_model).key)
    config = load_config(base) if base is not None else {}
    begun = Problem(
        spec=spec,
        space=space_of(spec, config, encoded.train_supervised),
        rows=encoded.train_rows,
    )
    problem = records.begin(begun.model_copy(update={"warm": warm_points(store, begun, job.id)}))

    def inputs(run: TrialSegment) -> TrainInputs:
        trial = decide.trial_spec(problem, run).model_copy(update={"compute": spec.compute})
        rows = flow.get(EncodedRows, trial.base_model)
        return TrainInputs(
            spec=trial,
            labels=rows.labels,
            encoded_key=rows.key,
            base_key=flow.base_copy(trial.base_model).key,
            checkpoints=records.checkpoints(run),
        )

    def note(text: str) -> None:
        job.event("warning", f"search: {text}")
        print(f"search     {text}", flush=True)

    executor = Executor(store, spec.compute, spec.search.parallel, job.id, job.attempt, note)
    try:
        schedule = Search(job, records, problem, inputs, executor, context.show).run()
    finally:
        executor.close()
    assert schedule.winner is not None
    results = records.results()
    winner = results[schedule.winner.name]
    assert winner.checkpoint is not None
    print(page.table(problem, results, schedule, limit=_TRIALS_SHOWN), flush=True)
    return SearchOutcome(
        inputs=inputs(winner.run),
        run=winner.run.name,
        params=winner.run.params,
        checkpoint=winner.checkpoint,
        tokens_per_s=winner.tokens / max(winner.seconds, 1e-9),
        trials=len({result.run.trial for result in results.values()}),
        tokens=sum(result.tokens for result in results.values()),
        page=f"{records.prefix}/page.html",
    )
