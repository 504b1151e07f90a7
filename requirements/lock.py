"""Write lock.txt: every package that requirements.in needs, at the installed version.

Owns the walk over installed metadata. Knows no package index: it installs and downloads nothing.

    .venv/bin/python requirements/lock.py          # write lock.txt
    .venv/bin/python requirements/lock.py --check  # exit 1 and print the differences
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
HEADER = """\
# Every package, pinned: written by requirements/lock.py from requirements.in; do not edit.
# Installed with --no-deps (nothing is resolved), after `pip install torch` in the build for the machine.
# `# checks` marks packages for checks and tests only: an image leaves them out.
"""
CHECKS = "# Checks and tests"
"""Heading of requirements.in above the packages that only checks and tests need."""


def direct(text: str) -> tuple[list[Requirement], frozenset[str]]:
    """The pins of requirements.in, and the names (with `*` wildcards) that its `# without:` lines exclude."""
    pins = [Requirement(line.split("#")[0]) for line in text.splitlines() if line.split("#")[0].strip()]
    left_out = [
        re.sub(r"\(.*", "", line.removeprefix("# without:")) for line in text.splitlines() if "# without:" in line
    ]
    return pins, frozenset(name for line in left_out for name in line.split())


def closure(pins: Iterable[Requirement], left_out: frozenset[str]) -> dict[str, str]:
    """Installed versions of the pins and their dependencies on this platform. Raises KeyError for a missing package."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(pin, "requirements.in") for pin in pins]
    while waiting:
        requirement, parent = waiting.pop()
        name = canonicalize_name(requirement.name)
        if any(fnmatch(name, other) for other in left_out) or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise KeyError(f"{parent} needs {requirement}, which is not installed") from None
        public = distribution.version.split("+")[0]  # without the machine's build, such as +cpu
        if parent == "requirements.in" and not requirement.specifier.contains(public, prereleases=True):
            raise KeyError(f"requirements.in pins {requirement}, but {distribution.version} is installed")
        versions[distribution.metadata["Name"]] = public
        for line in distribution.requires or ():
            needed = Requirement(line)
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append((needed, name))
    return versions


def render(versions: dict[str, str], to_run: Container[str]) -> str:
    """Render the lock. `to_run` has the names of the packages needed to run Kitae."""
    lines = (f"{name}=={versions[name]}" + ("" if name in to_run else "  # checks") for name in versions)
    return HEADER + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def main(arguments: list[str]) -> int:
    source = (HERE / "requirements.in").read_text(encoding="utf-8")
    pins, left_out = direct(source)
    to_run, _ = direct(source.partition(CHECKS)[0])
    text = render(closure(pins, left_out), closure(to_run, left_out))
    lock = HERE / "lock.txt"
    if "--check" not in arguments:
        lock.write_text(text, encoding="utf-8")
        return 0
    old = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    changed = sorted(set(old) ^ set(text.splitlines()))
    if changed:
        print("lock.txt differs from requirements.in and the installed packages:", *changed, sep="\n  ")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
