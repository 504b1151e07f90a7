"""Kubernetes' quantities, read and written."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ray_jobs.cluster.quantities import cpus, parse, shown


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), ("500m", Decimal("0.5")), ("16Gi", 16 * 2**30), ("1k", 1000), (8, 8), ("1.5", Decimal("1.5"))],
)
def test_a_quantity_is_parsed(text: str | int, number: Decimal) -> None:
    assert parse(text) == number


@pytest.mark.parametrize("text", ["", "four", "4 Gi", "4Xi", "Gi"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no Kubernetes quantity"):
        parse(text)


def test_amounts_are_written_for_kubernetes_and_for_display() -> None:
    assert (cpus(4.0), cpus(0.5), cpus(1.25)) == ("4", "500m", "1250m")
    assert (shown("memory", parse("64Gi")), shown("cpu", parse("1500m"))) == ("64 GiB", "1.5")
