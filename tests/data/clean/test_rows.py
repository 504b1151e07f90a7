"""A row under a policy: what is redacted, dropped and refused, where in the row, and that no value is repeated."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.data.clean.placeholders import Placeholders
from ray_jobs.data.clean.rows import Cleaning, RowCleaner, RowFinding
from ray_jobs.errors import DataError
from ray_jobs.spec.personal_data import ALL_KINDS, KINDS, PersonalDataPolicy
from tests.data.clean.planted_values import VALUES

SALT = bytes(range(32))
REDACT_ALL = PersonalDataPolicy.model_validate("redact")
MAIL, PHONE, CARD = "taro@example.co.jp", "090-1234-5678", "4111111111111111"


def cleaned(row: dict[str, Any], policy: PersonalDataPolicy = REDACT_ALL, number: int = 1) -> dict[str, Any] | None:
    return RowCleaner(policy, SALT).clean(row, number).row


def chat(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


# ---- the policy -------------------------------------------------------------------------------------------------


def test_every_kind_has_a_policy_in_the_order_of_the_kinds() -> None:
    assert tuple(PersonalDataPolicy.model_fields) == ALL_KINDS == (*KINDS, "person")
    assert {PersonalDataPolicy().action(kind) for kind in KINDS} == {"report"}


def test_one_action_for_all_kinds_or_one_for_each() -> None:
    assert {PersonalDataPolicy.model_validate("drop").action(kind) for kind in KINDS} == {"drop"}
    policy = PersonalDataPolicy.model_validate({"email": "redact"})
    assert (policy.action("email"), policy.action("phone")) == ("redact", "report")


@pytest.mark.parametrize("wrong", ["delete", {"mail": "redact"}, {"email": "mask"}])
def test_an_unknown_action_or_kind_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        PersonalDataPolicy.model_validate(wrong)


def test_report_changes_nothing_drop_and_refuse_leave_no_row() -> None:
    row = chat(f"{MAIL} と {PHONE}")
    original = copy.deepcopy(row)
    for action, kept in (("report", True), ("drop", False), ("refuse", False)):
        result = RowCleaner(PersonalDataPolicy.model_validate({"email": action})).clean(row, 7)
        assert (result.row == original) is kept
        assert (result.row is None) is not kept
        assert [finding.kind for finding in result.findings] == ["email", "phone"]
    assert cleaned(row) != original
    assert row == original


def test_a_refusal_names_rows_kinds_and_places_but_no_value() -> None:
    cleaner = RowCleaner(PersonalDataPolicy.model_validate({"email": "refuse", "phone": "report"}))
    findings = [
        each for number in range(1, 131) for each in cleaner.clean(chat("", f"{MAIL} {PHONE}"), number).findings
    ]
    error = cleaner.refusal(findings)
    assert isinstance(error, DataError)
    assert "130 row(s) hold email" in str(error)
    assert "email: redact" in str(error)
    assert error.details[0] == "row 1: messages[1].content: email (18 characters)"
    assert error.details[-1] == "+30 more"
    assert "taro" not in repr([error.message, error.details, findings])
    assert cleaner.refusal(each for each in findings if each.kind == "phone") is None


# ---- where in the row -------------------------------------------------------------------------------------------


def test_paths_lead_into_lists_objects_and_json_texts() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": MAIL}]},
            {"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps({"to": MAIL})}}]},
        ],
        "meta": {MAIL: "x", "line one\n": PHONE},
    }
    assert [(each.path, each.kind, each.length) for each in RowCleaner(REDACT_ALL, SALT).clean(row, 1).findings] == [
        ("messages[0].content[0].text", "email", 18),
        ("messages[1].tool_calls[0].function.arguments", "email", 18),
        ("meta{0}", "email", 18),
        ("meta.{1}", "phone", 13),
    ]


def test_a_name_that_is_a_secret_is_in_no_path() -> None:
    key = "AKIA" + "Q7ZK" * 4
    found = RowCleaner(PersonalDataPolicy()).clean({"meta": {key: {"to": MAIL}}}, 1).findings
    assert [(each.path, each.kind) for each in found] == [("meta{0}", "api_key"), ("meta.{0}.to", "email")]


def test_names_of_fields_are_redacted_and_none_is_lost() -> None:
    row = cleaned({"meta": {MAIL: 1, MAIL.upper(): 2, "a": 3}})
    assert row is not None
    assert len(row["meta"]) == 3
    assert "example" not in json.dumps(row).lower()


def test_arguments_stay_json_and_keep_what_is_not_redacted() -> None:
    arguments = (
        '{"to":"\\u3042\\n'
        + MAIL
        + '", "to": "b", "card": '
        + CARD
        + ', "n": [1.50, -2e3, true, null],\n "note": "\\u3042"}'
    )
    row = cleaned({"arguments": arguments})
    assert row is not None
    placeholders = Placeholders(SALT)
    mail, card = placeholders.of("email", MAIL), placeholders.of("credit_card", CARD)
    assert row["arguments"] == arguments.replace(MAIL, mail).replace(CARD, f'"{card}"')
    assert json.loads(row["arguments"])["card"] == card


def test_json_in_json() -> None:
    row = cleaned({"arguments": json.dumps({"body": json.dumps({"phone": "0312345678"})})})
    assert row is not None
    assert json.loads(json.loads(row["arguments"])["body"])["phone"].startswith("[PHONE_")


def test_numbers_become_text_only_where_they_are_redacted() -> None:
    assert cleaned({"card": int(CARD), "n": 5, "f": 0.5, "b": True, "z": None}) == {
        "card": Placeholders(SALT).of("credit_card", CARD), "n": 5, "f": 0.5, "b": True, "z": None,
    }  # fmt: skip


def test_a_row_nested_too_deeply_is_an_error() -> None:
    row: dict[str, Any] = {}
    for _ in range(5000):
        row = {"a": row}
    with pytest.raises(DataError, match="row 3 is nested too deeply"):
        RowCleaner(PersonalDataPolicy()).clean(row, 3)


@given(
    st.recursive(
        st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_holds_no_personal_data_is_unchanged(value: Any, ascii_only: bool) -> None:
    row = {"value": value, "text": json.dumps(value, ensure_ascii=ascii_only)}
    result = RowCleaner(REDACT_ALL, SALT).clean(row, 1)
    if not result.findings:
        assert result.row == row
    json.loads(result.row["text"] if result.row else "null")


# ---- placeholders -----------------------------------------------------------------------------------------------


def test_spellings_of_a_value_share_a_placeholder_and_values_do_not() -> None:
    of = Placeholders(SALT).of
    same = {
        of("phone", each) for each in ("03-1234-5678", "０３−１２３４−５６７８", "+81 3 1234 5678", "(03)1234-5678")
    }
    assert len(same) == 1
    assert of("email", "Taro@Example.com") == of("email", "ｔａｒｏ@example.com")
    assert of("credit_card", "4111 1111 1111 1111") == of("credit_card", CARD)
    many = {of("phone", f"090-{number // 10000:04}-{number % 10000:04}") for number in range(3000)}
    assert len(many) == 3000
    assert of("api_key", "abcdEFGH1") != of("api_key", "abcdefgh1")


def test_a_placeholder_depends_on_the_salt_and_on_nothing_that_was_seen_before() -> None:
    rows = [chat(f"{value(Random(seed))} と {MAIL}") for seed in range(3) for value in VALUES.values()]
    once = [cleaned(row) for row in rows]
    assert [cleaned(row) for row in reversed(rows)] == once[::-1]
    assert Placeholders(SALT).of("email", MAIL) != Placeholders(SALT[::-1]).of("email", MAIL)


def test_redacted_rows_hold_nothing_to_find() -> None:
    for kind, value in VALUES.items():
        for seed in range(20):
            row = chat(f"password: {value(Random(seed))} カード", f"電話 口座 {value(Random(seed))}")
            once = cleaned(row)
            assert once is not None
            assert RowCleaner(REDACT_ALL, SALT).clean(once, 1).findings == (), (kind, once)


def test_redacting_needs_a_salt_of_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="needs a salt"):
        RowCleaner(PersonalDataPolicy(email="redact"))
    with pytest.raises(ValueError, match="15 bytes"):
        RowCleaner(REDACT_ALL, bytes(15))


# ---- counting ---------------------------------------------------------------------------------------------------


def test_rows_are_counted_once_for_each_kind() -> None:
    cleaning = Cleaning()
    for number, row in enumerate([chat(f"{MAIL} {MAIL}", PHONE), chat(MAIL), chat("hello")]):
        assert cleaning.clean(row, number) == row
    assert cleaning.counts == {"email": 2, "phone": 1}
    assert cleaning.notes() == [
        "2 row(s) seem to hold personal data or secrets, which a model can repeat: email 2, phone 1"
    ]
    assert Cleaning().notes() == []


def test_a_finding_shows_no_value() -> None:
    assert str(RowFinding("email", 3, "text", 18)) == "row 3: text: email (18 characters)"
