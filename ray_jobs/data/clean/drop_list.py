"""The recorded list of rows to leave out: the ids of `data.clean.drop_rows`, in the job file or in a file."""

from __future__ import annotations

from ray_jobs.data.sources import RowFile, local_copy
from ray_jobs.errors import DataError
from ray_jobs.spec.cleaning import CleaningPolicy, is_row_id
from ray_jobs.storage import Store

_MOST_BYTES = 64 * 2**20
_MOST_LISTED = 20


def drop_ids(store: Store, policy: CleaningPolicy) -> tuple[str, ...]:
    """The ids. Raises DataError for a file that is missing, too large, or has a line that is no id."""
    source = policy.drop_rows
    if not isinstance(source, str):
        return source
    with local_copy(store, RowFile(source, 0)) as path:
        if not path.is_file():
            raise DataError(f"data.clean.drop_rows: {source} does not exist; name a file with one row id a line")
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise DataError(f"data.clean.drop_rows: {source} has {size:,} bytes, more than {_MOST_BYTES:,}")
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ids = [(number, line.split("#")[0].strip()) for number, line in enumerate(lines, 1)]
    odd = [f"line {number}: {text[:40]!r}" for number, text in ids if text and not is_row_id(text)]
    if odd:
        raise DataError(
            f"data.clean.drop_rows: {source} has {len(odd)} line(s) that are no row id, 16 hex digits as the report "
            "of a preparation has them",
            details=odd[:_MOST_LISTED],
        )
    return tuple(text for _, text in ids if text)
