"""The bytes of a file, unpacked from gzip or Zstandard where its name says so, within a limit. Streams."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ray_jobs.data.formats.records import Unusable

PACKED = (".gz", ".zst")
"""Endings around that of a text format."""
_LEAST_LIMIT_BYTES, _MOST_EXPANSION = 100_000_000, 200
"""A packed file may unpack to the larger of 100 MB and 200 times its size: text packs 3 to 20 times smaller."""


@dataclass(frozen=True)
class ByteSource:
    """A file that can be read from its beginning several times."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its unpacked bytes. Reading raises Unusable for a broken archive and for one beyond the limit."""
        ending = self.path.suffix.lower()
        with self.path.open("rb") as file:
            if ending not in PACKED:
                yield file
                return
            limit = max(_LEAST_LIMIT_BYTES, _MOST_EXPANSION * self.path.stat().st_size)
            if ending == ".gz":
                packed: Any = gzip.GzipFile(fileobj=file)
            else:
                import pyarrow

                packed = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
            with io.BufferedReader(_Limited(packed.read, limit)) as unpacked:
                yield unpacked


class _Limited(io.RawIOBase):
    """A raw stream over a decompressor's `read`."""

    def __init__(self, read: Callable[[int], bytes], limit_bytes: int) -> None:
        self._read, self._limit_bytes, self._count = read, limit_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise Unusable(f"it cannot be unpacked after {self._count} bytes: {error}") from error
        self._count += len(data)
        if self._count > self._limit_bytes:
            raise Unusable(
                f"it unpacks to more than {self._limit_bytes // 1_000_000} MB ({_MOST_EXPANSION} times its size); "
                "unpack it and check what it holds"
            )
        buffer[: len(data)] = data
        return len(data)
