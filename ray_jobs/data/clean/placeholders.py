"""Placeholders of redacted values, such as `[EMAIL_QMZK4RWA]`: equal values of a dataset have equal placeholders.

A placeholder is an HMAC of the value under the dataset's salt, so it depends on neither the order of the rows nor the
number of workers. Without the salt no guess can be checked. With it, all phone numbers can be tried: the salt is
random and secret, is not derived from the rows, and stays where the original rows are.
"""

from __future__ import annotations

import base64
import hmac

from ray_jobs.data.clean.folding import fold
from ray_jobs.data.clean.phone_numbers import e164
from ray_jobs.spec.personal_data import Kind

LEAST_SALT_BYTES = 16
_DIGEST_BYTES = 5
"""40 bits, 8 characters: two of 100,000 values of a kind share a placeholder with probability 0.005."""
_SEPARATORS = str.maketrans("", "", " -.()/")


class Placeholders:
    """Placeholders under one salt. `salt`: random bytes, 16 or more; a shorter one is a ValueError."""

    def __init__(self, salt: bytes) -> None:
        if len(salt) < LEAST_SALT_BYTES:
            raise ValueError(f"the salt has {len(salt)} bytes; it needs {LEAST_SALT_BYTES} random ones or more")
        self._salt = salt

    def of(self, kind: Kind, value: str) -> str:
        """The placeholder of a value, the same for its other spellings (full-width, separators, `+81`)."""
        message = f"{kind}\x00{_canonical(kind, value)}".encode()
        digest = hmac.digest(self._salt, message, "sha256")
        return f"[{kind.upper()}_{base64.b32encode(digest[:_DIGEST_BYTES]).decode()}]"


def _canonical(kind: Kind, value: str) -> str:
    folded = fold(value)
    if kind == "phone":
        return e164(folded, assigned=False) or folded.translate(_SEPARATORS)
    if kind in {"email", "ip_address"}:
        return folded.lower()
    if kind in {"api_key", "private_key"}:
        return value
    return folded.translate(_SEPARATORS).upper()
