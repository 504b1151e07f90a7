"""The webhook endpoints of a team: URL, event types and signing secret.

Owns `webhooks/{team}/{id}.json` and the signature. Does not know how an event is delivered. The record holds the secret
itself, since signing needs it: a reader of the bucket can sign as Kitae. The secret is shown once, by the command that
adds the endpoint, and is in no listing, `repr` or log.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import ObjectNotFound, SpecError
from ray_jobs.spec import NAME_RULE, Name, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tenancy.webhooks import targets
from ray_jobs.tenancy.webhooks.breaker import OpenBreaker
from ray_jobs.tenancy.webhooks.targets import Policy

EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
]
EVENTS: tuple[EventType, ...] = get_args(EventType)

_SECRET_PREFIX = "whsec_"
MAX_ENDPOINTS = 20


class Endpoint(BaseModel, frozen=True):
    """One receiver of a team."""

    id: str
    team: Name
    url: str
    events: tuple[EventType, ...]
    """Event types it receives."""
    secret: str = Field(repr=False)
    """`whsec_` and the base64 of the signing key."""
    created_at: AwareDatetime
    disabled_at: AwareDatetime | None = None
    """Time at which it was disabled. None: enabled."""
    disabled_why: str | None = None
    breaker: OpenBreaker | None = None
    """None: closed. Its receiver gets requests."""

    def public(self) -> dict[str, Any]:
        """Everything but the secret."""
        return self.model_dump(mode="json", exclude={"secret"})


def add(store: Store, team: str, url: str, events: Sequence[EventType], policy: Policy) -> Endpoint:
    """Record an endpoint, with a new secret. Raises SpecError if requests to the URL are not allowed.

    A host unknown to this machine's DNS is accepted: the sending machine resolves it again before each request.
    """
    targets.check_url(url)
    try:
        addresses = targets.look_up(url)
    except OSError:
        addresses = []
    if addresses and (reason := targets.refusal(url, addresses, policy)) is not None:
        raise SpecError(f"the URL is not allowed: {reason}")
    if not events:
        raise SpecError(f"no event type is given: name some, such as {EVENTS[0]}")
    if len(known := endpoints(store, team)) >= MAX_ENDPOINTS:
        raise SpecError(f"team {team} has {len(known)} webhooks, and may have {MAX_ENDPOINTS}: remove one")
    endpoint = Endpoint(
        id=f"we_{secrets.token_hex(12)}",
        team=team,
        url=url,
        events=tuple(dict.fromkeys(events)),
        secret=_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode(),
        created_at=store.now(),
    )
    store.put_json(_of(team).key(endpoint.id), endpoint.model_dump(mode="json"), if_absent=True)
    return endpoint


def endpoints(store: Store, team: str) -> list[Endpoint]:
    """A team's endpoints, the oldest first."""
    return sorted(_of(team).read_all(store).values(), key=lambda endpoint: (endpoint.created_at, endpoint.id))


def get(store: Store, team: str, endpoint_id: str) -> Endpoint:
    """The endpoint. Raises SpecError if the team has none with this id."""
    endpoint = find(store, team, endpoint_id)
    if endpoint is None:
        raise SpecError(f"team {team} has no webhook {endpoint_id!r}; `kitae webhooks list --team {team}` shows them")
    return endpoint


def find(store: Store, team: str, endpoint_id: str) -> Endpoint | None:
    """The endpoint; None if it does not exist."""
    return None if "/" in endpoint_id else _of(team).read(store, endpoint_id)


def remove(store: Store, team: str, endpoint_id: str) -> None:
    """Delete the endpoint and its secret; its pending deliveries are dropped. Raises SpecError for an unknown id."""
    store.delete(_of(team).key(get(store, team, endpoint_id).id))


def disable(store: Store, endpoint: Endpoint, why: str) -> None:
    """Disable the endpoint. Concurrent changes of it are kept; a removed one stays removed."""
    off = {"disabled_at": store.now(), "disabled_why": why}
    _change(store, endpoint, lambda old: old if old.disabled_at is not None else old.model_copy(update=off))


def set_breaker(store: Store, endpoint: Endpoint, breaker: OpenBreaker | None) -> None:
    """Record that the endpoint's breaker is open, or closed (None); as `disable`."""
    _change(store, endpoint, lambda old: old.model_copy(update={"breaker": breaker}))


def _change(store: Store, endpoint: Endpoint, change: Callable[[Endpoint], Endpoint]) -> None:
    def changed(old: Endpoint | None) -> Endpoint:
        if old is None:
            raise ObjectNotFound(f"webhook {endpoint.id} was removed")
        return change(old)

    with suppress(ObjectNotFound):
        _of(endpoint.team).update(store, endpoint.id, changed)


def sign(secret: str, event_id: str, timestamp_s: int, body: bytes) -> str:
    """The header `webhook-signature` (https://www.standardwebhooks.com, as OpenAI's client checks it)."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signed = b".".join([event_id.encode(), str(timestamp_s).encode(), body])
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _of(team: str) -> Documents[Endpoint]:
    if not is_name(team):
        raise SpecError(f"{team!r} cannot be a team's name: {NAME_RULE}")
    return Documents(f"webhooks/{team}/", Endpoint, "a webhook endpoint")
