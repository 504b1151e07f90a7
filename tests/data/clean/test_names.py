"""Names of people: where they are, what a policy does with them, and what it says without the model.

The model here knows two names: that of the extra is measured by `names_evaluation`, in an environment of its own.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.data.clean import names
from ray_jobs.data.clean.finding import FoldedText
from ray_jobs.data.clean.rows import RowCleaner
from ray_jobs.data.prepare import _recipe
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.spec.personal_data import PersonalDataPolicy

SALT = b"0" * 16


@pytest.fixture
def two_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that knows 佐藤太郎 and Jane Doe; the languages that were loaded."""
    loaded: list[str] = []

    def model(language: str) -> Any:
        loaded.append(language)
        pattern, label = {"ja": ("佐藤太郎", "Person"), "en": ("Jane Doe", "PERSON")}[language]
        return lambda text: SimpleNamespace(
            ents=[
                SimpleNamespace(label_=label, start_char=found.start(), end_char=found.end())
                for found in re.finditer(pattern, text)
            ]
        )

    monkeypatch.setattr(names, "_model", model)
    return loaded


def test_names_are_found_line_by_line_in_the_language_of_each(two_names: list[str]) -> None:
    text = "12345\nFrom Jane Doe\n佐藤太郎です。" + "あ" * 3000 + "佐藤太郎"
    found = [text[each.start : each.end] for each in names.find_people(FoldedText(text))]
    assert found == ["Jane Doe", "佐藤太郎", "佐藤太郎"]
    assert two_names == ["en", "ja", "ja"]


def test_a_policy_redacts_them(two_names: list[str]) -> None:
    cleaner = RowCleaner(PersonalDataPolicy(person="redact"), SALT)
    row = cleaner.clean({"text": "佐藤太郎より", "label": "a"}, 1).row
    assert row is not None
    assert re.fullmatch(r"\[PERSON_[A-Z2-7]{8}\]より", row["text"])
    assert two_names


def test_they_are_not_looked_for_unless_a_policy_asks(two_names: list[str]) -> None:
    for policy in (PersonalDataPolicy(), PersonalDataPolicy.model_validate("redact")):
        assert RowCleaner(policy, SALT).clean({"text": "佐藤太郎"}, 1).findings == ()
    assert two_names == []


def test_the_versions_of_the_models_are_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "versions", lambda: {"ja_ginza": "5.3.0"})
    asked = DataSection.model_validate({"train": "a.jsonl", "personal_data": {"person": "drop"}})
    assert _recipe(asked)["name_models"] == {"ja_ginza": "5.3.0"}
    assert "name_models" not in _recipe(DataSection.model_validate({"train": "a.jsonl", "personal_data": "drop"}))


@pytest.mark.parametrize(("text", "fix"), [("佐藤太郎", r"kitae\[names\]"), ("Jane Doe", "en_core_web_sm")])
def test_without_the_model_the_error_says_how_to_install_it(text: str, fix: str) -> None:
    with pytest.raises(DataError, match=fix):
        RowCleaner(PersonalDataPolicy(person="report")).clean({"text": text}, 1)
