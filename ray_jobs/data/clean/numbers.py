"""Numbers: cards, My Number, corporate numbers, bank accounts, passports, driving licences, phones, postal codes.

A number with a check digit counts if the digit is right, unless its label names something else. A number without one
counts only beside a label of its kind. The text is read once for runs of digits; patterns see only these runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_jobs.data.clean.check_digits import is_card_number, is_corporate_number, is_iban, is_my_number
from ray_jobs.data.clean.context_words import Label, Labels
from ray_jobs.data.clean.finding import Finding, FoldedText
from ray_jobs.data.clean.folding import fold
from ray_jobs.data.clean.phone_numbers import PHONE, is_phone
from ray_jobs.spec.personal_data import Kind

_RUN = re.compile(r"[0-9](?:[ ()./-]{0,3}[0-9])*")
"""Digits with at most three separators between two of them: the digits of a match of any pattern below."""
_LEAST_DIGITS = 6

_START = r"(?<![0-9A-Za-z_+])(?<![0-9][.,-])"
_END = r"(?![0-9A-Za-z_]|[.,-][0-9])"
_CARD = re.compile(
    rf"{_START}(?:[0-9]{{13,19}}|(?:[0-9]{{4}}([ -])[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,4}}(?:\1[0-9]{{3}})?)"
    rf"|[0-9]{{4}}([ -])[0-9]{{6}}\2[0-9]{{4,5}}){_END}"
)
_TWELVE = re.compile(  # three groups of four, and no fourth beside them
    rf"{_START}(?:[0-9]{{12}}|(?<![0-9]{{4}}[ -])[0-9]{{4}}([ -])[0-9]{{4}}\1[0-9]{{4}}(?!\1[0-9])){_END}"
)
_THIRTEEN = re.compile(
    rf"(?:{_START}|(?<![0-9A-Za-z_])T[ -]?)([0-9]{{13}}|[0-9]([ -])[0-9]{{4}}\2[0-9]{{4}}\2[0-9]{{4}}){_END}"
)
_POSTAL_CODE = re.compile(rf"{_START}[0-9]{{3}}-[0-9]{{4}}{_END}|(?<=〒)[0-9]{{7}}{_END}|(?<=〒 )[0-9]{{7}}{_END}")
_ACCOUNT = re.compile(rf"{_START}(?:[0-9]{{6,17}}|[0-9]{{2,6}}(?:[ -][0-9]{{2,8}}){{1,4}}){_END}")
_PASSPORT = re.compile(rf"(?<![0-9A-Za-z_])(?:[A-Z]{{1,2}} ?[0-9]{{6,8}}|[0-9]{{8,9}}){_END}")
_LICENCE = re.compile(
    rf"(?<![0-9A-Za-z_])(?:[0-9]{{12}}|[0-9]{{4}}([ -])[0-9]{{4}}\1[0-9]{{4}}|[A-Z]{{1,2}}[0-9]{{6,14}}|[0-9]{{7,10}}"
    rf"|[A-Z9]{{5}}[0-9]{{6}}[A-Z0-9]{{5}}|[A-Z][0-9]{{3,4}}(?:-[0-9]{{2,6}}){{1,3}}){_END}"
)
_IBAN = re.compile(r"(?<![0-9A-Za-z_])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![0-9A-Za-z_])")
_COUNTED = re.compile(
    fold(r"[ ]?(?:円|万|億|千|人|名|個|件|本|枚|台|歳|年|月|日|時|分|秒|回|冊|点|㎡|kg|km|yen|usd|%|％)")
)
"""Units: a number before one is a quantity."""

_DATE = re.compile(
    r"(?:19|20)[0-9]{2}(?:([ -])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])|[ -](?:19|20)[0-9]{2})"
)
"""A date, or a range of years."""

_LETTERS = 34
"""Characters beside a run that can belong to its number: an IBAN has 34 in all."""


def find_numbers(text: FoldedText) -> Iterator[Finding]:
    """Detector of the kinds above."""
    labels: Labels | None = None
    for run in _RUN.finditer(text.folded):
        if run.end() - run.start() >= _LEAST_DIGITS:
            labels = labels or Labels(text)
            yield from _in_run(text, labels, run.start(), run.end())


def _in_run(text: FoldedText, labels: Labels, start: int, end: int) -> Iterator[Finding]:
    for rule in _RULES:
        if end - start < rule.least or (rule.label is not None and rule.label not in labels.present):
            continue
        # Two characters beside the run: `(+` of a phone number, and what must not follow a number.
        beside = _LETTERS if rule.letters else 2
        for match in rule.pattern.finditer(text.folded, max(0, start - beside), min(len(text.folded), end + beside)):
            at = match.span()
            if at[0] >= end:
                break
            if at[1] > start and rule.counts(match, labels.of(*at), text):
                yield Finding(rule.kind, *at)


def _digits(match: re.Match[str]) -> str:
    return "".join(filter(str.isdigit, match[0]))


def _card(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    if label in {"credit_card", None} or (label != "order" and match[1] is not None):
        return is_card_number(_digits(match))
    return False


def _my_number(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    # Every eleventh number has the right digit by chance, so an unlabelled one must be written in groups.
    unlabelled = label is None and match[1] is not None
    return (label == "my_number" or unlabelled) and is_my_number(_digits(match))


def _corporate_number(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return (label == "corporate_number" or match[0].startswith("T")) and is_corporate_number(_digits(match))


def _account(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return label == "bank_account" and len(_digits(match)) >= 6 and not _is_date_or_quantity(match, text)


def _iban(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return is_iban(match[0].replace(" ", ""))


def _passport(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return label == "passport" and not _is_date_or_quantity(match, text)


def _licence(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return label == "driving_licence" and not _is_date_or_quantity(match, text)


def _is_date_or_quantity(match: re.Match[str], text: FoldedText) -> bool:
    return _DATE.fullmatch(match[0]) is not None or _COUNTED.match(text.folded, match.end()) is not None


def _postal_code(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    return label == "postal_code" or _in_address(match, text)


def _in_address(match: re.Match[str], text: FoldedText) -> bool:
    before = text.folded[max(0, match.start() - 8) : match.start()]
    return "住所" in before or "所在地" in before or _PLACE.match(text.folded, match.end()) is not None


_PLACE = re.compile(r"[\s,、)]{0,3}(?:[^\s\d、。,.]{1,3}[都道府県]|[^\s\d、。,.]{1,6}[市区郡町村])")


def _phone(match: re.Match[str], label: Label | None, text: FoldedText) -> bool:
    # "My number is 090…" is no My Number.
    return is_phone(match[0], labelled=label == "phone", other=label not in {None, "phone", "postal_code", "my_number"})


@dataclass(frozen=True)
class _Rule:
    kind: Kind
    pattern: re.Pattern[str]
    counts: Callable[[re.Match[str], Label | None, FoldedText], bool]
    least: int
    """Characters of the shortest run that the pattern matches in."""
    label: Label | None = None
    """Label without which nothing counts."""
    letters: bool = False
    """True if the pattern begins or ends with letters, which are outside the run."""


_RULES = (
    _Rule("credit_card", _CARD, _card, 13),
    _Rule("my_number", _TWELVE, _my_number, 12),
    _Rule("corporate_number", _THIRTEEN, _corporate_number, 13, letters=True),
    _Rule("bank_account", _ACCOUNT, _account, 6, label="bank_account"),
    _Rule("bank_account", _IBAN, _iban, 6, letters=True),
    _Rule("passport", _PASSPORT, _passport, 6, label="passport", letters=True),
    _Rule("driving_licence", _LICENCE, _licence, 6, label="driving_licence", letters=True),
    _Rule("phone", PHONE, _phone, 9),
    _Rule("postal_code", _POSTAL_CODE, _postal_code, 7),
)
