"""Kinds of personal data and secrets, and the policy for each: the job file's `data.personal_data`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import model_validator

from ray_jobs.spec.section import SpecSection

Kind = Literal[
    "private_key",
    "api_key",
    "email",
    "credit_card",
    "my_number",
    "corporate_number",
    "bank_account",
    "passport",
    "driving_licence",
    "address",
    "postal_code",
    "phone",
    "ip_address",
    "person",
]
"""Kinds that are found. Where two findings overlap, the kind that is listed first wins: it is the more specific one."""

ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
KINDS = ALL_KINDS[:-1]
"""Kinds that rules find in every text. Names of people need a model, so they are looked for only on request."""

Action = Literal["report", "redact", "drop", "refuse"]
"""`report`: count it. `redact`: replace the value with a placeholder. `drop`: leave the row out. `refuse`: refuse the
data."""


class PersonalDataPolicy(SpecSection):
    """What happens to rows with personal data or secrets. A single action, such as `redact`, applies to every kind."""

    private_key: Action = "report"
    """Private keys in PEM form."""
    api_key: Action = "report"
    """API keys, tokens and passwords."""
    email: Action = "report"
    """E-mail addresses."""
    credit_card: Action = "report"
    """Credit card numbers."""
    my_number: Action = "report"
    """Japanese individual numbers (My Number)."""
    corporate_number: Action = "report"
    """Japanese corporate numbers, and registration numbers of qualified invoices made from them."""
    bank_account: Action = "report"
    """Bank account numbers and IBANs."""
    passport: Action = "report"
    """Passport numbers."""
    driving_licence: Action = "report"
    """Driving licence numbers."""
    address: Action = "report"
    """Japanese street addresses."""
    postal_code: Action = "report"
    """Japanese postal codes."""
    phone: Action = "report"
    """Phone numbers."""
    ip_address: Action = "report"
    """IPv4 and IPv6 addresses."""
    person: Action | Literal["off"] = "off"
    """Names of people, found by a language model: GiNZA for Japanese, which the extra `names` installs, and spaCy's
    `en_core_web_sm` for English. `off`: not looked for; a single action for every kind leaves it off."""

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return dict.fromkeys(KINDS, value) if isinstance(value, str) and value in get_args(Action) else value

    def action(self, kind: Kind) -> Action | Literal["off"]:
        """The action for a kind."""
        action: Action | Literal["off"] = getattr(self, kind)
        return action
