"""Invalid fields are named as the user wrote them, with the value and what it must be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.spec.problems import field_name, problems


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    name: Annotated[str, Field(max_length=3)] = ""


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner | Literal["small", "large"] | None = None
    several: list[Inner] = []
    by_name: dict[str, int] = {}
    switch: dict[str, Any] | bool = False
    needed: int


def found(**document: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    return problems(caught.value.errors(), document)


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ({"inner": {"count": 51}}, "inner.count", "is 51; it must be 'auto' or at most 50"),
        ({"inner": {"count": "x"}}, "inner.count", "is 'x'; it must be 'auto' or a whole number"),
        ({"inner": {"count": 1.5}}, "inner.count", "is 1.5; it must be 'auto' or a whole number"),
        ({"inner": "tiny"}, "inner", "is 'tiny'; it must be 'small' or 'large' or an object"),
        ({"inner": {"name": "long"}}, "inner.name", "has 4 characters; at most 3"),
        ({"inner": {"nome": ""}}, "inner.nome", "unknown field"),
        ({"several": [{}, {"count": 0}]}, "several[1].count", "is 0; it must be 'auto' or at least 1"),
        ({"several": None}, "several", "is null; it must be a list"),
        ({"by_name": {"a": "b"}}, "by_name.a", "is 'b'; it must be a whole number"),
        ({"switch": 5}, "switch", "is 5; it must be an object or true or false"),
        ({"needed": "x" * 200}, "needed", f"is '{'x' * 58}…; it must be a whole number"),
    ],
)
def test_a_field_has_one_problem_without_the_members_of_its_union(
    document: dict[str, Any], field: str, message: str
) -> None:
    assert found(**{"needed": 1, **document}) == [(field, message)]


def test_all_problems_are_reported_at_once() -> None:
    fields = [field for field, _ in found(inner={"count": 99, "name": "long"}, other=1)]
    assert sorted(fields) == ["inner.count", "inner.name", "needed", "other"]


def test_values_of_secret_sections_are_not_shown() -> None:
    document = {"needed": 1, "by_name": {"password": "hunter2"}}
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    assert problems(caught.value.errors(), document, secret=("by_name",)) == [
        ("by_name.password", "must be a whole number")
    ]


def test_a_field_is_written_as_in_json() -> None:
    assert field_name(("messages", 0, "content", 1, "text")) == "messages[0].content[1].text"
