"""Every message exists in both languages, with the same placeholders; numbers and plurals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest

from ray_jobs.data import advice_messages, page_messages
from ray_jobs.pages.messages import Language, Message, Speaker, placeholders

JAPANESE = re.compile(r"[぀-ヿ一-鿿]")
ONE_LANGUAGE = {"REASONS_IN_ENGLISH"}
"""Messages that are empty in English, since they are about the other language."""


def inside(name: str, value: Any) -> Iterator[tuple[str, Message]]:
    """Messages in a value, with their names."""
    if isinstance(value, Message):
        yield name, value
    elif isinstance(value, dict | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from inside(f"{name}[{key}]", inner)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from inside(f"{name}.{field.name}", getattr(value, field.name))


MESSAGES = [
    each
    for module in (page_messages, advice_messages)
    for name, value in vars(module).items()
    if name.isupper()
    for each in inside(name, value)
]


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) > 120
    assert len({name for name, _ in MESSAGES}) == len(MESSAGES)


@pytest.mark.parametrize(("name", "message"), MESSAGES, ids=[name for name, _ in MESSAGES])
def test_a_message_has_every_language_and_the_same_placeholders(name: str, message: Message) -> None:
    assert {field.name for field in fields(Message)} == set(get_args(Language))
    assert placeholders(message.en) == placeholders(message.ja) or name in ONE_LANGUAGE
    assert message.en.strip() == message.en
    assert bool(message.en) != (name in ONE_LANGUAGE)
    assert not JAPANESE.search(message.en.replace("“Ａ”", ""))
    assert JAPANESE.search(re.sub(r"\{[^}]*\}", "", message.ja)) or message is page_messages.AND_MORE
    assert "|" not in message.ja  # nouns have no plural


@pytest.mark.parametrize(
    ("count", "english", "japanese"),
    [
        (0, "0 rows were", "0行"),
        (1, "1 row was", "1行"),
        (2, "2 rows were", "2行"),
        (1234567, "1,234,567 rows were", "1,234,567行"),
    ],
)
def test_numbers_and_plurals(count: int, english: str, japanese: str) -> None:
    message = Message(en="{rows:row was|rows were}", ja="{rows}行")
    assert Speaker("en")(message, rows=count) == english
    assert Speaker("ja")(message, rows=count) == japanese


@pytest.mark.parametrize(
    ("share", "english", "japanese"),
    [(0, "0.0%", "0.0%"), (1e-6, "less than 0.1%", "0.1%未満"), (0.074, "7.4%", "7.4%"), (1, "100.0%", "100.0%")],
)
def test_shares(share: float, english: str, japanese: str) -> None:
    assert (Speaker("en").percent(share), Speaker("ja").percent(share)) == (english, japanese)


def test_a_value_is_text_also_if_it_has_braces_and_a_missing_one_is_an_error() -> None:
    message = Message(en="{name}", ja="{name}")
    assert Speaker("en")(message, name="{rows}") == "{rows}"
    with pytest.raises(KeyError, match="name"):
        Speaker("ja")(message)


def test_enumerations() -> None:
    assert Speaker("en").join(["a", "b"]) == "a, b"
    assert Speaker("ja").join(["a", "b"]) == "a、b"
