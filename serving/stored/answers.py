"""The stored answers of all teams: whether an answer is stored, and reading, changing and deleting stored ones.

Owns the decisions and the refusals. The records are `ray_jobs.tenancy.answers`, the writing is `writer`. Does not know
the shapes of chat completions and responses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from ray_jobs.errors import KitaeError, ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.tenancy.answers import policy, records
from ray_jobs.tenancy.answers.records import Kind, StoredAnswer
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.http import ids
from serving.http.errors import ApiError, bad_request
from serving.http.ids import Order, Page
from serving.stored.writer import AnswerWriter, Outcome

logger = logging.getLogger(__name__)
T = TypeVar("T")

ID_KINDS: dict[Kind, str] = {"chat": "chatcmpl", "responses": "resp_"}
_WHAT: dict[Kind, tuple[str, str]] = {
    "chat": ("chat completion", "completion_not_found"),
    "responses": ("response", "response_not_found"),
}
_POLICY_TTL_S = 5.0
"""Seconds that a team's policy is cached, and so the latest time at which a change takes effect."""
_SETTLE_S = 5.0
"""Seconds that a reader waits for its team's answers that are being written."""
_WRITTEN_WITHIN_S = 2.0
"""Seconds that a response waits until it is stored, so that the next request can continue it."""


@dataclass
class StoredAnswers:
    """The stored answers of one store. Thread-safe but for `admit`, which is bound to one event loop."""

    store: Store
    quotas: TeamQuotas
    kept_days: int
    """Days after which an answer is deleted; 0: none is stored."""
    on_outcome: Callable[[str], None]
    writer: AnswerWriter = field(init=False)
    _policies: dict[str, tuple[bool, float]] = field(default_factory=dict, init=False)
    """Team → whether it stores, and when that was read (monotonic)."""

    def __post_init__(self) -> None:
        self.writer = AnswerWriter(self.store, self.quotas, self.on_outcome)

    def new_id(self, kind: Kind) -> str:
        return ids.new_id(ID_KINDS[kind], now_s=self.store.now_s())

    async def admit(self, team: str, wanted: bool | None, *, default: bool) -> bool:
        """Return whether a request's answer is to be stored. `wanted`: the request's `store`.

        Raises ApiError for a `store: true` that cannot be followed: 400 if the team stores nothing, 429 if it has
        reached its limit. While the store does not answer, answers are given and not stored, which is counted.
        """
        if wanted is False or (wanted is None and not default):
            return False
        try:
            allowed = self.kept_days > 0 and await self._may_store(team)
        except KitaeError as error:
            logger.error("an answer of team %s is not stored, its policy cannot be read: %s", team, error)
            self.on_outcome("failed")
            return False
        if not allowed and wanted:
            message = f"store is true, and answers of team {team} are not stored here: leave it out, or send false"
            raise bad_request(message, param="store", code="storing_disabled")
        if allowed and not self.writer.has_room(team):
            self.on_outcome("no_room")
            if wanted:
                raise self._no_room(team)
            return False
        return allowed

    async def _may_store(self, team: str) -> bool:
        known = self._policies.get(team)
        if known is None or time.monotonic() - known[1] > _POLICY_TTL_S:
            known = (await asyncio.to_thread(policy.may_store, self.store, team), time.monotonic())
            self._policies[team] = known
        return known[0]

    def _no_room(self, team: str) -> ApiError:
        limits = self.quotas.of(team)
        message = (
            f"team {team} has stored answers up to its limit ({limits.stored_answers} answers, "
            f"{limits.stored_answer_bytes} bytes): delete some, or leave store out"
        )
        headers = {"x-should-retry": "false"}
        return ApiError(429, message, param="store", code="stored_answers_exceeded", headers=headers)

    def keep(self, kind: Kind, record: StoredAnswer) -> Future[Outcome]:
        """Store an answer in the background."""
        return self.writer.submit(kind, record)

    async def kept(self, kind: Kind, record: StoredAnswer) -> bool:
        """Store an answer and wait a moment for it. False: it is not stored, which is logged and counted."""
        future = asyncio.wrap_future(self.writer.submit(kind, record))
        done, _ = await asyncio.wait({future}, timeout=_WRITTEN_WITHIN_S)
        return not done or future.result() == "stored"

    def close(self) -> None:
        """Write what waits. Blocks."""
        self.writer.close()

    def find(self, team: str, kind: Kind, identifier: str) -> StoredAnswer | None:
        """Return a team's answer; None if it does not exist or has expired."""
        if not ids.is_id(ID_KINDS[kind], identifier) or self._expired(identifier):
            return None
        self.writer.settle(team, _SETTLE_S)
        return records.documents(team, kind).find(self.store, identifier)

    def get(self, team: str, kind: Kind, identifier: str) -> StoredAnswer:
        """Return a team's answer. Raises ApiError 404."""
        found = self.find(team, kind, identifier)
        if found is None:
            what, code = _WHAT[kind]
            raise ApiError(404, f"the {what} {identifier[:64]!r} is not stored", code=code)
        return found

    def page(
        self,
        team: str,
        kind: Kind,
        shown: Callable[[StoredAnswer], T],
        *,
        filters: Mapping[str, str],
        limit: int,
        after: str | None,
        order: Order,
    ) -> Page[T]:
        """Return a page of a team's answers that match all filters (`model`, `metadata.{key}`)."""
        self.writer.settle(team, _SETTLE_S)
        documents, id_kind = records.documents(team, kind), ID_KINDS[kind]

        def ids_of(prefix: str) -> Iterator[str]:
            return ids.listed(self.store, prefix, id_kind, self.store.now_s(), after=after, order=order)

        def read(identifier: str) -> T | None:
            found = None if self._expired(identifier) else documents.find(self.store, identifier)
            return shown(found) if found is not None and records.matches(found, filters) else None

        lists = records.filtered(team, kind, filters, ids_of)
        return ids.page(ids.common(lists, order), read, limit=limit)

    def set_metadata(self, team: str, kind: Kind, identifier: str, metadata: Mapping[str, str]) -> StoredAnswer:
        """Replace an answer's metadata. Raises ApiError 404."""
        found = self.get(team, kind, identifier)
        try:
            return records.update_metadata(self.store, kind, found, metadata)
        except ObjectNotFound:
            return self.get(team, kind, identifier)  # 404: it was deleted meanwhile

    def delete(self, team: str, kind: Kind, identifier: str) -> None:
        """Delete an answer. Raises ApiError 404."""
        records.delete(self.store, kind, self.get(team, kind, identifier))

    def sweep(self, now_s: float) -> int:
        """Delete the answers that have expired, of all teams; returns their number."""
        return records.sweep(self.store, now_s, keep_s=self.kept_days * 86_400.0, born_s=_born_s)

    def _expired(self, identifier: str) -> bool:
        return ids.created_at_s(identifier) < self.store.now_s() - self.kept_days * 86_400.0


def _born_s(name: str) -> float | None:
    known = any(ids.is_id(kind, name) for kind in ID_KINDS.values())
    return ids.created_at_s(name) if known else None
