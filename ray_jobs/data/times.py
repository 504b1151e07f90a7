"""Dates and numbers of the column by which rows are split in time. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime

_DATE = re.compile(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?(.*)", re.DOTALL)


def time_of(value: object) -> float:
    """Seconds, or a number as it is; NaN for what is neither a date nor a number."""
    if isinstance(value, bool) or value is None:
        return math.nan
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day, tzinfo=UTC))
    text = str(value).strip()
    found = _DATE.fullmatch(text)
    if found is not None:
        year, month, day, rest = found.groups()
        text = f"{year}-{int(month):02}-{int(day):02}{_clock(rest)}"
    try:
        return float(text) if found is None else _seconds(datetime.fromisoformat(text))
    except ValueError:
        return math.nan


def _clock(rest: str) -> str:
    """` 9:05` as `T09:05`."""
    rest = rest.strip().removeprefix("T").strip()
    if not rest:
        return ""
    hour, colon, minutes = rest.partition(":")
    return f"T{hour.zfill(2)}{colon}{minutes}"


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
