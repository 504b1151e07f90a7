"""What to fix first in the rows of a dataset, from the report of its preparation. Pure, without the words.

A step that changed or dropped its rows needs no advice: what is left is what a reader can still do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from ray_jobs.data.preparation import Preparation, Step
from ray_jobs.spec import DataSection

FEW_ROWS = 50
"""Training rows of a label, or of a dataset without labels, below which more are advised."""
IMBALANCE = 10
"""Rows of the most frequent label for each row of the rarest one from which on they are out of balance."""
MANY_DUPLICATES = 0.05
"""Share of the rows read from which on duplicates are advised on."""
MANY_DROPPED = 0.3
"""Share of the rows read from which on the rows that were dropped are advised on."""
LONG_CHARACTERS = 4096
"""Length of a very long text: about 1,000 tokens of English, and several thousand of Japanese."""

Rule = Literal[
    "no_rows",
    "no_training_rows",
    "one_label",
    "label_not_trained",
    "too_long",
    "secrets",
    "personal_data",
    "too_long_left_out",
    "answers_cut",
    "nothing_trained",
    "leaks",
    "side_without_rows",
    "conflicts",
    "label_noise",
    "few_rows",
    "few_rows_of_labels",
    "label_not_measured",
    "imbalance",
    "many_dropped",
    "exact_duplicates",
    "near_duplicates",
    "mojibake",
    "outliers",
    "language",
    "long_texts",
    "invisible",
    "boilerplate",
]
"""What can be wrong. The order decides where importance and rows are equal."""

SECRETS = ("private_key", "api_key", "credit_card", "my_number")
"""Kinds of personal data whose disclosure endangers an account, money or an identity."""
_STEPS: dict[Rule, Step] = {
    "leaks": "leaks",
    "conflicts": "conflicts",
    "label_noise": "label_noise",
    "exact_duplicates": "exact_duplicates",
    "near_duplicates": "near_duplicates",
    "mojibake": "mojibake",
    "outliers": "outliers",
    "language": "language",
    "invisible": "invisible",
    "boilerplate": "boilerplate",
}
"""Rules about the rows that a step found and left unchanged."""


class Importance(IntEnum):
    """How much depends on a fix; the smallest comes first."""

    REQUIRED = 0
    """Training cannot start, or a secret can be repeated by the model."""
    ADVISED = 1
    """The model, or the measure of it, is wrong for these rows."""
    OPTIONAL = 2
    """The model can become better."""


_IMPORTANCE: dict[Rule, Importance] = {
    "no_rows": Importance.REQUIRED,
    "no_training_rows": Importance.REQUIRED,
    "one_label": Importance.REQUIRED,
    "label_not_trained": Importance.REQUIRED,
    "too_long": Importance.REQUIRED,
    "secrets": Importance.REQUIRED,
    "personal_data": Importance.ADVISED,
    "too_long_left_out": Importance.ADVISED,
    "answers_cut": Importance.ADVISED,
    "nothing_trained": Importance.ADVISED,
    "leaks": Importance.ADVISED,
    "side_without_rows": Importance.ADVISED,
    "conflicts": Importance.ADVISED,
    "label_noise": Importance.ADVISED,
    "few_rows": Importance.ADVISED,
    "few_rows_of_labels": Importance.ADVISED,
    "label_not_measured": Importance.ADVISED,
    "imbalance": Importance.ADVISED,
    "many_dropped": Importance.ADVISED,
}
"""Rules that are not listed are optional."""


@dataclass(frozen=True)
class Advice:
    """One thing to fix."""

    rule: Rule
    rows: int
    """Rows to look at, to add, to change or to remove: the cost by which advice of one importance is ordered."""
    names: tuple[str, ...] = field(default=())
    """Labels, sides or kinds of personal data, sorted."""
    share: float = 0.0
    """Its share of the rows read, where the rule has such a limit."""
    ratio: int = 0
    """Rows of the most frequent label for each row of the rarest one."""
    example: str = ""
    """Id of the first row that a step lists."""
    max_tokens: int = int(DataSection.model_fields["max_tokens"].default)
    longest_tokens: int = 0
    """Tokens of the longest row."""

    @property
    def importance(self) -> Importance:
        """What depends on it."""
        return _IMPORTANCE.get(self.rule, Importance.OPTIONAL)


def advise(report: Preparation) -> tuple[Advice, ...]:
    """What to fix, the most important first; of equal importance, what concerns the most rows."""
    kept = sum(side.rows for side in report.sides.values())
    if not kept:
        return (Advice("no_rows", report.read),)
    found = [*_sides(report), *_labels(report), *_personal_data(report), *_steps(report), *_lengths(report)]
    found = [*found, *_tokens(report)]
    return tuple(sorted(found, key=lambda each: (each.importance, -each.rows)))


def _sides(report: Preparation) -> Iterator[Advice]:
    rows = {name: side.rows for name, side in report.sides.items()}
    if not rows.get("train"):
        yield Advice("no_training_rows", sum(rows.values()))
    empty = tuple(name for name, count in rows.items() if not count and name != "train")
    if empty:
        yield Advice("side_without_rows", sum(rows.values()), empty)
    dropped = report.read - sum(rows.values())
    if report.read and dropped >= MANY_DROPPED * report.read:
        yield Advice("many_dropped", dropped, share=dropped / report.read)


def _labels(report: Preparation) -> Iterator[Advice]:
    train = report.sides.get("train")
    others = {name: side.labels for name, side in report.sides.items() if name != "train" and side.rows}
    known = {label for side in report.sides.values() for label, count in side.labels.items() if count}
    if train is None or not train.rows:
        return
    if not known:
        if train.rows < FEW_ROWS:
            yield Advice("few_rows", FEW_ROWS - train.rows)
        return
    trained = {label: count for label, count in train.labels.items() if count}
    if len(trained) == 1:
        yield Advice("one_label", train.rows, tuple(trained))
    untrained = sorted(known - trained.keys())
    if untrained:
        held_out = sum(labels.get(label, 0) for labels in others.values() for label in untrained)
        yield Advice("label_not_trained", held_out, tuple(untrained))
    few = {label: FEW_ROWS - count for label, count in sorted(trained.items()) if count < FEW_ROWS}
    if few:
        yield Advice("few_rows_of_labels", sum(few.values()), tuple(few))
    unmeasured = sorted(label for label in trained if any(not labels.get(label) for labels in others.values()))
    if unmeasured:
        yield Advice("label_not_measured", sum(trained[label] for label in unmeasured), tuple(unmeasured))
    if trained:
        yield from _imbalance(trained)


def _imbalance(trained: dict[str, int]) -> Iterator[Advice]:
    most, least = max(trained.values()), min(trained.values())
    if most < IMBALANCE * least:
        return
    wanted = most // IMBALANCE + 1
    rare = {label: wanted - count for label, count in sorted(trained.items()) if count * IMBALANCE <= most}
    yield Advice("imbalance", sum(rare.values()), tuple(rare), ratio=most // least)


def _personal_data(report: Preparation) -> Iterator[Advice]:
    for step in report.steps:
        if step.step != "personal_data" or step.action not in {"report", "list"} or not step.rows:
            continue
        secrets = {kind: step.detail[kind] for kind in SECRETS if step.detail.get(kind)}
        others = {kind: count for kind, count in step.detail.items() if count and kind not in SECRETS}
        if secrets:
            yield Advice("secrets", max(secrets.values()), tuple(secrets))
        if others or not secrets:
            yield Advice("personal_data", max(others.values(), default=step.rows), tuple(others))


def _steps(report: Preparation) -> Iterator[Advice]:
    for rule, name in _STEPS.items():
        left = [step for step in report.steps if step.step == name and step.action in {"report", "list"}]
        rows = sum(step.rows for step in left)
        share = rows / report.read if report.read else 0.0
        if rows and (not rule.endswith("_duplicates") or share >= MANY_DUPLICATES):
            example = next((sample.row for step in left for sample in step.samples), "")
            yield Advice(rule, rows, share=share, example=example)


def _tokens(report: Preparation) -> Iterator[Advice]:
    fit = report.fit
    if fit is None:
        return
    left: dict[Rule, int] = {
        "too_long": fit.long_rows if fit.too_long == "error" else 0,
        "too_long_left_out": fit.long_rows if fit.too_long == "drop" else 0,
        "answers_cut": fit.cut_rows if fit.too_long == "truncate" else 0,
        "nothing_trained": fit.untrained_rows,
    }
    for rule, rows in left.items():
        if rows:
            yield Advice(rule, rows, max_tokens=fit.max_tokens, longest_tokens=fit.longest_tokens)


def _lengths(report: Preparation) -> Iterator[Advice]:
    rows = sum(count for start, count in report.lengths.items() if start >= LONG_CHARACTERS)
    if rows and report.fit is None:  # else the tokens are known
        yield Advice("long_texts", rows)
