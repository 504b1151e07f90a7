"""Switches of a chat template, such as `enable_thinking`: found in the template, and chosen once for all rows of a job.

A template may close the reasoning in the prompt, or leave it open, depending on a variable. The setting is chosen under
which every row is trained after the prompt that it is served with; `PromptSetting` carries it to the encoded rows,
parity, the registry and the endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import DataError
from ray_jobs.tasks.base import PromptSetting, Row, described
from ray_jobs.tasks.chat.messages import Message, text_of
from ray_jobs.tasks.chat.template import parsed, template_of, writes_date
from ray_jobs.tasks.chat.turns import has_reasoning_of, trained_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Switch = bool | int | str
Switches = Mapping[str, Switch]

_NAME = re.compile(r"think|reason|effort")
_HISTORY = re.compile(r"preserve|keep|truncate|history|clear")
"""In names of variables about earlier answers, which are trained as the template shows them."""
_LEVEL = re.compile(r"effort|strength|budget|level|mode")
"""In names of variables that are no yes or no: their values are those that the template compares them with."""
_SAMPLES = 3
"""Rows of each shape that are tried: a single one may be refused for what it says."""
_MOST_NAMED = 5
_REFUSED, _PARTIAL, _REWRITTEN, _EXACT = 3, 2, 1, 0


@dataclass
class _Shape:
    """Rows that a template treats alike."""

    samples: list[Row] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str, row: Row) -> None:
        self.count += 1
        if len(self.samples) < _SAMPLES:
            self.samples.append(row)
        if len(self.names) < _MOST_NAMED:
            self.names.append(name)


@dataclass(frozen=True)
class _Trial:
    """The shapes under one setting."""

    setting: PromptSetting
    results: tuple[tuple[int, str], ...]
    """How exactly each shape is trained, and why it is refused."""


def choose(tokenizer: PreTrainedTokenizerBase, rows: Iterable[tuple[str, Row]], today: date) -> PromptSetting:
    """The setting under which all rows are trained as they are served. `rows`: each with its name in an error.

    The template's default comes first, so a switch is set only where it trains the rows more exactly. Rows that no
    setting trains are left to the encoding, which names them. Raises DataError where each setting refuses rows that
    another one trains.
    """
    day = today if writes_date(tokenizer) else None
    settings = [PromptSetting(switches=dict(each), today=day) for each in settings_of(tokenizer)]
    if len(settings) == 1:
        return settings[0]
    shapes = _shapes_of(rows)
    trials = []
    for setting in settings:
        trials.append(_Trial(setting, tuple(_outcome(tokenizer, shape, setting) for shape in shapes)))
        if all(how == _EXACT for how, _ in trials[-1].results):
            return setting
    trainable = [i for i in range(len(shapes)) if any(trial.results[i][0] != _REFUSED for trial in trials)]
    worst = [max((trial.results[i][0] for i in trainable), default=_EXACT) for trial in trials]
    best = worst.index(min(worst))
    if worst[best] == _REFUSED:
        raise DataError(
            "no setting of the base's chat template trains all rows, and a model has one setting: leave out the rows "
            "of one kind, or train them as a model of their own",
            details=[line for trial in trials for line in _refusals(trial, shapes, trainable)],
        )
    return trials[best].setting


def settings_of(tokenizer: PreTrainedTokenizerBase) -> list[Switches]:
    """The template's default, then each value of each of its switches."""
    found = dict(_variables_of(template_of(tokenizer)))
    for name, values in _variables_of(template_of(tokenizer, [{}])):
        found.setdefault(name, values)
    return [{}, *({name: value} for name, values in found.items() for value in values)]


@lru_cache(maxsize=32)
def _variables_of(template: str) -> tuple[tuple[str, tuple[Switch, ...]], ...]:
    """(variable, values) of a template's switches about reasoning: variables that a request may set."""
    from jinja2 import meta, nodes

    root = parsed(template)
    if root is None:
        return ()
    assigned = {node.name for node in root.find_all(nodes.Name) if node.ctx != "load"}
    guarded = {
        node.node.name
        for node in root.find_all((nodes.Test, nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    names = {
        name
        for name in meta.find_undeclared_variables(root)
        if _NAME.search(name) and not _HISTORY.search(name) and (name not in assigned or name in guarded)
    }
    compared = {name: tuple(dict.fromkeys(_compared_with(root, name))) for name in sorted(names)}
    return tuple((name, values or (() if _LEVEL.search(name) else (False, True))) for name, values in compared.items())


def _compared_with(root: Any, name: str) -> Iterator[Switch]:
    """The texts and numbers that a template compares a variable with."""
    from jinja2 import nodes

    for comparison in root.find_all(nodes.Compare):
        if isinstance(comparison.expr, nodes.Name) and comparison.expr.name == name:
            for constant in (found for operand in comparison.ops for found in _constants(operand.expr)):
                if isinstance(constant, str | int) and not isinstance(constant, bool):
                    yield constant


def _constants(node: Any) -> list[Any]:
    from jinja2 import nodes

    if not isinstance(node, nodes.Const):  # a list of constants is one, too
        return []
    return list(node.value) if isinstance(node.value, list | tuple) else [node.value]


def _shapes_of(rows: Iterable[tuple[str, Row]]) -> list[_Shape]:
    shapes: dict[Any, _Shape] = {}
    for name, row in rows:
        kinds = [_kind_of(message) for message in row["messages"]]
        key = (bool(row.get("tools")), kinds[-1], frozenset(zip([None, *kinds[:-1]], kinds, strict=True)))
        shapes.setdefault(key, _Shape()).add(name, row)
    return list(shapes.values())


def _kind_of(message: Message) -> tuple[Any, ...]:
    text = text_of(message["content"])
    return (
        message["role"],
        bool(message.get("weight", 1)),
        bool(text.strip()),
        "</think>" in text,
        "reasoning" in message,
        "tool_calls" in message,
    )


def _outcome(tokenizer: PreTrainedTokenizerBase, shape: _Shape, setting: PromptSetting) -> tuple[int, str]:
    """How exactly the shape's rows are trained, and why they are refused: of the sample that is trained best."""
    return min(_outcome_of(tokenizer, row, setting) for row in shape.samples)


def _outcome_of(tokenizer: PreTrainedTokenizerBase, row: Row, setting: PromptSetting) -> tuple[int, str]:
    try:
        turns = list(trained_turns(tokenizer, row["messages"], row.get("tools"), setting))
    except DataError as error:
        return _REFUSED, str(error)
    text = str(tokenizer.decode([token for turn in turns for token in turn.answer_ids]))
    if not has_reasoning_of(row["messages"], text):
        return _PARTIAL, ""
    return (_EXACT if all(turn.continues for turn in turns) else _REWRITTEN), ""


def _refusals(trial: _Trial, shapes: Sequence[_Shape], trainable: Sequence[int]) -> Iterator[str]:
    how = described(trial.setting.switches) or "the template's default"
    for i in trainable:
        outcome, reason = trial.results[i]
        if outcome == _REFUSED:
            more = shapes[i].count - len(shapes[i].names)
            yield f"{how}: {', '.join(shapes[i].names)}{f' and {more} more' if more else ''}: {reason}"
