"""The records of stored answers, and their retention.

    teams/{team}/answers/{kind}/{id}.json          request and answer; ids begin with their time
    teams/{team}/index/answers/{kind}/{digest}/…   which records have a model or a metadata pair; empty objects

`kind` is `chat` for chat completions and `responses` for answers of the Responses API. Owns these objects. Does not
know the shapes of requests and answers, nor who may read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.index import Index

Kind = Literal["chat", "responses"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class StoredAnswer(BaseModel, frozen=True):
    """One request and its answer."""

    id: str
    team: str
    key_id: str
    model: str
    """Name of the model as the answer has it, with its version."""
    requested_model: str
    """Name of the model as the request has it."""
    created_at: int
    metadata: dict[str, str] = Field(default_factory=dict)
    input: list[dict[str, Any]]
    """Messages of a chat completion; items of a response, those of earlier responses included."""
    request: dict[str, Any] = Field(default_factory=dict)
    """The other fields of the request that the answer depends on."""
    answer: dict[str, Any]
    """The whole object that the client received."""

    @property
    def values(self) -> list[str]:
        """What a listing can filter by."""
        models = dict.fromkeys((self.model, self.requested_model))
        pairs = [filter_value(f"metadata.{name}", value) for name, value in self.metadata.items()]
        return [*(filter_value("model", name) for name in models), *pairs]


def filter_value(name: str, value: str) -> str:
    """What a filter's value is indexed as; `name` is `model` or `metadata.{key}`."""
    return f"{name}={value}"


def folder(team: str, kind: Kind) -> str:
    return f"teams/{team}/answers/{kind}/"


def documents(team: str, kind: Kind) -> Documents[StoredAnswer]:
    return Documents(folder(team, kind), StoredAnswer, "a stored answer")


def index(team: str, kind: Kind) -> Index:
    return Index(f"teams/{team}/index/answers/{kind}/")


def write(store: Store, kind: Kind, record: StoredAnswer) -> None:
    """Write a record after its index entries, so that every record can be found by its values. Idempotent."""
    index(record.team, kind).add(store, record.id, record.values)
    store.put_json(documents(record.team, kind).key(record.id), record.model_dump(mode="json"))


def update_metadata(store: Store, kind: Kind, record: StoredAnswer, metadata: Mapping[str, str]) -> StoredAnswer:
    """Replace a record's metadata. Raises ObjectNotFound if it was deleted meanwhile."""
    team, names = record.team, dict(metadata)
    index(team, kind).add(store, record.id, record.model_copy(update={"metadata": names}).values)
    replaced = record

    def change(old: StoredAnswer | None) -> StoredAnswer:
        nonlocal replaced
        if old is None:
            raise ObjectNotFound(f"the answer {record.id} was deleted")
        replaced = old
        return old.model_copy(update={"metadata": names})

    new = documents(team, kind).update(store, record.id, change)
    gone = [value for value in replaced.values if value not in new.values]
    index(team, kind).remove(store, record.id, gone)
    return new


def delete(store: Store, kind: Kind, record: StoredAnswer) -> None:
    """Delete a record, then its index entries."""
    store.delete(documents(record.team, kind).key(record.id))
    index(record.team, kind).remove(store, record.id, record.values)


def filtered(
    team: str, kind: Kind, filters: Mapping[str, str], ids_of: Callable[[str], Iterator[str]]
) -> list[Iterator[str]]:
    """One list of ids for each filter, or one of all ids without a filter.

    `ids_of(prefix)`: the ids in a folder. An id that is in all lists matches all filters, unless it was deleted or its
    metadata changed: compare with its record.
    """
    found = index(team, kind)
    folders = [found.folder(filter_value(name, value)) for name, value in filters.items()]
    return [ids_of(prefix) for prefix in folders or [folder(team, kind)]]


def matches(record: StoredAnswer, filters: Mapping[str, str]) -> bool:
    """Whether a record has these filters' values: `model`, `metadata.{key}`."""
    return {filter_value(name, value) for name, value in filters.items()} <= set(record.values)


def totals(store: Store, team: str) -> tuple[int, int]:
    """Number and bytes of a team's stored answers; one request per 1,000."""
    sizes = [info.size_bytes for kind in KINDS for info in store.list(folder(team, kind))]
    return len(sizes), sum(sizes)


def sweep(store: Store, now_s: float, *, keep_s: float, born_s: Callable[[str], float | None]) -> int:
    """Delete the answers made more than `keep_s` seconds ago, with their index entries; returns their number.

    `born_s`: the time in an id, in Unix seconds; None: not an id. A change of its metadata does not prolong an answer's
    life. Costs one listing per 1,000 index entries of a team.
    """

    def is_old(key: str) -> bool:
        born = born_s(key.rpartition("/")[2].removesuffix(".json"))
        return born is not None and born < now_s - keep_s

    done = 0
    for team in store.list_dirs("teams/"):
        for kind in KINDS:
            answers = [info.key for info in takewhile(lambda info: is_old(info.key), store.list(folder(team, kind)))]
            entries = [info.key for info in store.list(index(team, kind).prefix) if is_old(info.key)]
            for keys in (answers, entries):
                store.delete(keys)
            done += len(answers)
    return done
