"""The table of clients: in the document for all of the catalogue, with results of the pinned versions only."""

from __future__ import annotations

from dataclasses import replace

from tests.clients.__main__ import SCRIPTS
from tests.clients.catalogue import CLIENTS
from tests.clients.result_table import DOCUMENT, NOT_RUN, PASSED, Outcome, rendered
from tests.repository import ROOT
from tests.serving.clients import RELEASES


def result_of(name: str, document: str) -> str:
    (row,) = [line for line in document.splitlines() if line.startswith(f"| {name} |")]
    return row.split(" | ")[4].strip()


def test_the_document_has_each_client_at_its_pinned_version() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert rendered(CLIENTS, {}, document) == document, "a pin or a client has changed: make test-clients CLIENTS=…"


def test_a_partial_run_keeps_the_other_results() -> None:
    first, second, *_ = CLIENTS
    empty = rendered(CLIENTS, {}, "before\n\n| client | package | version | what it does | result | date |\n")
    assert rendered([], {}, "before\n").startswith("before\n")
    one = rendered(CLIENTS, {first.name: Outcome(first.version, PASSED, "2026-01-01")}, empty)
    both = rendered(CLIENTS, {second.name: Outcome(second.version, "failed: a | b\nc", "2026-01-02")}, one)
    assert [result_of(client.name, both) for client in (first, second)] == [PASSED, "failed: a / b c"]
    assert {result_of(client.name, both) for client in CLIENTS[2:]} == {NOT_RUN}


def test_a_new_version_has_not_run() -> None:
    first, *_ = CLIENTS
    passed = rendered([first], {first.name: Outcome(first.version, PASSED, "2026-01-01")}, "")
    newer = replace(first, packages=(f"{first.package}==99.0",))
    assert result_of(first.name, rendered([newer], {}, passed)) == NOT_RUN


def test_every_script_belongs_to_a_client_and_every_release_has_one() -> None:
    assert {client.script for client in CLIENTS} == {path.name for path in SCRIPTS.iterdir() if path.is_file()}
    assert {f"openai-{release}" for release in RELEASES} <= {client.name for client in CLIENTS}


def test_scripts_name_no_part_of_kitae() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS.iterdir() if path.is_file()}
    assert len(texts) > 15
    assert [name for name, text in texts.items() if "kitae" in text.lower()] == []


def test_the_makefile_lists_the_target() -> None:
    assert "\ntest-clients: setup ## " in (ROOT / "Makefile").read_text(encoding="utf-8")
