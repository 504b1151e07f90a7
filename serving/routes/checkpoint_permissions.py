"""`/v1/fine_tuning/checkpoints/{checkpoint}/permissions`: the shares of a model, as OpenAI's API names them.

A project is a team, and a permission is a team's share of the model (`ray_jobs.registry.shares`). Only an admin key may
see or change them, as `kitae share` is the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from ray_jobs import registry
from ray_jobs.digests import canonical_digest
from ray_jobs.errors import RegistryError
from ray_jobs.registry import api_names, shares
from ray_jobs.registry.model import ModelVersion
from ray_jobs.registry.shares import Share
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store
from ray_jobs.tenancy import audit
from serving.access.auth import actor_of, caller_of
from serving.http import openai_types
from serving.http.bodies import StrictRoute
from serving.http.errors import ApiError, bad_request, documented

EVERYONE = "*"
"""The project id of a share with every team."""
_OBJECT = "checkpoint.permission"
PageLimit = Annotated[int, Query(ge=1, le=100)]
TimeOrder = Literal["ascending", "descending"]


def routes(store: Store) -> APIRouter:
    api = APIRouter(
        prefix="/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions",
        tags=["fine-tuning"],
        route_class=StrictRoute,
        responses=documented(400, 403, 404),
    )

    @api.post("")
    def create_permissions(
        request: Request, checkpoint: str, body: openai_types.CreateCheckpointPermissions
    ) -> openai_types.CheckpointPermissionList:
        """Share a model with teams (`project_ids`). Every version that passed the gate is shared with it."""
        version = _version(store, request, checkpoint)
        for i, project in enumerate(body.project_ids):
            if project != EVERYONE and not is_name(project):
                message = f"project_ids[{i}] is {project[:64]!r}, which cannot be a team: {NAME_RULE}"
                raise bad_request(message, param=f"project_ids[{i}]")
        teams, everyone = [each for each in body.project_ids if each != EVERYONE], EVERYONE in body.project_ids
        if not version.lineage.gated:
            message = f"{checkpoint!r} did not pass the gate, so it cannot be shared (`kitae share --ungated` does)"
            raise bad_request(message, code="not_gated")
        details: dict[str, audit.Value] = {"teams": list(body.project_ids)}
        with audit.recorded(store, actor_of(request), "share.add", version.name, team=version.team, details=details):
            made = shares.share(store, version.name, teams=teams, everyone=everyone)
        wanted = set(body.project_ids)
        return _page([each for each in _permissions(checkpoint, version, made) if each.project_id in wanted])

    @api.get("")
    def list_permissions(
        request: Request,
        checkpoint: str,
        project_id: str | None = None,
        limit: PageLimit = 10,
        after: str | None = None,
        order: TimeOrder = "descending",
    ) -> openai_types.CheckpointPermissionList:
        """List the teams with which a model is shared."""
        version = _version(store, request, checkpoint)
        found = _permissions(checkpoint, version, shares.read(store, version.name))
        found = [each for each in found if project_id in (None, each.project_id)]
        found = found if order == "ascending" else found[::-1]
        names = [each.id for each in found]
        if after is not None and after not in names:
            raise bad_request(f"after is {after[:64]!r}, which is not an id of this list", param="after")
        left = found[0 if after is None else names.index(after) + 1 :]
        return _page(left[:limit], more=len(left) > limit)

    @api.delete("/{permission_id}")
    def delete_permission(request: Request, checkpoint: str, permission_id: str) -> openai_types.Deleted:
        """Revoke a team's share."""
        version = _version(store, request, checkpoint)
        found = _permissions(checkpoint, version, shares.read(store, version.name))
        project = next((each.project_id for each in found if each.id == permission_id), None)
        if project is None:
            raise _unknown(permission_id)
        everyone = project == EVERYONE
        details: dict[str, audit.Value] = {"teams": [project]}
        with audit.recorded(store, actor_of(request), "share.remove", version.name, team=version.team, details=details):
            try:
                shares.unshare(store, version.name, teams=[] if everyone else [project], everyone=everyone)
            except RegistryError as error:  # revoked meanwhile
                raise _unknown(permission_id) from error
        return openai_types.Deleted(id=permission_id, object=_OBJECT)

    return api


def _version(store: Store, request: Request, checkpoint: str) -> ModelVersion:
    """Return the version that a name means. Raises ApiError 403 without an admin key, 404 for an unknown one."""
    if not caller_of(request).admin:
        raise ApiError(403, "permissions of checkpoints need a key with the scope admin", code="permission_denied")
    reference = api_names.registry_ref(checkpoint)
    try:
        return registry.get(registry.workspace_of(store, reference.partition("@")[0]), reference)
    except RegistryError as error:
        message = f"the model {checkpoint[:200]!r} does not exist"
        raise ApiError(404, message, code="model_not_found", param="checkpoint") from error


def _permissions(checkpoint: str, version: ModelVersion, share: Share) -> list[openai_types.CheckpointPermission]:
    """Return a model's permissions, oldest first. One of a share without a time has that of its version."""
    times: Mapping[str, int] = {team: int(at.timestamp()) for team, at in share.added_at.items()}
    made = int(datetime.fromisoformat(version.lineage.created_at).timestamp())
    found = [
        openai_types.CheckpointPermission(
            id=f"cp_{canonical_digest({'model': version.name, 'project': project}, 24)}",
            created_at=times.get(project, made),
            project_id=project,
        )
        for project in [*share.teams, *([EVERYONE] if share.everyone else [])]
    ]
    return sorted(found, key=lambda each: (each.created_at, each.project_id))


def _page(
    found: list[openai_types.CheckpointPermission], *, more: bool = False
) -> openai_types.CheckpointPermissionList:
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return openai_types.CheckpointPermissionList(data=found, has_more=more, first_id=first, last_id=last)


def _unknown(permission_id: str) -> ApiError:
    return ApiError(404, f"the permission {permission_id[:64]!r} does not exist", code="permission_not_found")
