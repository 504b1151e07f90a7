"""Detects retries of the official client.

The client repeats a request after a broken connection, a timeout, 408, 409, 429 and 5xx, and counts the repeats in
`x-stainless-retry-count`. A retry is answered with the result of the first try.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header


async def _is_retry(x_stainless_retry_count: Annotated[str | None, Header()] = None) -> bool:
    return (x_stainless_retry_count or "0").strip() not in ("", "0")


IsRetry = Annotated[bool, Depends(_is_retry)]
"""A parameter of a route: whether the request is a retry."""
