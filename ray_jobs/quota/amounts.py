"""Amounts of GPUs, cores and bytes, read from and written in Kubernetes' notation. Pure.

Amounts are Decimals, so that sums are exact. The grammar is in `cluster.quantities`.
"""

from __future__ import annotations

from decimal import Decimal

from ray_jobs.cluster import quantities
from ray_jobs.errors import SpecError

Amount = Decimal

_BINARY = {"Ei": 2**60, "Pi": 2**50, "Ti": 2**40, "Gi": 2**30, "Mi": 2**20, "Ki": 2**10}
_PARTS = {"m": 10**3, "u": 10**6, "n": 10**9}


def parse(quantity: str | int | float) -> Amount:
    """`"500m"` is 0.5, `"16Gi"` is 17179869184. SpecError if the text is no quantity."""
    try:
        amount = quantities.parse(quantity)
    except ValueError:
        amount = Amount("NaN")
    if not amount.is_finite():
        raise SpecError(f"{quantity!r} is no quantity: write a number, or one with a suffix such as 500m, 16Gi or 2k")
    return amount


def text(amount: Amount) -> str:
    """The shortest exact spelling: `8`, `500m`, `16Gi`."""
    if amount == amount.to_integral_value():
        whole = int(amount)
        suffix = next((suffix for suffix, scale in _BINARY.items() if whole and whole % scale == 0), "")
        return f"{whole // _BINARY.get(suffix, 1)}{suffix}"
    for suffix, scale in _PARTS.items():
        if amount * scale == (amount * scale).to_integral_value():
            return f"{int(amount * scale)}{suffix}"
    return f"{amount.normalize():f}"
