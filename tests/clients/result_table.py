"""The table in docs/clients.md: each client of the catalogue with its last result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.clients.catalogue import Client
from tests.repository import ROOT

DOCUMENT = ROOT / "docs" / "clients.md"
PASSED = "passed"
NOT_RUN = "not run"
_HEAD = "| client | package | version | what it does | result | date |\n|---|---|---|---|---|---|\n"
_ROW = re.compile(r"^\| ([\w.-]+) \| `[^|]+` \| ([^|]+) \| [^|]+ \| ([^|]+) \| ([^|]*) \|\n", flags=re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    version: str
    result: str
    date: str


def rendered(clients: Iterable[Client], outcomes: Mapping[str, Outcome], document: str) -> str:
    """The document with new outcomes. Clients without one keep theirs, unless their pinned version has changed."""
    before, _, rest = document.partition(_HEAD)
    rows = list(_ROW.finditer(rest))
    after = rest[rows[-1].end() :] if rows else rest
    known = {**{row[1]: Outcome(row[2], row[3], row[4]) for row in rows}, **outcomes}
    lines = [_line(client, known.get(client.name)) for client in clients]
    return before + _HEAD + "".join(lines) + after


def _line(client: Client, outcome: Outcome | None) -> str:
    if outcome is None or outcome.version != client.version:
        outcome = Outcome(client.version, NOT_RUN, "")
    result = " ".join(outcome.result.replace("|", "/").split())
    return f"| {client.name} | `{client.package}` | {client.version} | {client.does} | {result} | {outcome.date} |\n"
