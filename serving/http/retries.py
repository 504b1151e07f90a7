"""Detects retries of the official client.

The client repeats a request after a broken connection, a timeout, 408, 409, 429 and 5xx, and counts the repeats in
`x-stainless-retry-count`. A retry is answered with the result of the first try.
"""

from __future__ import annotations


def is_retry(count: str | None) -> bool:
    """Return whether the header `x-stainless-retry-count` marks a retry. None: the header is missing."""
    return (count or "0").strip() not in ("", "0")
