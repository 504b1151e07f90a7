"""`/v1/responses`: routes over `serving.responses` and `serving.stored`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serving.access.auth import caller_of
from serving.http import ids, openai_types
from serving.http.bodies import StrictRoute
from serving.http.errors import ApiError, bad_request, documented
from serving.http.ids import Order
from serving.inference.generation import Generator
from serving.inference.streams import sent_events
from serving.responses import objects
from serving.responses.answering import KeptResponse, earlier_items, events_of, started_answer
from serving.responses.events import ResponseAnswer, as_chunk, as_text
from serving.responses.request import RESPONSE_FIELDS, parse, parse_fields
from serving.routes.inference import body_schema, documented_answer, read_json
from serving.routes.stored_completions import PageLimit, page_in
from serving.stored.answers import StoredAnswers


def routes(generator: Generator, stored: StoredAnswers) -> APIRouter:
    api = APIRouter(prefix="/v1/responses", tags=["responses"], responses=documented(400, 404))
    reading = APIRouter(route_class=StrictRoute)

    @api.post(
        "", openapi_extra=body_schema(RESPONSE_FIELDS, ["model"]), responses=documented_answer("response", "output")
    )
    async def create_response(request: Request) -> Response:
        """Create a response; with `stream`, as server-sent events. It is stored unless `store` is false."""
        given = parse_fields(await read_json(request))
        caller = caller_of(request)
        earlier = await earlier_items(stored, caller.team, given.get("previous_response_id"))
        asked = parse(given, earlier)
        is_stored = await stored.admit(caller.team, given.get("store"), default=True)
        started = await started_answer(generator, request, asked)
        answer = ResponseAnswer(
            objects.new_response(
                asked,
                stored.new_id("responses"),
                started.route.public_name,
                int(stored.store.now_s()),
                is_stored=is_stored,
            ),
            lambda prefix: ids.new_id(prefix, now_s=stored.store.now_s()),
        )
        kept = KeptResponse(stored, caller, asked, answer)
        if started.whole is not None:
            answer.add(as_chunk(started.whole))
            answer.end_items()
            await kept.store()
            answer.end(stored.store.now_s())
            return JSONResponse(answer.response)

        def failed(error: ApiError) -> None:
            request.state.stream_status = error.status

        events = events_of(started, answer, kept)
        sent = sent_events([], events, failed, lambda error: as_text(answer.fail(asked.renamed(error))))
        return StreamingResponse(sent, media_type="text/event-stream")

    @reading.get("/{response_id}")
    def get_response(request: Request, response_id: str, stream: bool = False) -> openai_types.StoredResponse:
        if stream:
            message = "a stored response is not streamed: leave stream out"
            raise bad_request(message, param="stream", code="unsupported")
        found = stored.get(caller_of(request).team, "responses", response_id)
        return openai_types.StoredResponse.model_validate(found.answer)

    @reading.delete("/{response_id}")
    def delete_response(request: Request, response_id: str) -> openai_types.Deleted:
        stored.delete(caller_of(request).team, "responses", response_id)
        return openai_types.Deleted(id=response_id, object="response")

    @reading.get("/{response_id}/input_items")
    def list_input_items(
        request: Request,
        response_id: str,
        limit: PageLimit = 20,
        after: str | None = None,
        order: Order = "desc",
        include: Annotated[list[str] | None, Query(max_length=16)] = None,
    ) -> openai_types.ObjectPage:
        """List the items that the model was given, those of earlier responses included, the last one first."""
        found = stored.get(caller_of(request).team, "responses", response_id)
        return page_in(found.input, limit=limit, after=after, order=order)

    api.include_router(reading)
    return api
