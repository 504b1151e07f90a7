"""The advice on rows in words: what was found, what to do, and the line of the job file for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.data import page_messages as messages
from ray_jobs.data.advice import FEW_ROWS, IMBALANCE, LONG_CHARACTERS, Advice, advise
from ray_jobs.data.advice_messages import ADVICE, line
from ray_jobs.data.page_figures import short
from ray_jobs.data.preparation import Preparation
from ray_jobs.pages.messages import Message, Speaker

KINDS: dict[str, Message] = {str(kind): message for kind, message in messages.KIND_NAMES.items()}
"""Kinds of personal data."""
_NAMES = 10
"""Names in a sentence."""


@dataclass(frozen=True)
class Fix:
    """One advice."""

    importance: str
    problem: str
    remedy: str
    setting: str
    """What to write below `data:`. Empty: no setting does it."""

    def as_text(self) -> str:
        """In a line, for a plan."""
        return f"{self.importance}: {self.problem} {self.remedy}" + (f" `{self.setting}`" if self.setting else "")


def fixes(say: Speaker, report: Preparation) -> list[Fix]:
    """What to fix, the most important first."""
    return [_fix(say, advice) for advice in advise(report)]


def _fix(say: Speaker, advice: Advice) -> Fix:
    known = messages.SIDE_NAMES | KINDS
    # A label may be spelt like a side or a kind.
    is_label = advice.rule not in {"secrets", "personal_data", "side_without_rows"}
    names = [name if is_label or name not in known else say(known[name]) for name in advice.names]
    values: dict[str, str | int] = {
        "rows": advice.rows,
        "names": enumerated(say, names),
        "share": say.percent(advice.share),
        "ratio": advice.ratio,
        "few_rows": FEW_ROWS,
        "imbalance": IMBALANCE,
        "long_characters": LONG_CHARACTERS,
        "max_tokens": advice.max_tokens,
        "longest_tokens": advice.longest_tokens,
    }
    texts = ADVICE[advice.rule]
    problem, remedy = say(texts.problem, **values), say(texts.remedy, **values)
    return Fix(say(messages.IMPORTANCES[advice.importance]), problem, remedy, line(advice))


def enumerated(say: Speaker, names: Sequence[str]) -> str:
    """The first names, and how many more."""
    shown = say.join([short(name) for name in names[:_NAMES]])
    return shown if len(names) <= _NAMES else say(messages.AND_MORE, names=shown, more=len(names) - _NAMES)
