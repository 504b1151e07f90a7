"""From the rows of `data` to a stored dataset: read, check, clean, split, write. Plans do the same without storing.

Owns the order of these steps and the facts of the manifest. The decisions are in `split.py`, `clean/` and `labels.py`.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from ray_jobs.data import dataset, versions
from ray_jobs.data.clean import names
from ray_jobs.data.clean.near_duplicates import clusters
from ray_jobs.data.clean.samples import MOST_SAMPLES, masked
from ray_jobs.data.cleaned_rows import Cleaned, JoinCluster, Note, read_and_clean
from ray_jobs.data.dataset import Dataset
from ray_jobs.data.formats.records import MOST_LISTED, listed
from ray_jobs.data.labels import check_labels, contradictory, doubtful
from ray_jobs.data.preparation import Preparation, Sample, Side, StepReport
from ray_jobs.data.row_arrays import Ints, digests_of, numbered, short_keys
from ray_jobs.data.split import (
    LEAKED,
    NO_SIDE,
    SIDE_COLUMN,
    SIDES,
    STRADDLING,
    TEST,
    TRAIN,
    VALIDATION,
    Rows,
    SideName,
    Split,
    choose,
    copies,
    input_digest,
    joined,
    split,
)
from ray_jobs.data.spool import Spool
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.spec.personal_data import PersonalDataPolicy
from ray_jobs.spec.split import Shares, SplitSection
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks.base import Task

_SIMILARITY = 0.8
"""Jaccard similarity of inputs from which on two rows are near duplicates, which have one side."""
_MOST_ALIKE, _FEW = 0.3, 20
"""A cluster of more than this share of the rows, and of more rows than this, is no cluster of duplicates."""
_SHOWN_LABELS = 8
_MOST_SET_ASIDE = 2.5
"""Times the share that is to be set aside; a larger part is reported."""


@dataclass(frozen=True)
class Outline:
    """A dataset, the number of training rows of each label, and what was guessed, renamed or not used."""

    dataset: Dataset
    labels: Mapping[str, int]
    notices: tuple[str, ...] = ()
    report: Preparation | None = None
    """That of its preparation. None: the outline is of a stored dataset."""

    def as_text(self) -> str:
        """In a line, for a plan."""
        dataset, parts = self.dataset, list[str]()
        parts.append(
            f"{dataset.train_rows:,} rows to train on, {dataset.validation_rows:,} to validate, "
            f"{dataset.test_rows:,} to test"
        )
        if self.labels:
            common = sorted(self.labels.items(), key=lambda each: (-each[1], each[0]))
            shares = [f"{label} {count / dataset.train_rows:.0%}" for label, count in common[:_SHOWN_LABELS]]
            more = [f"{len(common) - _SHOWN_LABELS} more"] if len(common) > _SHOWN_LABELS else []
            parts.append(f"labels {', '.join(shares + more)}")
        if dataset.repeated_rows:
            parts.append(f"{dataset.repeated_rows:,} rows equal an earlier one")
        if dataset.leaked_rows:
            parts.append(f"{dataset.leaked_rows:,} rows are left out, since their inputs are on another side")
        return "; ".join([*parts, *self.notices])


def prepare(
    store: Workspace, data: DataSection, task: Task[Any], note: Note = lambda _: None, *, name: str = "",
    join_cluster: JoinCluster = lambda _: None,
) -> Dataset:  # fmt: skip
    """Read, check and split the rows and store the dataset, once. `note`: receives what was guessed or not used.

    `name`: of the dataset, of which the newest version keeps its sides. Raises DataError with everything that is wrong.
    """
    salt = _salt(store, data.personal_data)
    with _built(store, data, task, note, salt, name, join_cluster) as (found, tree, facts):
        made = found.dataset
        if store.read_manifest(made.key) is None:
            store.commit(made.key, store.upload_tree(tree, made.key), facts)
    return made


def outline(store: Workspace, data: DataSection, task: Task[Any], *, name: str = "") -> Outline:
    """What `prepare` would store, for a plan. Raises DataError with everything that is wrong; stores nothing."""
    notices: list[str] = []
    with _built(store, data, task, notices.append, secrets.token_bytes(16), name) as (found, _, _):
        return replace(found, notices=tuple(notices))


@contextmanager
def _built(
    store: Workspace, data: DataSection, task: Task[Any], note: Note, salt: bytes | None, name: str,
    join_cluster: JoinCluster = lambda _: None,
) -> Iterator[tuple[Outline, Path, dict[str, Any]]]:  # fmt: skip
    """A dataset's outline, its files on this machine, and the facts of its manifest."""
    with tempfile.TemporaryDirectory(prefix="kitae-dataset-") as temporary:
        spool = Spool(Path(temporary) / "rows.jsonl", task, data.split or SplitSection())
        notices: list[str] = []

        def noted(text: str) -> None:
            notices.append(text)
            note(text)

        with spool:
            cleaned = read_and_clean(store, data, spool, noted, salt, join_cluster)
            used, sides = _sides(store, data, spool, cleaned, noted, name)
            tree = Path(temporary) / "tree"
            tree.mkdir()
            written, counts = {}, {}
            trained = used[sides.rows(TRAIN)]
            for side, label in enumerate(SIDES):
                rows = used[sides.rows(VALIDATION if sides.shared and side == TEST else side)]
                rows = _weighted(data, spool, rows, noted) if side == TRAIN else rows
                written[label], counts[label] = spool.write(rows, tree / dataset.file_of(label)), len(rows)
            if task.label_column is not None:
                check_labels(set(written["train"]), {*written["validation"], *written["test"]})
                labels = {label: sum(each.get(label, 0) for each in written.values()) for label in written["train"]}
                several = contradictory(spool.columns.inputs, spool.columns.labels, cleaned.kept)
                for notice in [*doubtful(labels), *several]:
                    noted(notice)
            facts = {
                "format": dataset.FORMAT,
                "task": task.name,
                **{f"{label}_rows": count for label, count in counts.items()},
                "labels": sorted(written["train"]),
                "repeated_rows": len(trained) - len(np.unique(spool.columns.digests[trained])),
                "leaked_rows": len(sides.rows(LEAKED)) + len(sides.rows(STRADDLING)),
                "recipe": _recipe(data),
            }
            made = dataset.from_manifest(dataset.digest_of(tree, facts), facts)
            report = _report(data, spool, cleaned, used, sides, counts, written, notices)
            (tree / dataset.REPORT_FILE).write_text(report.model_dump_json(), encoding="utf-8")
        yield Outline(made, written["train"], report=report), tree, facts


def _sides(
    store: Workspace, data: DataSection, spool: Spool, cleaned: Cleaned, note: Note, name: str
) -> tuple[Ints, Split]:
    """The rows that are used, and their sides."""
    columns, kept = spool.columns, cleaned.kept
    train = _limited(data, spool, kept[spool.given[kept] == NO_SIDE])
    train = train[choose(columns.digests[train], data.max_rows)]
    used = np.union1d(train, kept[spool.given[kept] != NO_SIDE]).astype(np.int64)
    keys, given = short_keys(columns.inputs[used]), spool.given[used].astype(np.int64)
    if _are_marked(spool, data, note):
        given = columns.marked[used].astype(np.int64)
        if not (np.any(given == VALIDATION) and np.any(given == TEST)):
            given = np.where(given == TRAIN, NO_SIDE, given)  # the side that no row names is taken from these
    wanted = _shares(data, int(np.sum(given == NO_SIDE)), given)
    before = _before(store, data, spool.task, keys, note, name)
    alike = clusters(columns.questions[used], lambda i: spool.question(int(used[i])), _SIMILARITY)
    alike = _without_templates(alike, note)
    together = [numbered(keys), *([spool.groups[used]] if spool.groups is not None else [])]
    rows = Rows(
        keys=keys,
        groups=joined([*together, alike]),
        labels=[columns.labels[i] for i in used.tolist()],
        given=given,
        before=before,
        times=columns.times[used] if spool.split.time is not None else None,
    )
    found = _split(rows, replace(rows, groups=joined(together)), wanted, note)
    _note_split(spool, used, found, wanted, data, note)
    return used, found


def _limited(data: DataSection, spool: Spool, rows: Ints) -> Ints:
    """The rows that the limits of the sources leave."""
    if all(each.max_rows is None for each in data.mixture):
        return rows
    of_source = [rows[spool.source[rows] == place] for place in range(len(data.mixture))]
    return np.sort(np.concatenate([
        each[choose(spool.columns.digests[each], source.max_rows)]
        for each, source in zip(of_source, data.mixture, strict=True)
    ]))  # fmt: skip


def _weighted(data: DataSection, spool: Spool, rows: Ints, note: Note) -> Ints:
    """The training rows as often as the weights of their sources say."""
    weights = [each.weight for each in data.mixture]
    if all(weight == 1.0 for weight in weights):
        return rows
    times = copies(spool.columns.digests[rows], np.array(weights)[spool.source[rows]])
    for place, source in enumerate(data.mixture):
        of_source = times[spool.source[rows] == place]
        if source.weight != 1.0:
            counts = f"{len(of_source):,} training row(s) count as {int(of_source.sum()):,}"
            note(f"{source.source}: weight {source.weight:g}, {counts}")
    if not times.any():
        raise DataError("the weights of data.train leave no row to train on: raise one of them")
    return np.repeat(rows, times)


def _without_templates(alike: Ints, note: Note) -> Ints:
    """The clusters of near duplicates, without those that hold a large share of all rows: they are of one template."""
    sizes = np.bincount(alike, minlength=len(alike))[alike]
    large = sizes > max(_FEW, _MOST_ALIKE * len(alike))
    if not np.any(large):
        return alike
    note(f"{int(large.sum()):,} rows are alike, as if of one template: near duplicates among them may be on two sides")
    return np.where(large, np.arange(len(alike)) + len(alike), alike)


def _split(rows: Rows, loose: Rows, wanted: Shares, note: Note) -> Split:
    """The split, with near duplicates on one side; where that leaves too few groups, by the inputs alone."""
    try:
        found = split(rows, wanted)
    except DataError:
        found = None
    if found is not None and not found.shared:
        return found
    without = split(loose, wanted)
    if found is not None and without.shared:
        return found
    note("the rows are too much alike to keep near duplicates on one side: the test may be too easy")
    return without


def _shares(data: DataSection, free: int, given: Ints) -> Shares:
    """Shares of the rows whose side is open, without the sides that have rows already."""
    shares = data.split_of(free)
    left = [0.0 if side != TRAIN and np.any(given == side) else share for side, share in enumerate(shares)]
    return Shares(*(share / sum(left) for share in left))


def _are_marked(spool: Spool, data: DataSection, note: Note) -> bool:
    """Whether the rows name their own sides by the column `split`; else they are split otherwise, which is said.

    Raises DataError where rows are set aside by their own word and by data.held_out or data.test.
    """
    marks = spool.columns.marked[spool.given == NO_SIDE]
    aside, others = int(np.sum(marks > TRAIN)), int(np.sum(marks == NO_SIDE))
    if not aside or SIDE_COLUMN in data.columns.values():  # a column of the task
        return False
    rows = f"the column {SIDE_COLUMN!r} of data.train sets {aside:,} row(s) aside"
    fields = [name for name in ("held_out", "test") if getattr(data, name) is not None]
    if fields:
        raise DataError(
            f"{rows}, and data.{fields[0]} is given: remove these rows, rename the column, or leave data.{fields[0]} "
            "out"
        )
    if others or aside == len(marks):
        why = f"{others:,} row(s) name no side" if others else "none is to be trained on"
        note(f"{rows}, and {why}: it is not used, and the rows are split by their inputs")
        return False
    return True


def _before(
    store: Workspace, data: DataSection, task: Task[Any], keys: np.ndarray[Any, Any], note: Note, name: str
) -> Ints:
    """The side of each input in the newest version of the dataset's name; NO_SIDE without one."""
    sides = np.full(len(keys), NO_SIDE, dtype=np.int64)
    last = versions.newest(store, name) if name else None
    if last is None:
        return sides
    found = dataset.find(store, last.digest)
    if found is None or found.task != task.name:
        why = "its rows were deleted" if found is None else f"it is of the task {found.task}"
        note(f"{last.label} has no sides to keep, since {why}: every row gets a new side")
        return sides
    if last.split != data.split:
        note(f"data.split is another than that of {last.label}: every row gets a new side")
        return sides
    files = dataset.load(store, last.digest)
    old = [digests_of([input_digest(task.input_of(row)) for row in files.side(label)]) for label in SIDES]
    of_old = np.repeat(np.arange(len(SIDES)), [len(each) for each in old])
    known, first = np.unique(short_keys(np.concatenate(old)), return_index=True)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    same = known[at] == keys
    sides[same] = of_old[first[at[same]]]
    return sides


def _note_split(spool: Spool, used: Ints, found: Split, wanted: Shares, data: DataSection, note: Note) -> None:
    """Say where the split is not what was asked for."""
    if data.held_out_fraction is not None and data.held_out is None:
        train, aside, _ = (round(share * 100, 2) for share in data.split_of(0))
        note(f"data.held_out_fraction is the former way to write data.split: {train:g}:{aside:g}:{aside:g}")
    if found.shared:
        note("too few rows for a test of their own: the validation rows are tested, too, so the result is optimistic")
    kept = found.sides >= 0
    open_sides = [side for side in (VALIDATION, TEST) if wanted[side] > 0]
    aside, share = int(np.isin(found.sides, open_sides).sum()), sum(wanted[side] for side in open_sides)
    if open_sides and aside > _MOST_SET_ASIDE * share * kept.sum():
        note(
            f"{aside:,} of {int(kept.sum()):,} rows are not trained on, more than data.split asks for ({share:.0%}): "
            "rows that belong together stay together, and each label has rows on every side"
        )
    if len(torn := used[found.rows(STRADDLING)]):
        places = listed([spool.place(i) for i in torn[: MOST_LISTED + 1].tolist()])
        note(f"{len(torn):,} new row(s) are left out, since they are like rows of two sides: {places}")


def _recipe(data: DataSection) -> dict[str, Any]:
    """What of the section changes the rows of a dataset; the fields that do not stand at their defaults."""
    document = data.model_dump(
        mode="json", include={"split", "held_out_fraction", "max_rows", "personal_data", "clean"}, exclude_none=True,
        exclude_defaults=True,
    )  # fmt: skip
    mixture = [each.model_dump(exclude={"source"}, exclude_defaults=True) for each in data.mixture]
    if any(mixture):
        document["mixture"] = mixture
    policy = document.get("personal_data", {})
    if all(action in ("report", "off") for action in policy.values()):
        document.pop("personal_data", None)
    elif policy.get("person", "off") != "off":
        document["name_models"] = names.versions()
    return document


def _report(
    data: DataSection, spool: Spool, cleaned: Cleaned, used: Ints, sides: Split, counts: Mapping[SideName, int],
    labels: Mapping[SideName, Mapping[str, int]], notices: Sequence[str],
) -> Preparation:  # fmt: skip
    """The report of the preparation."""
    out, table = used[np.flatnonzero(sides.sides < TRAIN)].tolist(), spool.table()
    samples = tuple(
        Sample(row=table.id_of(i), place=spool.place(i), before=masked(spool.question(i)), why="on another side, too")
        for i in nsmallest(MOST_SAMPLES, out, key=lambda i: int(table.ids[i]))
    )
    powers = np.frexp(spool.columns.lengths[used[sides.sides >= TRAIN]])[1] - 1
    bins, rows = np.unique(1 << np.maximum(powers, 0), return_counts=True)
    return Preparation(
        task=spool.task.name,
        sources=data.sources,
        read=cleaned.read,
        sides={side: Side(rows=counts[side], labels=dict(labels[side])) for side in SIDES},
        lengths=dict(zip(bins.tolist(), rows.tolist(), strict=True)),
        steps=(*cleaned.steps, StepReport(step="leaks", action="drop", rows=len(out), samples=samples)),
        clusters=cleaned.clusters,
        notices=tuple(notices),
    )


class _Salt(BaseModel):
    """The secret of a team's placeholders, so that a value has the same one in all of its datasets."""

    salt: str = Field(default_factory=lambda: secrets.token_hex(32))


def _salt(store: Workspace, policy: PersonalDataPolicy | None) -> bytes | None:
    """The team's salt, made where a policy redacts for the first time. None: the policy redacts nothing."""
    if policy is None or "redact" not in policy.model_dump().values():
        return None
    salts = Documents("datasets/", _Salt, "the salt of placeholders")
    return bytes.fromhex(salts.get_or_create(store, "placeholder-salt", _Salt()).salt)
