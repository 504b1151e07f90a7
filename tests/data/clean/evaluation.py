"""Recall and precision of each kind on planted values, and false alarms on clean rows.

.venv/bin/python -m tests.data.clean.evaluation
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from ray_jobs.data.clean.personal_data import find
from ray_jobs.spec.personal_data import KINDS, Kind
from tests.data.clean import held_out_texts
from tests.data.clean.planted_values import FULL_WIDTH, VALUES, digits, password

VALUES_A_TEMPLATE = 30
CLEAN_A_TEMPLATE = 20
_WIDENED: frozenset[Kind] = frozenset(
    {"email", "phone", "postal_code", "credit_card", "my_number", "corporate_number", "bank_account", "address"}
)
_FIELD = re.compile(r"\{(date|price|[0-9]+)\}")


@dataclass
class Table:
    """Counts of an evaluation."""

    planted: Counter[Kind] = field(default_factory=Counter)
    found: Counter[Kind] = field(default_factory=Counter)
    reported: Counter[Kind] = field(default_factory=Counter)
    """Findings of a kind in all rows."""
    clean_rows: int = 0
    alarmed_rows: int = 0
    missed: list[tuple[Kind, str]] = field(default_factory=list)
    alarms: list[tuple[Kind, str]] = field(default_factory=list)

    def recall(self, kind: Kind) -> float:
        return self.found[kind] / self.planted[kind]

    def precision(self, kind: Kind) -> float:
        return self.found[kind] / self.reported[kind]

    @property
    def alarms_per_1000(self) -> float:
        return 1000 * self.alarmed_rows / self.clean_rows

    def __str__(self) -> str:
        lines = [f"{'kind':18}{'planted':>8}{'recall':>9}{'precision':>11}"]
        lines += [
            f"{kind:18}{self.planted[kind]:8}{self.recall(kind):9.2%}{self.precision(kind):11.2%}" for kind in KINDS
        ]
        return "\n".join([*lines, f"false alarms: {self.alarmed_rows} of {self.clean_rows} clean rows"])


def filled(template: str, random: Random) -> str:
    """A clean row with its numbers."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "date":
            year, month, day = random.randint(1999, 2029), random.randint(1, 12), random.randint(1, 28)
            return random.choice(
                [
                    f"{year}-{month:02}-{day:02}",
                    f"{year}年{month}月{day}日",
                    f"{month:02}/{day:02}/{year}",
                    f"{year}/{month}/{day}",
                ]
            )
        if match[1] == "price":
            return random.choice(
                [f"{random.randint(100, 9_999_999):,}", f"{random.randint(1, 9999)}.{random.randint(0, 99):02}"]
            )
        return digits(random, int(match[1]))

    return _FIELD.sub(value, template)


def clean_rows(templates: Sequence[str], random: Random) -> Iterator[str]:
    for template in templates:
        for _ in range(CLEAN_A_TEMPLATE):
            yield filled(template, random)


def evaluate(
    planted: Mapping[Kind, Sequence[str]], passwords: Sequence[str], clean: Sequence[str], seed: int = 1
) -> Table:
    random, table = Random(seed), Table()
    sentences = [(kind, template, VALUES[kind]) for kind in KINDS for template in planted[kind]]
    sentences += [("api_key", template.replace("{{", "{").replace("}}", "}"), password) for template in passwords]
    for kind, template, make in sentences:
        for _ in range(VALUES_A_TEMPLATE):
            value = make(random)
            if kind in _WIDENED and random.random() < 0.25:
                value = value.translate(FULL_WIDTH)
            start = template.index("{}")
            text = template.replace("{}", value, 1)
            _count(table, kind, text, start, start + len(value))
    for text in clean_rows(clean, random):
        alarms = find(text)
        table.clean_rows += 1
        table.alarmed_rows += bool(alarms)
        table.reported.update(finding.kind for finding in alarms)
        table.alarms += [(finding.kind, text) for finding in alarms]
    return table


def _count(table: Table, kind: Kind, text: str, start: int, end: int) -> None:
    table.planted[kind] += 1
    hit = False
    for finding in find(text):
        covers = finding.start <= start + 1 and finding.end >= end and finding.end - end <= 24
        if finding.kind == kind and covers and not hit:
            hit = True
        elif finding.kind != "ip_address" or "x-forwarded-for" not in text:
            table.alarms.append((finding.kind, text))
        else:
            continue
        table.reported[finding.kind] += 1
    table.found[kind] += hit
    if not hit:
        table.missed.append((kind, text))


def held_out() -> Table:
    """The table that the goals are about."""
    return evaluate(held_out_texts.PLANTED, held_out_texts.PASSWORDS, held_out_texts.CLEAN)


if __name__ == "__main__":
    print(held_out())
