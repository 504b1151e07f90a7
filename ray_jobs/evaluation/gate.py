"""The gate: whether the evaluation shows that the tuned model is better than its base, by more than chance. Pure.

Three answers: better, not better (the job ends with GateError), and not judged, where the test side has too few rows
to tell. A version that was not judged is registered for its own team, and answers for no name that others rely on.
"""

from __future__ import annotations

import math

from ray_jobs.errors import GateError
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.evidence import counted
from ray_jobs.spec import JobSpec

LEVEL = 0.05
"""Largest chance that a model passes which is no better than its base."""


def reason_not_judged(evaluation: Evaluation, spec: JobSpec) -> str:
    """Why the tuned model could not be judged; empty where it was, or where the job wants no judgement."""
    return evaluation.lacking if spec.evaluation.must_beat_base else ""


def reason_champion_stays(evaluation: Evaluation, spec: JobSpec, champion: str | None) -> str:
    """Why the alias `champion` stays where it is: the new version is not better than what it points at, as far as is
    known. Empty: it moves. `champion`: the version that it points at now; None: at none."""
    if champion is None or not spec.evaluation.must_beat_base:
        return ""
    compared, found = evaluation.champion, evaluation.beside_champion
    if compared is None or compared.version != champion:
        return f"the new version was not compared with version {champion}, which became the champion meanwhile"
    if found is None:
        return f"version {champion} cannot be compared with the new one: {compared.incomparable}"
    if found.chance > LEVEL:
        return (
            f"the new version is not better than version {champion} by more than chance: its test loss is "
            f"{found.difference:+.4f} beside that of the champion (95% interval {found.interval_as_text()})"
        )
    return ""


def gate(evaluation: Evaluation, spec: JobSpec) -> None:
    """Raise GateError for a tuned model that was judged, and is not better than its base on the test rows."""
    tuned, base, against = evaluation.tuned["loss"], evaluation.base["loss"], evaluation.base_is
    if not math.isfinite(tuned):
        raise GateError(f"the tuned model's test loss is {tuned}; it is not registered")
    if not spec.evaluation.must_beat_base or evaluation.lacking:
        return
    found = evaluation.comparison
    on = f"on {counted(evaluation.test_rows)}"
    fix = "train longer, change the learning rate or bring more rows, or set evaluation.must_beat_base: false"
    if tuned >= base:
        raise GateError(
            f"the tuned model's test loss {tuned:.4f} is not below that of {against}, {base:.4f}, {on}, so it is not "
            f"registered: {fix}"
        )
    if found is not None and found.chance > LEVEL:
        raise GateError(
            f"the tuned model's test loss {tuned:.4f} is below that of {against}, {base:.4f}, {on}, but not by more "
            f"than chance (95% interval of the difference {found.interval_as_text()}; with other test rows it would "
            f"not be better in {found.chance:.1%} of cases, and {LEVEL:.0%} are allowed), so it is not registered: "
            f"{fix}"
        )
