"""Amounts, read and written."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import SpecError
from ray_jobs.quota import amounts


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("8", 8),
        (8, 8),
        ("500m", "0.5"),
        ("16Gi", 2**34),
        ("16393244Ki", 16393244 * 2**10),
        ("2k", 2000),
        ("1e3", 1000),
        ("1.5", "1.5"),
        ("0", 0),
        ("3E", 3 * 10**18),
    ],
)
def test_a_quantity_is_parsed(quantity: str | int, amount: Any) -> None:
    assert amounts.parse(quantity) == Decimal(amount)


@pytest.mark.parametrize("quantity", ["", "many", "1Gb", "NaN", "inf", "m"])
def test_other_text_is_refused_with_an_example(quantity: str) -> None:
    with pytest.raises(SpecError, match="500m"):
        amounts.parse(quantity)


@given(st.decimals(0, 10**15, places=3) | st.integers(0, 2**50).map(Decimal))
def test_an_amount_survives_a_round_trip_through_text(amount: Decimal) -> None:
    assert amounts.parse(amounts.text(amount)) == amount
    assert amounts.text(Decimal(2**34)) == "16Gi"
    assert amounts.text(Decimal("0.5")) == "500m"
