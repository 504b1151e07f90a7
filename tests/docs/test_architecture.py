"""The documents name rooms, files, modules and functions that exist; the glossary has each term once."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.repository import ROOT

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
ARCHITECTURE, GLOSSARY = DOCUMENTS["docs/architecture.md"], DOCUMENTS["docs/glossary.md"]
ROOMS = re.findall(r"^\| (\d+) \| `(ray_jobs|serving)/(\w+)(?:/|\.py)` \|", ARCHITECTURE, flags=re.MULTILINE)
PATH = re.compile(
    r"`((?:ray_jobs|serving|tests|charts|infra|examples|docs|requirements|benchmarks)/[\w./-]*?)(?:#[\w-]+)?`"
)
MODULE = re.compile(r"`((?:ray_jobs|serving)(?:\.\w+)+)`")
DEFINED = re.compile(r"`(\w+)` in `([\w/]+\.py)`")


def defines(path: str, name: str) -> bool:
    source = (ROOT / path).read_text(encoding="utf-8")
    return re.search(rf"^(?:def|class|async def) {name}\b|^{name}\b", source, flags=re.MULTILINE) is not None


def is_module_or_member(dotted: str) -> bool:
    for inner in (dotted, dotted.rpartition(".")[0]):
        base = inner.replace(".", "/")
        for file in (f"{base}.py", f"{base}/__init__.py"):
            if (ROOT / file).exists():
                return inner == dotted or defines(file, dotted.rpartition(".")[2])
    return False


@pytest.mark.parametrize("package", ["ray_jobs", "serving"])
def test_the_rooms_and_floors_are_those_of_the_layer_contracts(package: str) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"]: contract for contract in document["tool"]["importlinter"]["contracts"]}
    floors = [{room.strip() for room in re.split("[:|]", layer)} for layer in reversed(contracts[package]["layers"])]
    listed = {room: int(floor) for floor, owner, room in ROOMS if owner == package}
    assert listed == {room: floor for floor, rooms in enumerate(floors, start=1) for room in rooms}


def test_every_named_path_exists() -> None:
    named = [(page, path) for page, text in DOCUMENTS.items() for path in PATH.findall(text)]
    assert len(named) > 150
    assert [f"{page}: {path}" for page, path in named if not (ROOT / path).exists()] == []


def test_every_named_module_and_member_exists() -> None:
    named = [(page, dotted) for page, text in DOCUMENTS.items() for dotted in MODULE.findall(text)]
    assert len(named) >= 4
    assert [f"{page}: {dotted}" for page, dotted in named if not is_module_or_member(dotted)] == []


def test_every_named_function_is_in_its_file() -> None:
    named = [(page, *match) for page, text in DOCUMENTS.items() for match in DEFINED.findall(text)]
    assert len(named) >= 3
    assert [f"{page}: {name} in {path}" for page, name, path in named if not defines(path, name)] == []


def test_the_glossary_has_each_term_once() -> None:
    terms = re.findall(r"^\| ([^|`]+) \| [^|]+ \| `", GLOSSARY, flags=re.MULTILINE)
    assert len(terms) >= 60
    assert sorted(terms) == sorted(set(terms))


def test_the_questions_of_a_newcomer_have_answers_with_a_path() -> None:
    table = ARCHITECTURE.partition("## Where is…?")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| .+\? \| (.+) \|$", table, flags=re.MULTILINE)
    assert len(answers) >= 10
    assert [answer for answer in answers if not PATH.search(answer)] == []
