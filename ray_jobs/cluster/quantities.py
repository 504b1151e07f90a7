"""Kubernetes' quantities (`500m`, `16Gi`), read and written, and numbers for display. Pure.

Amounts are Decimals, in CPUs, bytes or pieces, so that sums are exact.
"""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([A-Za-z]*)")
_FACTORS = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def parse(quantity: str | int | float) -> Decimal:
    """`"500m"` is 0.5, `"16Gi"` is 17179869184. ValueError if the text is no quantity."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or found[2] not in _FACTORS:
        raise ValueError(f"{quantity!r} is no quantity: write a number, or one with a suffix such as 500m, 16Gi or 2k")
    return Decimal(found[1]) * _FACTORS[found[2]]


def text(amount: Decimal) -> str:
    """The shortest exact spelling: `8`, `500m`, `16Gi`."""
    if not amount:
        return "0"
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki", "", "m", "u", "n"):
        scaled = amount / _FACTORS[suffix]
        if scaled == scaled.to_integral_value():
            return f"{int(scaled)}{suffix}"
    return f"{amount.normalize():f}"


def shown(resource: str, amount: Decimal) -> str:
    """For display: `8`, `1.5`, `64 GiB` of memory."""
    if resource == "memory":
        return f"{float(amount / 2**30):.4g} GiB"
    return f"{float(amount):g}"
