"""Registration, publication of checkpoints, and deployment."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ray_jobs import __version__, deploy, registry
from ray_jobs.digests import json_digest
from ray_jobs.evaluation import publish
from ray_jobs.pipeline import keys
from ray_jobs.pipeline.outputs import DeployedEndpoint, Flow, Published, PublishedCheckpoint, Registered
from ray_jobs.pipeline.stage import StageContext
from ray_jobs.registry import Lineage, ModelVersion
from ray_jobs.training import checkpoint


def register(flow: Flow, context: StageContext) -> Registered:
    """Register the candidate and point the alias `champion` at it."""
    metrics = flow.evaluation.tuned | {f"base_{name}": value for name, value in flow.evaluation.base.items()}
    if flow.parity is not None:
        metrics |= {"parity_mean_gap": flow.parity.mean_gap}
    version = _register_tree(flow, context, flow.evaluation.candidate_key, metrics)
    registry.set_alias(context.store, version.name, "champion", version.version)
    return Registered(name=version.name, version=version.version)


def publish_checkpoints(flow: Flow, context: StageContext) -> Published:
    """Register each remaining checkpoint of an adapter as a version, and give each registered checkpoint its alias."""
    store, inputs, best = context.store, flow.train_inputs, flow.trained.checkpoint
    found = checkpoint.committed(store, inputs.checkpoints)
    chosen = publish.others(found, best) if publish.has_adapters(inputs.spec) else []
    trees = {one.key: keys.candidate_key(context.job.id, one.key) for one in chosen}
    if chosen:
        context.on_worker(
            publish.build_adapters, publish.AdapterInputs(train=inputs, trees=trees), compute=inputs.spec.compute
        )
    published = [_published(one, flow.registered.version) for one in found if one.key == best]
    for one in chosen:
        metrics = publish.lineage_metrics(one, inputs.spec)
        published.append(_published(one, _register_tree(flow, context, trees[one.key], metrics).version))
    for row in published:
        registry.set_alias(store, flow.registered.name, publish.alias_of(row.step), row.version)
    return Published(checkpoints=tuple(sorted(published, key=lambda row: row.step)))


def deploy_version(flow: Flow, context: StageContext) -> DeployedEndpoint:
    """Deploy the model and wait until the version answers."""
    settings = deploy.ServeSettings.from_env()
    deployed = deploy.deploy(
        context.store,
        flow.registered.name,
        settings,
        progress=lambda doing, seconds: context.show(seconds, max(seconds, settings.timeout_s), "s", doing=doing),
    )
    return DeployedEndpoint(url=deployed.url, version=deployed.version)


def _register_tree(flow: Flow, context: StageContext, key: str, metrics: dict[str, float]) -> ModelVersion:
    """Register a tree of the store. The same tree and job are the same version."""
    spec = flow.spec
    training = spec.training.model_copy(update={"precision": flow.evaluation.dtype})  # what `auto` became
    lineage = Lineage(
        dataset_digest=flow.dataset.digest,
        base_digest=flow.base.digest,
        spec=spec.model_copy(update={"training": training}),
        code_version=__version__,
        job_id=context.job.id,
        metrics=metrics,
        labels=flow.dataset.labels,
        trial=None if flow.search is None else flow.search.run,
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
