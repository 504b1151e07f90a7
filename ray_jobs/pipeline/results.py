"""Results of `run`, `tune` and `plan`, as text and as JSON for the job's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from ray_jobs.evaluation.paired import Comparison, Interval
from ray_jobs.evaluation.publish import alias_of
from ray_jobs.pipeline.outputs import DeployedEndpoint, Flow, Published, PublishedCheckpoint, SearchSummary
from ray_jobs.spec import JobSpec


class StageTime(BaseModel, frozen=True):
    """Time of a stage in this run."""

    name: str
    seconds: float
    skipped: bool
    """Its record existed."""


class JobResult(BaseModel, frozen=True):
    """Outcome of a job."""

    job_id: str
    model: str
    version: str
    base_name: str
    endpoint: str | None
    base: dict[str, float]
    tuned: dict[str, float]
    base_is: str
    baselines: dict[str, dict[str, float]] = {}
    """Metrics of models without a base, by what they are."""
    intervals: dict[str, Interval] = {}
    """95% intervals of the tuned model's loss and first measure."""
    comparison: Comparison | None = None
    """The tuned model beside its base. None: not measured by an earlier version."""
    not_judged: str = ""
    """Why the gate could not judge the model. Empty: it did."""
    champion_stays: str = ""
    """Why another version stays the champion. Empty: none does, or the model is not judged."""
    tokens_per_s: float
    parity_mean_gap: float | None
    search: SearchSummary | None
    checkpoints: tuple[PublishedCheckpoint, ...]
    """The checkpoints that clients can call, with `training.publish_checkpoints`."""
    trained_tokens: int
    """Over all trials of a search, too."""
    metrics_csv: str | None
    """Key of a file with the losses of every step."""
    stages: tuple[StageTime, ...]

    def as_text(self) -> str:
        """A table for people."""
        others = {"the base model": self.base} if self.base_is == "the base model" else {}
        columns = {**others, **self.baselines} or {self.base_is: self.base}
        titles = [name.removeprefix("the ").removeprefix("a ") for name in columns]
        widths = [max(len(title), 10) for title in titles]
        cells = [f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)]
        lines = [
            f"{self.model}@{self.version}  (job {self.job_id})",
            "",
            "  ".join([f"{'test rows':<16}", *cells, f"{'tuned':>10}"]),
        ]
        for name, value in self.tuned.items():
            values = (f"{each[name]:.4f}" if name in each else "" for each in columns.values())
            cells = [f"{text:>{width}}" for text, width in zip(values, widths, strict=True)]
            spread = "({:.4f} to {:.4f}, 95%)".format(*self.intervals[name]) if name in self.intervals else ""
            lines.append("  ".join([f"{name:<16}", *cells, f"{value:>10.4f}", spread]).rstrip())
        if (found := self.comparison) is not None:
            lines.append(f"{'difference':<16}  {found.difference:+.4f} ({found.interval_as_text()}, 95%) in loss")
        if self.not_judged:
            lines.append(f"not judged: {self.not_judged}")
        if self.champion_stays:
            lines.append(f"the champion stays: {self.champion_stays}")
        lines += ["", f"training    {self.tokens_per_s:,.0f} tokens/s"]
        if self.parity_mean_gap is not None:
            lines.append(f"parity      mean log-probability gap {self.parity_mean_gap:.2g}")
        if self.search is not None:
            lines.append(f"search      {search_summary(self.search.model_dump())}")
        if self.checkpoints:
            steps = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints)
            lines.append(f"checkpoints {steps}, as {self.model}@{alias_of('N')}")
        times = ", ".join(f"{s.name} {'skipped' if s.skipped else f'{s.seconds:.0f} s'}" for s in self.stages)
        return "\n".join([*lines, f"stages      {times}", f"endpoint    {self.endpoint or 'not deployed'}"])


def job_result(flow: Flow, times: Sequence[StageTime], metrics_csv: str | None) -> JobResult:
    """The outcome of a job whose stages have all given their outputs. Pure."""
    spec, evaluation, found = flow.job_spec, flow.evaluation, flow.search
    return JobResult(
        job_id=flow.job_id,
        model=flow.registered.name,
        version=flow.registered.version,
        base_name=flow.base.name,
        endpoint=flow.get(DeployedEndpoint).url if spec.serving.deploy else None,
        base=evaluation.base,
        tuned=evaluation.tuned,
        base_is=evaluation.base_is,
        baselines=evaluation.baselines,
        intervals=evaluation.intervals,
        comparison=evaluation.comparison,
        not_judged=flow.registered.not_judged,
        champion_stays=flow.registered.champion_stays,
        tokens_per_s=flow.trained.tokens_per_s,
        parity_mean_gap=None if flow.parity is None else flow.parity.mean_gap,
        search=None if found is None else SearchSummary.model_validate(vars(found), extra="ignore"),
        checkpoints=flow.get(Published).checkpoints if spec.training.publish_checkpoints else (),
        trained_tokens=flow.trained.tokens + (found.tokens if found is not None and flow.retrains else 0),
        metrics_csv=metrics_csv,
        stages=tuple(times),
    )


def search_summary(search: Mapping[str, Any]) -> str:
    """A search of a job's result in a line."""
    params = search["params"].items()
    values = [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params]
    return f"{search['trials']} trials; the best has {', '.join(values)}"


class TuneResult(BaseModel, frozen=True):
    """Outcome of a search."""

    job_id: str
    run: str
    """The best trial's last run."""
    params: dict[str, Any]
    page: str
    """Key of the page that shows the search."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage, and what a run would do with it."""

    name: str
    action: str


@dataclass(frozen=True)
class PlanReport:
    """The stages of a job, and the action that a run would take for each."""

    spec: JobSpec
    job_id: str
    stages: tuple[PlannedStage, ...]
    advice: tuple[str, ...] = ()
    """What to fix first in the rows, the most important first."""

    def as_text(self) -> str:
        """The resolved spec as YAML, then a line a stage, then the advice."""
        document = yaml.safe_dump(self.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        lines = [f"  {stage.name:<10} {stage.action}" for stage in self.stages]
        if self.advice:
            lines += ["", "what to fix first in the rows", *(f"  {text}" for text in self.advice)]
        return f"{document}\njob {self.job_id}\n" + "\n".join(lines)
