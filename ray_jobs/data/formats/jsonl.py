"""JSON lines: an object a line."""

from __future__ import annotations

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.encodings import Encoding
from ray_jobs.data.formats.lines import read_lines
from ray_jobs.data.formats.records import Items, Unreadable, parse_object


def read_json_lines(source: ByteSource, encoding: Encoding) -> Items:
    """A record for each line that is not blank."""
    for line in read_lines(source, encoding):
        if isinstance(line, Unreadable):
            yield line
        elif line[1].strip():
            yield parse_object(*line)
