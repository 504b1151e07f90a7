"""docs/architecture.md and docs/glossary.md name the rooms, files and functions that exist."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.repository import ROOT

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
PAGES = {"architecture": ARCHITECTURE, "glossary": GLOSSARY}
ROOMS = re.findall(r"^\| (\d+) \| `(ray_jobs|serving)/(\w+)(?:/|\.py)` \|", ARCHITECTURE, flags=re.MULTILINE)
LINES = [(page, line) for page, text in PAGES.items() for line in text.splitlines()]
TREES = "ray_jobs|serving|tests|charts|infra|examples|docs|requirements|benchmarks"


@pytest.mark.parametrize("package", ["ray_jobs", "serving"])
def test_the_rooms_and_floors_are_those_of_the_layer_contracts(package: str) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"]: contract for contract in document["tool"]["importlinter"]["contracts"]}
    floors = [{room.strip() for room in re.split("[:|]", layer)} for layer in reversed(contracts[package]["layers"])]
    listed = {room: int(floor) for floor, owner, room in ROOMS if owner == package}
    assert listed == {room: floor for floor, rooms in enumerate(floors, start=1) for room in rooms}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = re.findall(rf"`((?:{TREES})/[\w./-]*)`", PAGES[page])
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_named_function_is_in_its_file() -> None:
    named = [match for _, line in LINES for match in re.findall(r"`(\w+)` in `([\w/]+\.py)`", line)]
    assert len(named) >= 3
    missing = [
        f"{name} in {path}"
        for name, path in named
        if not re.search(rf"^(?:def|class) {name}\b|^{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_the_glossary_has_each_term_once() -> None:
    terms = re.findall(r"^\| ([^|`]+) \| [^|]+ \| `", GLOSSARY, flags=re.MULTILINE)
    assert len(terms) >= 60
    assert sorted(terms, key=str.lower) == sorted(set(terms), key=str.lower)


def test_the_questions_of_a_newcomer_have_answers_with_a_path() -> None:
    table = ARCHITECTURE.partition("## Where is…?")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| .+\? \| (.+) \|$", table, flags=re.MULTILINE)
    assert len(answers) >= 10
    assert [answer for answer in answers if "`" not in answer] == []
