"""Kubernetes' quantities, read and written."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster.quantities import parse, shown, text


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("8", 8),
        ("4", 4),
        (8, 8),
        ("500m", "0.5"),
        ("16Gi", 2**34),
        ("16393244Ki", 16393244 * 2**10),
        ("1k", 1000),
        ("2k", 2000),
        ("1e3", 1000),
        ("1.5", "1.5"),
        ("0", 0),
        ("3E", 3 * 10**18),
    ],
)
def test_a_quantity_is_parsed(quantity: str | int, amount: Any) -> None:
    assert parse(quantity) == Decimal(amount)


@pytest.mark.parametrize("quantity", ["", "many", "four", "1Gb", "4 Gi", "4Xi", "Gi", "NaN", "inf", "m"])
def test_other_text_is_refused_with_an_example(quantity: str) -> None:
    with pytest.raises(ValueError, match=r"is no quantity: .*500m"):
        parse(quantity)


@given(st.decimals(0, 10**15, places=3) | st.integers(0, 2**50).map(Decimal))
def test_an_amount_survives_a_round_trip_through_text(amount: Decimal) -> None:
    assert parse(text(amount)) == amount


def test_amounts_are_written_for_kubernetes_and_for_display() -> None:
    assert (text(Decimal(4)), text(Decimal("0.5")), text(Decimal("1.25"))) == ("4", "500m", "1250m")
    assert (text(Decimal(2**34)), text(Decimal(0)), text(Decimal("-1.5"))) == ("16Gi", "0", "-1500m")
    assert (shown("memory", parse("64Gi")), shown("cpu", parse("1500m"))) == ("64 GiB", "1.5")
