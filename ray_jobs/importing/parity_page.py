"""The parity report of a replay as one self-contained HTML page. Pure.

The page holds prompts and answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs import pages
from ray_jobs.importing.comparison import AnswerPair, MeasureSummary, summarize
from ray_jobs.pages import BLUE, Chart, PageSection, Table

_SHOWN_PAIRS = 500
_SHOWN_CHARACTERS = 1500
_NOTES = (
    "The report says how alike the answers are, not which is better: a different answer can be the better one.",
    "The new answers are greedy (temperature 0); the old ones were made with the options of their requests.",
    "A refusal is found by a list of English and Japanese phrases: it misses some, and takes others for one.",
)


def page(model: str, kind: str, pairs: Sequence[AnswerPair], failed: Sequence[tuple[str, str]], *, of: int) -> str:
    """The report on `pairs`, with the prompts that were not answered. `of`: prompts that there are in all."""
    summary = summarize(pairs)
    facts = {
        "model": model,
        "prompts": f"{len(pairs) + len(failed)} of {of}, from {kind}",
        "answered": f"{len(pairs)}",
        "not answered": f"{len(failed)}",
    }
    sections = [_measures(summary)]
    if any(pair.chrf is not None for pair in pairs):
        sections.append(_distribution(pairs))
    if failed:
        table = Table(["prompt", "reason"], [(name, reason[:_SHOWN_CHARACTERS]) for name, reason in failed], left="all")
        sections.append(PageSection("Not answered", "They are in no measure.", table=table))
    sections.append(_answers(pairs))
    return pages.page(f"{model}: parity with the answers from OpenAI", sections, facts=facts, notes=_NOTES)


def number(measure: MeasureSummary) -> tuple[str, str]:
    """(value, interval) of a measure as text: shares as percentages."""
    is_share = not measure.name.startswith(("chrF", "length"))
    shown = [
        "-" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.2f}"
        for value in (measure.value, measure.low, measure.high)
    ]
    return shown[0], "too few prompts" if measure.low is None else f"{shown[1]} to {shown[2]}"


def _measures(summary: Sequence[MeasureSummary]) -> PageSection:
    rows = [(each.name, *number(each), str(each.count)) for each in summary]
    return PageSection(
        "Summary",
        "The interval is that of 2,000 bootstrap resamples of the prompts. It covers the choice of the prompts, not "
        "another sample of answers.",
        table=Table(["measure", "value", "95 % interval", "prompts"], rows),
    )


def _distribution(pairs: Sequence[AnswerPair]) -> PageSection:
    values = [pair.chrf for pair in pairs if pair.chrf is not None]
    bars = {"type": "histogram", "x": values, "xbins": {"start": 0, "end": 101, "size": 5}, "marker": {"color": BLUE}}
    drawn = pages.figure([bars], "chrF of the new answer against the old one", "prompts")
    return PageSection("Similarity", "100: equal texts.", charts=[Chart("chrf", drawn)])


def _answers(pairs: Sequence[AnswerPair]) -> PageSection:
    ordered = sorted(pairs, key=lambda pair: (pair.exact, 101.0 if pair.chrf is None else pair.chrf))
    shown = ordered[:_SHOWN_PAIRS]
    rows = [(_cut(pair.prompt), _cut(pair.old), _cut(pair.new), _marks(pair)) for pair in shown]
    more = f" The first {_SHOWN_PAIRS} of {len(pairs)}; parity.json has all." if len(pairs) > len(shown) else ""
    return PageSection(
        "Answers",
        f"The least alike first.{more}",
        table=Table(["prompt", "old answer", "new answer", "measures"], rows, left="all"),
    )


def _marks(pair: AnswerPair) -> str:
    marks = ["equal" if pair.exact else "", "" if pair.chrf is None else f"chrF {pair.chrf:.1f}"]
    marks.append("" if pair.length_ratio is None else f"length × {pair.length_ratio:.2f}")
    marks += ["old refuses"] * pair.old_refuses + ["new refuses"] * pair.new_refuses
    if pair.new_is_json is not None:
        marks.append("JSON" if pair.new_is_json else "no JSON")
    if pair.tools_equal is not None:
        marks.append("same calls" if pair.tools_equal else "other calls")
    return "\n".join(filter(None, [*marks, "cut off" if pair.new_cut_off else ""]))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
