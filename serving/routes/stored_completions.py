"""Stored chat completions, `GET|POST|DELETE /v1/chat/completions…`: routes over `serving.stored`.

They are made by `POST /v1/chat/completions` with `store: true` (`inference`).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from serving.access.auth import caller_of
from serving.http import openai_types
from serving.http.bodies import StrictRoute, metadata_filter
from serving.http.errors import bad_request, documented
from serving.http.ids import Order
from serving.stored.answers import StoredAnswers
from serving.stored.chat_completions import messages_of, shown

MAX_ANSWERS_PAGE = 100
PageLimit = Annotated[int, Query(ge=1, le=MAX_ANSWERS_PAGE)]
DELETED = "chat.completion.deleted"


def routes(stored: StoredAnswers) -> APIRouter:
    api = APIRouter(
        prefix="/v1/chat/completions",
        tags=["stored completions"],
        route_class=StrictRoute,
        responses=documented(400, 404),
    )

    @api.get("")
    def list_completions(
        request: Request,
        model: Annotated[str | None, Query(max_length=512)] = None,
        limit: PageLimit = 20,
        after: str | None = None,
        order: Order = "asc",
    ) -> openai_types.ObjectPage:
        """List stored chat completions, oldest first. `model` and `metadata[key]=value`, which may be repeated, filter
        them."""
        filters = {f"metadata.{name}": value for name, value in metadata_filter(request).items()}
        filters |= {} if model is None else {"model": model}
        team = caller_of(request).team
        data, more = stored.page(team, "chat", shown, filters=filters, limit=limit, after=after, order=order)
        return page_of(data, more)

    @api.get("/{completion_id}")
    def get_completion(request: Request, completion_id: str) -> openai_types.StoredCompletion:
        return _shown(stored, request, completion_id)

    @api.post("/{completion_id}")
    def update_completion(
        request: Request, completion_id: str, body: openai_types.UpdateStoredCompletion
    ) -> openai_types.StoredCompletion:
        """Replace the metadata of a stored chat completion."""
        stored.set_metadata(caller_of(request).team, "chat", completion_id, body.metadata or {})
        return _shown(stored, request, completion_id)

    @api.delete("/{completion_id}")
    def delete_completion(request: Request, completion_id: str) -> openai_types.Deleted:
        stored.delete(caller_of(request).team, "chat", completion_id)
        return openai_types.Deleted(id=completion_id, object=DELETED)

    @api.get("/{completion_id}/messages")
    def list_messages(
        request: Request, completion_id: str, limit: PageLimit = 20, after: str | None = None, order: Order = "asc"
    ) -> openai_types.ObjectPage:
        """List the messages of a stored request, the first one first."""
        messages = messages_of(stored.get(caller_of(request).team, "chat", completion_id))
        return page_in(messages, limit=limit, after=after, order=order)

    return api


def _shown(stored: StoredAnswers, request: Request, completion_id: str) -> openai_types.StoredCompletion:
    found = stored.get(caller_of(request).team, "chat", completion_id)
    return openai_types.StoredCompletion.model_validate(shown(found))


def page_in(items: list[dict[str, Any]], *, limit: int, after: str | None, order: Order) -> openai_types.ObjectPage:
    """Return a page of a short list, given in ascending order. Raises ApiError 400 for an `after` that is not in it."""
    items = items if order == "asc" else items[::-1]
    names = [item["id"] for item in items]
    if after is not None and after not in names:
        raise bad_request(f"after is {after[:64]!r}, which is not an id of this list", param="after")
    left = items[0 if after is None else names.index(after) + 1 :]
    return page_of(left[:limit], len(left) > limit)


def page_of(data: list[dict[str, Any]], more: bool) -> openai_types.ObjectPage:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return openai_types.ObjectPage(data=data, has_more=more, first_id=first, last_id=last)
