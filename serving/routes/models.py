"""`/v1/models`: the models that a caller may use, fine-tune and delete."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request

from ray_jobs import deploy, registry
from ray_jobs.deploy import records
from ray_jobs.registry import api_names
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Store, Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tenancy import audit
from serving.access.auth import Caller, actor_of, caller_of
from serving.fine_tuning import records as jobs
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from serving.http.errors import ApiError, documented
from serving.inference.router import Router, RoutingSnapshot, resolve

_OWNER = "kitae"


def routes(store: Store, router: Router, tuning: FineTuningService) -> APIRouter:
    api = APIRouter(prefix="/v1/models", tags=["models"], responses=documented(400, 404))

    @api.get("")
    async def models(request: Request) -> openai_types.ModelList:
        """List the deployed models and the bases that can be fine-tuned."""
        caller, snapshot = caller_of(request), await router.snapshot()
        cards = [card(snapshot, name, caller) for name in snapshot.names(caller)]
        deployed = {each.id for each in cards}
        others = [_base(entry) for entry in snapshot.bases.values() if entry.name not in deployed]
        return openai_types.ModelList(data=[*cards, *others])

    @api.get("/{model:path}")
    async def model(request: Request, model: str) -> openai_types.Model:
        snapshot = await router.snapshot()
        if model in snapshot.bases and model not in snapshot.records:
            return _base(snapshot.bases[model])
        return card(snapshot, model, caller_of(request))

    @api.delete("/{model:path}", responses=documented(403, 409))
    def delete(request: Request, model: str) -> openai_types.Deleted:
        """Delete a fine-tuned model of the caller's team, with its checkpoints."""
        caller = caller_of(request)
        name, at, _ = api_names.registry_ref(model).partition("@")
        team = registry.owner(store, name)
        home = Workspace(store, team) if team is not None and (team == caller.team or caller.admin) else None
        versions = [] if home is None else registry.versions(home, name)
        if home is None or not versions:
            raise ApiError(404, f"the model {model!r} does not exist", code="model_not_found", param="model")
        if at:
            whole = api_names.api_name(versions[0])
            message = f"{model!r} is one version: delete the model, {whole!r}, with all it has"
            raise ApiError(403, message, code="not_deletable", param="model")
        job = jobs.find(store, home.team, name)
        if job is not None and tuning.is_open(job):
            message = f"{model!r} is being made by {job.id}: cancel the job first, or wait until it ends"
            raise ApiError(409, message, code="model_in_use", param="model", headers={"x-should-retry": "false"})
        details: dict[str, audit.Value] = {"versions": [version.version for version in versions]}
        with audit.recorded(store, actor_of(request), "model.delete", name, team=home.team, details=details):
            delete_model(home, name)
        router.forget()
        return openai_types.Deleted(id=model, object="model")

    return api


def delete_model(store: Workspace, name: str) -> None:
    """Undeploy a model, then delete its aliases and versions."""
    record = records.read(store, name)
    if record is not None and record.kind == "adapter":
        records.remove(store, name)  # its base's engine keeps running and evicts the adapter when it needs memory
    elif record is not None:
        deploy.undeploy(store, name, deploy.ServeSettings.from_env())
    for alias in registry.aliases(store, name):
        registry.delete_alias(store, name, alias)
    for version in registry.versions(store, name):
        registry.delete_version(store, name, version.version)


def card(snapshot: RoutingSnapshot, model: str, caller: Caller) -> openai_types.Model:
    """Return a deployed model. Raises ApiError 404 if it is not deployed or not visible to the caller."""
    route = resolve(snapshot, model, caller)
    name, _, number = route.model.partition("@")
    version, base = snapshot.version(name, number), snapshot.bases.get(name)
    if version is not None:
        created = datetime.fromisoformat(version.lineage.created_at)
    else:
        created = base.added_at if base is not None else _first_use(snapshot, name)
    return openai_types.Model(
        id=route.api_name or model,
        created=int(created.timestamp()),
        owned_by=_OWNER if version is None else version.team,
        task=route.task,
        fine_tunable=model in snapshot.bases,
        gated=None if version is None else version.lineage.gated,
        max_model_len=route.serving.max_model_len if TASKS[route.task].generates else None,
    )


def _first_use(snapshot: RoutingSnapshot, name: str) -> datetime:
    """Return when the first deployed model was made from a base that is in no catalogue."""
    record = snapshot.records[name]
    made = (
        datetime.fromisoformat(version.lineage.created_at)
        for versions in snapshot.versions.values()
        for version in versions
        if record.runs_base(version.base_digest)
    )
    return min(made, default=datetime.fromtimestamp(0, UTC))


def _base(entry: CatalogueEntry) -> openai_types.Model:
    return openai_types.Model(
        id=entry.name,
        created=int(entry.added_at.timestamp()),
        owned_by=_OWNER,
        task=entry.tasks[0],
        deployed=False,
        fine_tunable=True,
        max_model_len=entry.serving.max_model_len,
    )
