"""Phone numbers as Japanese and international texts write them, by the numbering plans of `phonenumbers`."""

from __future__ import annotations

import re
from functools import lru_cache

import phonenumbers

PHONE = re.compile(
    r"(?<![0-9A-Za-z_+])(?<![0-9A-Za-z][.,/-])(?:"
    r"\+[0-9]{1,3}(?:[ .-]?\(?0?[0-9]{1,5}\)?)(?:[ .-]?[0-9]{1,8}){1,5}"
    r"|\(?0[0-9]{1,4}\)?[ .-]{0,2}\(?[0-9]{1,4}\)?[ .-]{0,2}[0-9]{3,4}"
    r"|0[0-9]{9,10}"
    r"|\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}"
    r"|(?:1[ .-])?[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4}"
    r"|[2-9][0-9]{9}"
    r")(?![0-9A-Za-z_]|[.,/-][0-9])"
)
"""A number of Japan with its trunk prefix 0, of any country after `+`, or of North America in its usual groups."""

_MOBILE = re.compile(r"0[5789]0[0-9]{8}")
_GROUPS = re.compile(
    r"(?=[^0-9]*0)(?:[^0-9]*[0-9]{2,5}[^0-9]+[0-9]{1,4}[^0-9]+[0-9]{4}|0[0-9]{3}[ -][0-9]{3}[ -][0-9]{3})"
)
"""Japanese numbers in three groups."""
_DATE = re.compile(r"0[1-9][./-][0-9]{2}[./-](?:19|20)[0-9]{2}")


def is_phone(written: str, *, labelled: bool, other: bool) -> bool:
    """True if a match of `PHONE` is a valid number.

    `labelled`: beside a word such as 電話. `other`: beside a word that names something else; then digits without
    separators do not count. Unlabelled digits without separators count only for Japanese mobile numbers.
    """
    if _DATE.fullmatch(written):
        return False
    if written.isdigit() and not labelled and (other or _MOBILE.fullmatch(written) is None):
        return False
    if (
        not labelled
        and written.lstrip("(").startswith("0")
        and not written.isdigit()
        and not _GROUPS.fullmatch(written)
    ):
        return False
    if other and written[0] not in "+0(":
        return False
    return e164(written, assigned=not labelled) is not None


@lru_cache(maxsize=4096)
def e164(written: str, *, assigned: bool = True) -> str | None:
    """The number in the form `+81312345678`; None for a number that no country has assigned, or with `assigned` False
    for a length that none has. Without `+` it is Japan's if it starts with 0, else North America's."""
    digits = "".join(filter(str.isdigit, written))
    if written.startswith("+"):
        try:
            number = phonenumbers.parse(written.replace("(0)", ""), None)
        except phonenumbers.NumberParseException:
            return None
    elif digits.startswith("0"):
        number = phonenumbers.PhoneNumber(country_code=81, national_number=int(digits))
    else:
        number = phonenumbers.PhoneNumber(country_code=1, national_number=int(digits[-10:]))
    if not (phonenumbers.is_valid_number(number) if assigned else phonenumbers.is_possible_number(number)):
        return None
    return f"+{number.country_code}{number.national_number}"
