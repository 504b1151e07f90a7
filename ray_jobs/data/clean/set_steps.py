"""The steps that compare rows with each other: which rows each of them removes or lists. Pure.

Knows rows by digests, labels and ids, and asks for a text only where a step needs it. The result depends on the set of
rows alone. `drop_rows` comes first, so that a listed row neither conflicts with another nor stays for its duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.clean.duplicates import conflicting, repeated
from ray_jobs.data.clean.label_noise import doubted
from ray_jobs.data.clean.language import LanguageJudge
from ray_jobs.data.clean.near_duplicates import GramSets, Signatures, clusters, keepers
from ray_jobs.data.clean.outliers import outliers
from ray_jobs.data.clean.samples import MOST_LISTED, MOST_SAMPLES, masked
from ray_jobs.data.preparation import STEPS, DuplicateCluster, Sample, Step, StepReport
from ray_jobs.data.row_arrays import Digests, Ids, Ints, numbers_of
from ray_jobs.errors import DataError
from ray_jobs.spec.cleaning import CleaningPolicy

_MOST_CLUSTERS, _CLUSTER_TEXTS = 20, 3
_CLUSTERS_LOADED, _MEMBERS_LOADED = 200, 20


@dataclass(frozen=True)
class RowTable:
    """What the steps know of the rows that `RowSteps` kept; every array has an entry a row."""

    ids: Ids
    """`row_id` of each row as it was read."""
    digests: Digests
    """`row_digest` of each row as it stays."""
    inputs: Digests
    """`input_digest` of each row."""
    labels: Sequence[str | None]
    text_of: Callable[[int], str]
    """`samples.text_of` a row."""
    place_of: Callable[[int], str]
    """File and number of a row."""
    signatures: Signatures | None
    """Those of the texts. None: the policy compares no near duplicates."""
    features: NDArray[np.float32] | None
    """`outliers.features` of the texts. None: the policy looks for no outliers."""

    def __len__(self) -> int:
        return len(self.ids)

    def id_of(self, row: int) -> str:
        """A row's id in reports."""
        return f"{self.ids[row]:016x}"

    @cached_property
    def label_numbers(self) -> Ints:
        """A number for each label."""
        return numbers_of(self.labels)


@dataclass(frozen=True)
class SetCleaning:
    """What the steps decided."""

    removed: Mapping[int, Step]
    """The step that removes a row, by its number."""
    kept: Ints
    """The other rows."""
    reports: tuple[StepReport, ...]
    """In the order of the steps."""
    clusters: tuple[DuplicateCluster, ...] = ()
    """The largest clusters of near duplicates."""


def clean_set(
    policy: CleaningPolicy, table: RowTable, drop: Collection[str] = (), gone: Collection[str] = ()
) -> SetCleaning:
    """Decide which rows stay. `drop`: the ids of `policy.drop_rows`; `gone`: ids of rows that earlier steps left out.

    Raises DataError for an id to drop that no row has.
    """
    steps = _SetSteps(policy, table)
    steps.drop_listed(frozenset(drop), frozenset(gone))
    steps.exact_duplicates()
    steps.near_duplicates()
    steps.conflicts()
    steps.outliers()
    steps.language()
    steps.label_noise()
    reports = sorted(steps.reports, key=lambda report: STEPS.index(report.step))
    return SetCleaning(steps.removed, steps.left(), tuple(reports), steps.largest)


class _SetSteps:
    """The state of one pass: each step sees the rows that the steps before it left."""

    def __init__(self, policy: CleaningPolicy, table: RowTable) -> None:
        self._policy, self._table = policy, table
        self.removed: dict[int, Step] = {}
        self.reports: list[StepReport] = []
        self.largest: tuple[DuplicateCluster, ...] = ()

    def drop_listed(self, drop: frozenset[str], gone: frozenset[str]) -> None:
        if not drop:
            return
        table = self._table
        unknown = [f"{each:016x}" for each in np.setdiff1d(_ids(drop - gone), table.ids).tolist()]
        if unknown:
            more = [f"+{len(unknown) - MOST_SAMPLES} more"] if len(unknown) > MOST_SAMPLES else []
            raise DataError(
                f"data.clean.drop_rows has {len(unknown)} id(s) that no row has: a row whose content changes "
                "gets another id; remove these ids, or list the rows again",
                details=[*unknown[:MOST_SAMPLES], *more],
            )
        listed = np.flatnonzero(np.isin(table.ids, _ids(drop)))
        self._finish("drop_rows", "drop", dict.fromkeys(listed.tolist(), "listed"))

    def exact_duplicates(self) -> None:
        if self._policy.exact_duplicates != "off":
            table = self._table
            found = repeated(table.digests, table.ids, self.left())
            self._finish(
                "exact_duplicates", self._policy.exact_duplicates,
                {row: f"equals {table.place_of(stays)}" for row, stays in found.items()},
            )  # fmt: skip

    def near_duplicates(self) -> None:
        if self._policy.near_duplicates == "off":
            return
        table, similarity, left = self._table, self._policy.near_duplicate_similarity, self.left()
        marks = table.signatures
        assert marks is not None
        groups = clusters(marks[left], lambda at: table.text_of(int(left[at])), similarity)
        members: dict[int, list[int]] = {}
        for at in np.flatnonzero(np.bincount(groups, minlength=len(left))[groups] > 1).tolist():
            members.setdefault(int(groups[at]), []).append(int(left[at]))
        found: dict[int, str] = {}
        shown: list[tuple[list[int], int]] = []
        sets, found_clusters = GramSets(table.text_of), list(members.values())
        for at, cluster in enumerate(found_clusters):
            if at % _CLUSTERS_LOADED == 0:
                following = found_clusters[at : at + _CLUSTERS_LOADED]
                sets.load(row for each in following for row in each[:_MEMBERS_LOADED])
            cluster.sort(key=lambda row: (table.digests[row].tobytes(), int(table.ids[row]), row))
            keeper: dict[int, int] = {}
            for label in {table.labels[row] for row in cluster}:  # similar texts with two labels are no duplicates
                of_label = [row for row in cluster if table.labels[row] == label]
                keeper |= keepers(of_label, marks, sets, similarity)
            found |= {row: f"like {table.place_of(stays)}" for row, stays in keeper.items() if stays != row}
            shown.append((cluster, sum(row == stays for row, stays in keeper.items())))
        shown.sort(key=lambda each: (-len(each[0]), table.digests[each[0][0]].tobytes()))
        drops = self._policy.near_duplicates == "drop"
        self.largest = tuple(
            DuplicateCluster(
                rows=len(cluster),
                kept=kept if drops else len(cluster),
                texts=tuple(masked(table.text_of(row)) for row in cluster[:_CLUSTER_TEXTS]),
            )
            for cluster, kept in shown[:_MOST_CLUSTERS]
        )
        self._finish("near_duplicates", self._policy.near_duplicates, found, {"clusters": len(shown)})

    def conflicts(self) -> None:
        if self._policy.conflicts == "off":
            return
        table = self._table
        has_labels = any(label is not None for label in table.labels)
        found = conflicting(table.inputs, table.label_numbers if has_labels else table.digests, self.left())
        what = "labels" if has_labels else "answers"
        inputs = len(np.unique(table.inputs[np.array(list(found), dtype=np.int64)]))
        why = {row: f"its input has {count} {what}" for row, count in found.items()}
        self._finish("conflicts", self._policy.conflicts, why, {"inputs": inputs})

    def outliers(self) -> None:
        if self._policy.outliers == "off":
            return
        left, values = self.left(), self._table.features
        assert values is not None
        found = {int(left[at]): why for at, why in outliers(values[left]).items()}
        self._finish("outliers", self._policy.outliers, found, Counter(why.split()[0] for why in found.values()))

    def language(self) -> None:
        if not self._policy.languages:
            return
        judge = LanguageJudge(self._policy.languages)
        judged = {row: judge.other(self._table.text_of(row)) for row in self.left().tolist()}
        found = {row: other for row, other in judged.items() if other is not None}
        worst = sorted(found, key=lambda row: (-found[row].confidence, int(self._table.ids[row])))
        self._list("language", {row: f"{found[row].language}, {found[row].confidence:.0%} sure" for row in worst},
                   Counter(other.language for other in found.values()))  # fmt: skip

    def label_noise(self) -> None:
        table = self._table
        if not self._policy.label_noise or all(label is None for label in table.labels):
            return
        found = doubted(table.text_of, table.labels, table.inputs, self.left())
        self._list(
            "label_noise",
            {
                doubt.row: f"labelled {table.labels[doubt.row]} ({doubt.confidence:.0%}), likelier {doubt.suggested}"
                for doubt in found
            },
        )

    def left(self) -> Ints:
        stays = np.ones(len(self._table), dtype=bool)
        stays[list(self.removed)] = False
        return np.flatnonzero(stays)

    def _finish(
        self,
        step: Step,
        action: Literal["report", "drop"],
        found: Mapping[int, str],
        detail: Mapping[str, int] | None = None,
    ) -> None:
        if action == "drop":
            self.removed |= dict.fromkeys(found, step)
        table = self._table
        first = nsmallest(MOST_SAMPLES, found, key=lambda row: (int(table.ids[row]), table.place_of(row)))
        self._report(step, action, len(found), {row: found[row] for row in first}, detail)

    def _list(self, step: Step, found: Mapping[int, str], detail: Mapping[str, int] | None = None) -> None:
        self._report(step, "list", len(found), dict(list(found.items())[:MOST_LISTED]), detail)

    def _report(
        self,
        step: Step,
        action: Literal["report", "list", "drop"],
        rows: int,
        shown: Mapping[int, str],
        detail: Mapping[str, int] | None,
    ) -> None:
        table = self._table
        samples = tuple(
            Sample(row=table.id_of(row), place=table.place_of(row), before=masked(table.text_of(row)), why=masked(why))
            for row, why in shown.items()
        )
        self.reports.append(
            StepReport(
                step=step, action=action, rows=rows, samples=samples, detail=dict(sorted((detail or {}).items()))
            )
        )


def _ids(texts: Collection[str]) -> Ids:
    return np.array([int(text, 16) for text in texts], dtype=np.uint64)
