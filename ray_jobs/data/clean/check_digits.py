"""Check digits of numbers, given as strings of ASCII digits (an IBAN: also capital letters)."""

from __future__ import annotations

_CARD_ISSUERS: tuple[tuple[int, int, frozenset[int]], ...] = (
    (4, 4, frozenset({13, 16, 19})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),  # Mastercard
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),  # American Express
    (3528, 3589, frozenset({16, 17, 18, 19})),  # JCB
    (300, 305, frozenset({14, 16})),  # Diners Club
    (309, 309, frozenset({14, 16})),  # Diners Club
    (36, 36, frozenset({14, 15, 16, 17, 18, 19})),  # Diners Club
    (38, 39, frozenset({14, 16})),  # Diners Club
    (6011, 6011, frozenset({16, 17, 18, 19})),  # Discover
    (644, 659, frozenset({16, 17, 18, 19})),  # Discover
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
)
"""First and last prefix of an issuer's numbers, and their lengths (ISO/IEC 7812 ranges as the issuers publish them)."""

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""A digit doubled, its two digits summed."""


def is_card_number(digits: str) -> bool:
    """True if an issuer has numbers of this prefix and length, and the Luhn sum (ISO/IEC 7812-1) is right."""
    issued = any(
        first <= int(digits[: len(str(first))]) <= last and len(digits) in lengths
        for first, last, lengths in _CARD_ISSUERS
    )
    if not issued or len(set(digits)) == 1:
        return False
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(_DOUBLED[int(digit)] for digit in even)) % 10 == 0


def is_my_number(digits: str) -> bool:
    """True if the 12th digit is the check digit of an individual number (Order No. 85 of 2014 of the Ministry of
    Internal Affairs and Communications, article 5)."""
    if len(digits) != 12 or len(set(digits)) == 1:
        return False
    weights = (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)
    remainder = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False)) % 11
    return int(digits[11]) == (0 if remainder <= 1 else 11 - remainder)


def is_corporate_number(digits: str) -> bool:
    """True if the first of 13 digits is the check digit of a corporate number (Order No. 70 of 2014 of the Ministry
    of Finance, article 2)."""
    if len(digits) != 13 or len(set(digits)) == 1:
        return False
    weighted = sum(int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits[1:])))
    return int(digits[0]) == 9 - weighted % 9


def is_iban(text: str) -> bool:
    """True if the remainder of an IBAN (ISO 13616, capital letters, no spaces) by 97 is 1."""
    if not 15 <= len(text) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1
