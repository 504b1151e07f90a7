"""A team's reach in the store, and documents that no honest job writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Workspace
from tests.repository import ROOT

GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"id": "\xff"}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e999",
    "an empty object": b"{}",
    "NaN": b'{"id": NaN, "at": NaN, "message": NaN}',
    "a lone surrogate": b'{"id": "\\ud800", "message": "\\ud800", "version": "\\ud800"}',
    "deep nesting": b"[" * 50_000,
    "deep nesting within a record": b'{"result": ' + b"[" * 500 + b"]" * 500 + b"}",
    "wrong types": b'{"id": 1, "spec": [], "attempt": "x", "created_at": -1e300, "version": {}, "name": 7, "kind": []}',
    "a newer value": b'{"kind": "of next year", "level": "fatal", "state": "frozen"}',
}


def reach(team: str) -> tuple[str, ...]:
    """Prefixes that a team's credentials may write, from the policy that `infra/` gives them."""
    policy = json.loads((ROOT / "infra/object-store/policy-team.json").read_text())
    written = [each for each in policy["Statement"] if "s3:PutObject" in each["Action"] and "Condition" not in each]
    found = [resource.partition("PREFIX/")[2].rstrip("*") for each in written for resource in each["Resource"]]
    return tuple(prefix.replace("TEAM", team) for prefix in found)


@dataclass(frozen=True)
class Pod:
    """Writes with a team's credentials."""

    store: Workspace

    def put(self, key: str, document: Any) -> None:
        """Write bytes, or a document as JSON. Raises AssertionError for a key beyond the team's reach."""
        assert self.store.path(key).startswith(reach(self.store.team)), key
        self.store.put(key, document if isinstance(document, bytes) else json.dumps(document).encode())

    @contextmanager
    def instead(self, documents: dict[str, Any]) -> Iterator[None]:
        """Documents that are there for the block, in place of what was there before."""
        before: dict[str, bytes | None] = {}
        for key, document in documents.items():
            try:
                before[key] = self.store.get(key)
            except ObjectNotFound:
                before[key] = None
            self.put(key, document)
        try:
            yield
        finally:
            for key, data in before.items():
                self.store.delete(key) if data is None else self.store.put(key, data)
