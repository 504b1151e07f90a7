"""Permissions of checkpoints by the official client: shares of a model with teams."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from ray_jobs.registry import shares
from ray_jobs.tenancy import audit
from tests.serving.answers_server import MODEL, AnswersServer, answers_server
from tests.serving.api_harness import KEY
from tests.serving.routing import register_next


@pytest.fixture
def here() -> Iterator[AnswersServer]:
    with answers_server() as running:
        shares.unshare(running.store, MODEL)
        yield running


@pytest.fixture
def operator(here: AnswersServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{here.server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_a_permission_is_a_share(here: AnswersServer, operator: openai.OpenAI) -> None:
    permissions = operator.fine_tuning.checkpoints.permissions
    made = list(permissions.create(MODEL, project_ids=["sales", "board"]))
    assert {each.project_id for each in made} == {"sales", "board"}
    assert all(each.id.startswith("cp_") and each.created_at > 0 for each in made)
    assert shares.read(here.store, MODEL).teams == ("board", "sales")
    listed = list(permissions.list(MODEL, limit=1))
    assert {each.id for each in listed} == {each.id for each in made}
    assert [each.project_id for each in permissions.list(MODEL, project_id="board")] == ["board"]
    retrieved = permissions.retrieve(MODEL, order="ascending", limit=1)
    assert (retrieved.has_more, len(retrieved.data)) == (True, 1)
    sales = next(each for each in made if each.project_id == "sales")
    deleted = permissions.delete(sales.id, fine_tuned_model_checkpoint=MODEL)
    assert (deleted.deleted, deleted.id) == (True, sales.id)
    assert shares.read(here.store, MODEL).teams == ("board",)
    with pytest.raises(openai.NotFoundError) as caught:
        permissions.delete(sales.id, fine_tuned_model_checkpoint=MODEL)
    assert caught.value.code == "permission_not_found"
    today = here.store.now().date()
    # The store's clock stands still, so the entries have no order.
    assert sorted(entry.action for entry in audit.read(here.store, today, today)) == ["share.add", "share.remove"]


def test_a_star_is_every_team(here: AnswersServer, operator: openai.OpenAI) -> None:
    permissions = operator.fine_tuning.checkpoints.permissions
    (made,) = permissions.create(MODEL, project_ids=["*"])
    assert shares.read(here.store, MODEL).everyone
    permissions.delete(made.id, fine_tuned_model_checkpoint=MODEL)
    assert not shares.read(here.store, MODEL).everyone


def test_only_an_admin_key_may_see_or_change_permissions(here: AnswersServer) -> None:
    permissions = here.client.fine_tuning.checkpoints.permissions
    for model in (MODEL, "nothing"):
        for call in (
            lambda name: permissions.create(name, project_ids=["sales"]),
            permissions.list,
            lambda name: permissions.delete("cp_1", fine_tuned_model_checkpoint=name),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                call(model)
    assert shares.read_all(here.store) == {}


def test_what_cannot_be_shared_is_refused(here: AnswersServer, operator: openai.OpenAI) -> None:
    permissions = operator.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.BadRequestError) as wrong:
        permissions.create(MODEL, project_ids=["sales", "Sales Team"])
    assert wrong.value.param == "project_ids[1]"
    with pytest.raises(openai.NotFoundError) as unknown:
        permissions.create("nothing", project_ids=["sales"])
    assert unknown.value.code == "model_not_found"
    register_next(here.store, "ungated", gated=False)
    with pytest.raises(openai.BadRequestError) as ungated:
        permissions.create("ungated", project_ids=["sales"])
    assert ungated.value.code == "not_gated"
    assert shares.read_all(here.store) == {}
