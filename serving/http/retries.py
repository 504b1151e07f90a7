"""Whether a request is a client's own second try of one that got no answer. Pure.

The official client sends a request again after a broken connection, a timeout, 408, 409, 429 and 5xx, and says so in
`x-stainless-retry-count`. What the first try did is then the answer to the second.
"""

from __future__ import annotations


def is_retry(count: str | None) -> bool:
    """By the header `x-stainless-retry-count`; None: it was not sent."""
    return (count or "0").strip() not in ("", "0")
