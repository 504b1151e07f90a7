"""Every real template × every shape: trained after the prompt that vLLM renders, or refused with a reason.

The table is in docs/chat-templates.md; `python -m tests.tasks.chat.test_matrix` writes it anew.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import DataError
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import IGNORED, PromptSetting, described
from ray_jobs.tasks.chat.messages import text_of
from ray_jobs.tasks.chat.parsers import Parsers, parsers_of
from ray_jobs.tasks.chat.template import variables_of
from ray_jobs.tasks.chat.turns import Turn, end_token_ids, examples_of, tokenize, trained_turns
from serving.inference.messages import check_messages
from tests.repository import ROOT
from tests.tasks.chat.engine import rendered_by_engine
from tests.tasks.chat.families import USED, ends_of, further_templates, templates, tokenizer_of
from tests.tasks.chat.shapes import SHAPES, Row

CHAT = TASKS["chat"]
DOCUMENT = ROOT / "docs" / "chat-templates.md"
TODAY, DEFAULT = date(2026, 7, 26), PromptSetting()
RIGHT, REFUSED, NOT_SERVED = "✓", "refused", "not served"
TITLE = "## Every template\n\n"
_PLAIN, _WITH_TOOLS = ("single", "multi", "system"), ("tool call", "tool result")
MOST_REFUSED = 0.05
"""Largest share of cells that are refused although vLLM renders the conversation."""


@dataclass(frozen=True)
class Cell:
    family: str
    parsers: Parsers
    shape: str
    outcome: str
    reason: str = ""
    switches: str = ""
    """Those under which the row is trained."""


def row_of(family: str, shape: str) -> Row:
    """The shape as a row; an answer that quotes its end quotes the family's."""
    row: Row = json.loads(json.dumps(SHAPES[shape]).replace("{end}", ends_of(family)[0]))
    return row


def cell_of(family: str, shape: str, tokenizer: Any, parsers: Parsers) -> Cell:
    """Encode the row, and compare each turn with vLLM's rendering. AssertionError for a turn that is wrong."""
    row = row_of(family, shape)
    assert CHAT.check_row(row) == []
    canonical = CHAT.normalise(row)
    assert CHAT.normalise(canonical) == canonical
    try:
        setting = CHAT.setting_for([("the row", canonical)], tokenizer, TODAY)
        turns = list(trained_turns(tokenizer, canonical["messages"], canonical.get("tools"), setting))
    except DataError as error:
        return Cell(family, parsers, shape, REFUSED if _is_served(tokenizer, row) else NOT_SERVED, str(error))
    assert [turn.message for turn in turns] == [
        i for i, message in enumerate(row["messages"]) if message["role"] == "assistant" and message.get("weight", 1)
    ]
    for turn in turns:
        _check_turn(tokenizer, row, turn, setting)
    (*_, last) = examples = examples_of(turns)
    assert sum(example.supervised for example in examples) == sum(len(turn.answer_ids) for turn in turns)
    assert last.labels[-len(turns[-1].answer_ids) :] == turns[-1].answer_ids
    assert all(label in (IGNORED, token) for label, token in zip(last.labels, last.input_ids, strict=True))
    return Cell(family, parsers, shape, RIGHT, switches=described(setting.switches))


def _check_turn(tokenizer: Any, row: Row, turn: Turn, setting: PromptSetting) -> None:
    prompt = _engines_prompt(tokenizer, row, turn.message, setting)
    assert tuple(tokenize(tokenizer, prompt)) == turn.prompt_ids, prompt
    ends = end_token_ids(tokenizer)
    assert turn.answer_ids[-1] in ends
    text, answer = tokenizer.decode(turn.answer_ids), row["messages"][turn.message]
    assert all(said in text for said in _said_by(answer))
    assert '\\"' not in text, "arguments are encoded twice"
    for other in row["messages"]:
        if other is not answer and len(said_by := text_of(other["content"])) > 3 and said_by not in str(answer):
            assert said_by not in text


def _is_served(tokenizer: Any, row: Row) -> bool:
    """Whether vLLM renders the conversation: each answer asked for, and all that it says when it is history."""
    try:
        for i, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                prompt, written = (_engines_prompt(tokenizer, row, count) for count in (i, i + 1))
                if any(written.count(text) <= prompt.count(text) for text in _said_by(message)):
                    return False
    except ValueError:
        return False
    return True


def _said_by(message: Row) -> list[str]:
    """The functions that a message calls and its texts; not its reasoning, which templates leave out of history."""
    content = message["content"]
    texts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
    names = [call["function"]["name"] for call in message.get("tool_calls") or ()]
    return [text for text in (*names, *(text.rpartition("</think>")[2].strip() for text in texts)) if text]


def _engines_prompt(tokenizer: Any, row: Row, count: int, setting: PromptSetting = DEFAULT) -> str:
    """The prompt for the first messages of the row, sent to the endpoint."""
    messages = copy.deepcopy(row["messages"][:count])
    check_messages(messages)
    return rendered_by_engine(tokenizer, messages, row.get("tools"), **variables_of(setting))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    return list(_all_cells(tmp_path_factory.mktemp("families")))


def _all_cells(directory: Path) -> Iterator[Cell]:
    logging.disable(logging.ERROR)  # vLLM logs each refusal of a template
    for family, template in sorted((templates() | further_templates()).items()):
        tokenizer = tokenizer_of(family, template, directory / family)
        parsers = parsers_of(tokenizer)
        for shape in SHAPES:
            yield cell_of(family, shape, tokenizer, parsers)
    logging.disable(logging.NOTSET)


def test_every_conversation_is_trained_as_it_is_served_or_refused(cells: list[Cell]) -> None:
    """A wrong turn fails while the cells are made."""
    assert len({cell.family for cell in cells}) >= 40
    assert len({cell.shape for cell in cells}) >= 28
    quotes = [cell for cell in cells if cell.shape == "answer that quotes its end"]
    assert all("special token" in cell.reason for cell in quotes)
    refused = [cell for cell in cells if cell.outcome == REFUSED and cell not in quotes]
    assert len(refused) <= MOST_REFUSED * len(cells), refused
    assert not [cell for cell in refused if cell.shape in ("single", "multi", "system", "japanese")]


def test_the_most_used_families_are_trained(cells: list[Cell]) -> None:
    assert len(USED) == 25
    trained = [family for family in USED if _is_trained(cells, family)]
    assert len(trained) >= 24, set(USED) - set(trained)


def _is_trained(cells: list[Cell], family: str) -> bool:
    """Whether rows of every kind train, and tool rows where the template writes tool calls."""
    found = _outcomes(cells, family)
    return all(found.get(shape) == RIGHT for shape in _PLAIN) and all(found[shape] != REFUSED for shape in _WITH_TOOLS)


def _outcomes(cells: list[Cell], family: str) -> dict[str, str]:
    return {cell.shape: cell.outcome for cell in cells if cell.family == USED[family]}


def used_table_of(cells: list[Cell]) -> str:
    """A row for each of the most used families."""
    columns = ["family", "template", *_PLAIN, *_WITH_TOOLS]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for family, template in USED.items():
        found = _outcomes(cells, family)
        shown = [
            {RIGHT: "yes", REFUSED: "refused"}.get(found.get(shape, ""), "no") for shape in (*_PLAIN, *_WITH_TOOLS)
        ]
        lines.append(f"| {family} | {template or 'none in reach'} | {' | '.join(shown)} |")
    trained = sum(_is_trained(cells, family) for family in USED)
    return "\n".join([*lines, "", f"{trained} of {len(USED)} families are trained.", "", ""])


def test_the_table_in_the_documentation_is_this_one(cells: list[Cell]) -> None:
    assert DOCUMENT.read_text(encoding="utf-8").endswith(used_table_of(cells) + TITLE + table_of(cells)), (
        "write it anew; see this file's docstring"
    )


def table_of(cells: list[Cell]) -> str:
    """A row for each family, and below it what is refused and why."""
    reasons = list(dict.fromkeys(_without_place(cell.reason) for cell in cells if cell.reason))
    marks = {reason: f"[^{number}]" for number, reason in enumerate(reasons, 1)}
    lines = []
    for family in dict.fromkeys(cell.family for cell in cells):
        own = [cell for cell in cells if cell.family == family]
        refused = [f"{cell.shape}{marks[_without_place(cell.reason)]}" for cell in own if cell.outcome == REFUSED]
        not_served = [f"{cell.shape}{marks[_without_place(cell.reason)]}" for cell in own if cell.outcome == NOT_SERVED]
        right = sum(cell.outcome == RIGHT for cell in own)
        tool, reasoning = own[0].parsers.tool or "", own[0].parsers.reasoning or ""
        lines.append(f"| {family} | {tool} | {reasoning} | {right} | {', '.join(refused)} | {', '.join(not_served)} |")
    notes = [f"{mark}: {reason}" for reason, mark in marks.items()]
    columns = ["template", "tool parser", "reasoning parser", "trained as served", "refused", "vLLM renders it neither"]
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    return "\n".join([head, *lines, "", *notes, ""])


def _without_place(reason: str) -> str:
    return reason.partition("]: ")[2] or reason


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = list(_all_cells(Path(scratch)))
    head, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("| family |")
    DOCUMENT.write_text(head + used_table_of(made) + TITLE + table_of(made), encoding="utf-8")
