"""Files that a published model may hold: weights as safetensors, and text; nothing that runs code when loaded.

Owns that decision. Reads the files: a name alone proves nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ray_jobs.digests import tree_digest
from ray_jobs.errors import RegistryError
from ray_jobs.registry import catalogue
from ray_jobs.storage import Store

_BASES = ("bases/", f"{catalogue.BASES}/")
_ALLOWED = {".safetensors", ".json", ".model", ".txt", ".md", ".jinja"}
_PICKLE_OR_ZIP = (b"\x80", b"PK\x03\x04")  # torch.save writes either


def check_files(directory: Path) -> None:
    """Check a model's files. Raises RegistryError naming every file that must not be published, or without weights."""
    if not directory.is_dir():
        raise RegistryError(f"no directory at {directory}: nothing to register")
    files = sorted(Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    problems = [f"{path.relative_to(directory)}: {why}" for path in files if (why := _why_refused(path)) is not None]
    if not any(path.suffix == ".safetensors" for path in files):
        problems.append("no .safetensors file: there are no weights")
    if problems:
        raise RegistryError(f"{directory} cannot be registered: {len(problems)} problem(s)", details=problems)


def fetch_checked(store: Store, key: str) -> Path:
    """The files of a base or a version on this machine, checked again: a job's pods may have replaced them.

    A base must be the one of its digest. Raises as `Store.fetch`, and RegistryError.
    """
    directory = store.fetch(key)
    if not key.startswith(_BASES):
        check_files(directory)
        return directory
    manifest = store.read_manifest(key)
    files = () if manifest is None else manifest.files
    found = tree_digest((entry.path, bytes.fromhex(entry.sha256)) for entry in files)
    if manifest is None or directory.name != manifest.digest or found != key.rpartition("/")[2]:
        raise RegistryError(
            f"{store.uri(key)} does not hold the base of this digest: delete it, then `kitae bases add`"
        )
    return directory


def _why_refused(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix not in _ALLOWED:
        return f"only {', '.join(sorted(_ALLOWED))} are published; save weights as safetensors, remove the rest"
    try:
        if suffix == ".safetensors":
            with safe_open(path, framework="np"):  # checks the header, and that its tensors fill the file exactly
                return None
        data = path.read_bytes()
        if suffix == ".model":
            return "is a pickle or an archive, not a tokenizer" if data.startswith(_PICKLE_OR_ZIP) else None
        text = data.decode()
        if suffix == ".json":
            json.loads(text)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except (ValueError, SafetensorError) as error:
        return f"is not what its name says: {error}"
    return None
