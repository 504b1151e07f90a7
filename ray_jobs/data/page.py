"""The page of a preparation as one self-contained HTML document, in English or Japanese. Pure.

Written for readers without knowledge of machine learning. It knows the report alone, whose texts are masked already;
notices, places and reasons are English on both pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ray_jobs import pages
from ray_jobs.data import page_messages as messages
from ray_jobs.data.differences import cut, difference, readable
from ray_jobs.data.fixes import KINDS, enumerated, fixes
from ray_jobs.data.page_figures import height, length_bars, short, side_bars
from ray_jobs.data.preparation import Preparation, Sample, StepReport
from ray_jobs.pages import Cell, CellPart, Chart, PageSection, Table
from ray_jobs.pages.messages import Language, Speaker

_SAMPLES = 10
"""Rows shown for each step."""
_BARS, _LABEL_ROWS = 40, 200
"""Labels in the figure and in the table."""

_T = TypeVar("_T")


def page(report: Preparation, language: Language) -> str:
    """The report as HTML."""
    say = Speaker(language)
    sections = [
        _fixes(say, report),
        _sides(say, report),
        _lengths(say, report),
        *_steps(say, report),
        *_clusters(say, report),
        _personal_data(say, report),
        _notices(say, report),
    ]
    return pages.page(
        say(messages.TITLE), sections, facts=_facts(say, report), notes=_summary(say, report), language=language
    )


def _facts(say: Speaker, report: Preparation) -> dict[str, str]:
    labels = _labels(report)
    facts = {
        say(messages.TASK): report.task,
        say(messages.SOURCES): enumerated(say, report.sources),
        say(messages.ROWS_READ): f"{report.read:,}",
        say(messages.ROWS_KEPT): f"{_kept(report):,}",
    }
    return facts | ({say(messages.LABELS): f"{len(labels):,}"} if labels else {})


def _summary(say: Speaker, report: Preparation) -> list[str]:
    kept, labels = _kept(report), _labels(report)
    rows = [say(messages.READ, read=report.read, kept=kept)]
    left_out = report.read - kept
    if left_out > 0:
        rows.append(say(messages.LEFT_OUT, rows=left_out, share=say.percent(left_out / report.read)))
        rest = left_out - sum(step.rows for step in report.steps if step.action == "drop")
        rows += [say(messages.LEFT_OUT_BY_NO_STEP, rows=rest)] if rest > 0 else []
    if kept:
        sides = [say(messages.SIDE_ROWS[name], rows=side.rows) for name, side in report.sides.items()]
        rows.append(say(messages.DIVIDED, sides=say.join(sides)))
    summary = [say.sentences(rows)]
    changed = [step for step in report.steps if step.action == "change" and step.rows]
    if changed:
        names = [
            say(messages.STEP_ROWS, step=say(messages.STEP_NAMES[each.step][0]), rows=each.rows) for each in changed
        ]
        summary.append(say(messages.CHANGED, steps=say.join(names)))
    if len(labels) == 1:
        summary.append(say(messages.ONE_LABEL, label=short(next(iter(labels)))))
    elif labels:
        (most, most_rows), *_, (least, least_rows) = labels.items()
        counts = {"labels": len(labels), "most_rows": most_rows, "least_rows": least_rows}
        summary.append(say(messages.LABELS_COUNTED, most=short(most), least=short(least), **counts))
    return [*summary, say(messages.SIDES_EXPLAINED)] if kept else summary


def _fixes(say: Speaker, report: Preparation) -> PageSection:
    heading, found = say(messages.FIX_FIRST), fixes(say, report)
    if not found:
        return PageSection(heading, say(messages.NOTHING_TO_FIX))
    columns = [messages.IMPORTANCE, messages.PROBLEM, messages.REMEDY, messages.LINE]
    rows: list[list[Cell]] = [
        [each.importance, each.problem, each.remedy, [CellPart(each.setting, "code")] if each.setting else ""]
        for each in found
    ]
    table = Table([say(each) for each in columns], rows, left="stack")
    return PageSection(heading, say(messages.FIX_CAPTION), table=table)


def _sides(say: Speaker, report: Preparation) -> PageSection:
    labels = _labels(report)
    if not labels:
        counts: dict[str, dict[str, int]] = {
            name: {say(messages.SIDE_NAMES[name]): side.rows} for name, side in report.sides.items()
        }
        drawn = side_bars(say, counts, [say(messages.SIDE_NAMES[name]) for name in report.sides])
        rows = [[say(messages.SIDE_NAMES[name]), f"{side.rows:,}"] for name, side in report.sides.items()]
        table = Table([say(messages.SIDE), say(messages.ROWS)], rows)
        charts = [Chart("sides", drawn, height=height(len(rows)), tools=False)] if _kept(report) else []
        return PageSection(say(messages.SIDES_ONLY), say(messages.SIDES_CAPTION), charts, table)
    shown, listed = _ends(list(labels), _BARS), _ends(list(labels), _LABEL_ROWS)
    caption = [say(messages.LABELS_CAPTION)]
    if len(shown) < len(labels):
        caption.append(say(messages.LABELS_SHOWN, shown=len(shown), labels=len(labels)))
    if len(listed) < len(labels):
        caption.append(say(messages.LABELS_LISTED, shown=len(listed)))
    drawn = side_bars(say, {str(name): side.labels for name, side in report.sides.items()}, shown)
    sides = [say(messages.SIDE_NAMES[name]) for name in report.sides]
    cells = [
        [short(label), *(f"{side.labels.get(label, 0):,}" for side in report.sides.values()), f"{labels[label]:,}"]
        for label in listed
    ]
    return PageSection(
        say(messages.SIDES),
        say.sentences(caption),
        [Chart("labels", drawn, height=height(len(shown)), tools=False)],
        Table([say(messages.LABEL), *sides, say(messages.TOTAL)], cells),
    )


def _lengths(say: Speaker, report: Preparation) -> PageSection:
    heading = say(messages.LENGTHS)
    if not any(report.lengths.values()):
        return PageSection(heading, say(messages.NO_LENGTHS))
    drawn = length_bars(say, report.lengths)
    return PageSection(heading, say(messages.LENGTHS_CAPTION), [Chart("lengths", drawn, height="20rem", tools=False)])


def _steps(say: Speaker, report: Preparation) -> Iterator[PageSection]:
    heading = say(messages.STEPS)
    if not report.steps:
        yield PageSection(heading, say(messages.NO_STEPS))
        return
    columns = [messages.STEP, messages.ACTION, messages.ROWS, messages.DETAIL, messages.MEANING]
    rows: list[list[Cell]] = []
    for step in report.steps:
        name, meaning = messages.STEP_NAMES[step.step]
        rows.append([say(name), say(messages.ACTIONS[step.action]), f"{step.rows:,}", _detail(say, step), say(meaning)])
    table = Table([say(each) for each in columns], rows, left="stack")
    caption = [say(messages.STEPS_CAPTION), say(messages.REASONS_IN_ENGLISH)]
    yield PageSection(heading, say.sentences(filter(None, caption)), table=table)
    yield from (_samples(say, step) for step in report.steps if step.samples)


def _detail(say: Speaker, step: StepReport) -> str:
    """The counts within a step. Those of personal data have a section of their own."""
    counts = {} if step.step == "personal_data" else step.detail
    names = {name: say(messages.COUNT_NAMES[name]) if name in messages.COUNT_NAMES else short(name) for name in counts}
    return say.join([f"{names[name]} {count:,}" for name, count in counts.items()])


def _samples(say: Speaker, step: StepReport) -> PageSection:
    shown = step.samples[:_SAMPLES]
    caption = [say(messages.SHOWN_SAMPLES, shown=len(shown), rows=step.rows)]
    if len(step.samples) > len(shown):
        caption.append(say(messages.STORED_SAMPLES, stored=len(step.samples)))
    if step.action == "list":
        caption.append(say(messages.REVIEW, row=shown[0].row))
    changed = any(sample.after is not None for sample in shown)
    columns = [messages.PLACE, *([messages.BEFORE, messages.AFTER] if changed else [messages.TEXT])]
    rows = [_sample(sample, changed) for sample in shown]
    if any(sample.why for sample in shown):
        columns.append(messages.REASON)
        rows = [[*row, readable(cut(sample.why))] for row, sample in zip(rows, shown, strict=True)]
    table = Table([say(each) for each in columns], rows, left="stack")
    heading = say(messages.EXAMPLES, step=say(messages.STEP_NAMES[step.step][0]))
    return PageSection(heading, say.sentences(caption), table=table, level=3)


def _sample(sample: Sample, changed: bool) -> list[Cell]:
    place = [CellPart(f"{readable(cut(sample.place))}\n"), CellPart(sample.row, "code")]
    if sample.after is not None:
        return [place, *difference(sample.before, sample.after)]
    return [place, readable(cut(sample.before)), *([""] if changed else [])]


def _clusters(say: Speaker, report: Preparation) -> Iterator[PageSection]:
    if not report.clusters:
        return
    rows: list[list[Cell]] = []
    for cluster in report.clusters:
        texts = [f"{place}. {readable(cut(text))}" for place, text in enumerate(cluster.texts, 1)]
        rows.append([f"{cluster.rows:,}", f"{cluster.kept:,}", "\n".join(texts)])
    columns = [messages.CLUSTER_ROWS, messages.CLUSTER_KEPT, messages.CLUSTER_TEXTS]
    table = Table([say(each) for each in columns], rows, left="stack")
    yield PageSection(say(messages.CLUSTERS), say(messages.CLUSTERS_CAPTION), table=table)


def _personal_data(say: Speaker, report: Preparation) -> PageSection:
    heading = say(messages.PERSONAL)
    steps = [step for step in report.steps if step.step == "personal_data"]
    rows: list[list[Cell]] = [
        [say(KINDS[kind]) if kind in KINDS else kind, f"{count:,}", say(messages.ACTIONS[step.action])]
        for step in steps
        for kind, count in step.detail.items()
        if count
    ]
    if not rows:
        return PageSection(heading, say(messages.NO_PERSONAL if steps else messages.NOT_SEARCHED))
    table = Table([say(messages.KIND), say(messages.ROWS), say(messages.ACTION)], rows, left="stack")
    return PageSection(heading, say(messages.PERSONAL_CAPTION), table=table)


def _notices(say: Speaker, report: Preparation) -> PageSection:
    heading = say(messages.NOTICES)
    if not report.notices:
        return PageSection(heading, say(messages.NO_NOTICES))
    table = Table([say(messages.NOTICE)], [[readable(notice)] for notice in report.notices], left="all")
    return PageSection(heading, say(messages.NOTICES_CAPTION), table=table)


def _kept(report: Preparation) -> int:
    return sum(side.rows for side in report.sides.values())


def _labels(report: Preparation) -> dict[str, int]:
    """Rows of each label on all sides, the most frequent first."""
    totals: dict[str, int] = {}
    for side in report.sides.values():
        for label, rows in side.labels.items():
            totals[label] = totals.get(label, 0) + rows
    return dict(sorted(totals.items(), key=lambda each: (-each[1], each[0])))


def _ends(ordered: Sequence[_T], most: int) -> list[_T]:
    """All, or the first and the last of too many."""
    if len(ordered) <= most:
        return list(ordered)
    return [*ordered[: most // 2], *ordered[-(most - most // 2) :]]
