"""Identifiers that sort by creation time, and pages over them."""

from __future__ import annotations

from typing import Any

import pytest

from serving.http.ids import created_at_s, is_id, new_id, page


def test_ids_sort_by_and_contain_their_creation_time() -> None:
    ids = [new_id("file", now_s=1_700_000_000 + i / 1000) for i in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert created_at_s(ids[7]) == pytest.approx(1_700_000_000.007)
    assert is_id("file", ids[0])
    assert not is_id("ftjob", ids[0])
    assert not is_id("file", "file-../../x")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_any_size_contain_every_item_once(order: Any) -> None:
    ids = [f"x-{i:03d}" for i in range(23)]
    for limit in (1, 4, 22, 23, 50):
        seen: list[str] = []
        more = True
        while more:
            found, more = page(
                ids, lambda i: i if i != "x-005" else None, limit=limit, after=seen[-1] if seen else None, order=order
            )
            seen += found
        expected = [i for i in ids if i != "x-005"]
        assert seen == (expected if order == "asc" else expected[::-1])


def test_a_page_continues_after_a_deleted_item() -> None:
    assert page(["x-1", "x-3"], lambda i: i, limit=9, after="x-2")[0] == ["x-1"]
