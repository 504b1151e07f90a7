"""Files that a published model may hold: weights as safetensors, and text; nothing that runs code when loaded.

Owns that decision. Reads the files: a name alone proves nothing.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from ray_jobs.errors import RegistryError

_TEXT = {".txt", ".md", ".jinja"}
_ALLOWED = {".safetensors", ".json", ".model", *_TEXT}
_PICKLE_OR_ZIP = (b"\x80", b"PK\x03\x04")  # torch.save writes either
_LONGEST_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit


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


def _why_refused(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix not in _ALLOWED:
        return f"only {', '.join(sorted(_ALLOWED))} are published; save weights as safetensors, remove the rest"
    try:
        if suffix == ".safetensors":
            return _why_no_safetensors(path)
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if suffix == ".model":
        return "is a pickle or an archive, not a tokenizer" if data.startswith(_PICKLE_OR_ZIP) else None
    try:
        text = data.decode()
        if suffix == ".json":
            json.loads(text)
    except ValueError as error:
        return f"is not what its name says: {error}"
    return None


def _why_no_safetensors(path: Path) -> str | None:
    """Why it is not safetensors: eight bytes of length, a JSON header with the tensors' offsets, then the tensors."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return f"is not safetensors: {size_bytes} bytes"
        (header_bytes,) = struct.unpack("<Q", start)
        if header_bytes > min(_LONGEST_HEADER_BYTES, size_bytes - 8):
            return f"is not safetensors: a header of {header_bytes} bytes in a file of {size_bytes}"
        try:
            header = json.loads(file.read(header_bytes))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return f"is not safetensors: {error}"
    expected_bytes = 8 + header_bytes + max(ends, default=0)
    if expected_bytes != size_bytes:
        return f"has {size_bytes} bytes, its header says {expected_bytes}: it is cut off or has something appended"
    return None
