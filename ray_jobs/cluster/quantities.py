"""Kubernetes' quantities (`500m`, `16Gi`) as numbers, and numbers for display. Pure."""

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
    """In CPUs, bytes or pieces. ValueError if the text is no quantity."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or found[2] not in _FACTORS:
        raise ValueError(f"{quantity!r} is no Kubernetes quantity")
    return Decimal(found[1]) * _FACTORS[found[2]]


def cpus(amount: float) -> str:
    """CPUs in Kubernetes' notation: `4`, `500m`."""
    return str(int(amount)) if amount == int(amount) else f"{round(amount * 1000)}m"


def shown(resource: str, amount: Decimal) -> str:
    """For display: `8`, `1.5`, `64 GiB` of memory."""
    if resource == "memory":
        return f"{float(amount / 2**30):.4g} GiB"
    return f"{float(amount):g}"
