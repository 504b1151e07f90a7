"""`call_accuracy`: the calls that a model generates, against those of the held-out rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.tasks import TASKS
from tests.tasks.chat.families import templates, tokenizer_of
from tests.tasks.chat.shapes import SHAPES, TOOLS, Row, answer, call, user

CHAT = TASKS["chat"]


class Speaks:
    """A model that generates the same ids for every prompt."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = torch.tensor([ids])

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.cat([input_ids, self._ids.expand(len(input_ids), -1)], dim=1)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_6", "gemma4", "lfm2_v2"])
def test_right_functions_with_equal_arguments_are_counted(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, templates()[family], tmp_path)
    nara = {"messages": [user(), answer(None, tool_calls=[call("Nara")])], "tools": TOOLS}
    spaced = {"messages": [user(), answer(None, tool_calls=[call(arguments='{ "city":"Kyoto" }')])], "tools": TOOLS}
    text: Row = {"messages": [user(), answer()], "tools": TOOLS}
    given: list[Row] = [SHAPES["tool call"], spaced, nara, text]
    rows = [CHAT.normalise(json.loads(json.dumps(row))) for row in given]
    (example,) = CHAT.encode(rows[0], tokenizer, ())
    spoken = [label for label in example.labels if label >= 0]
    found = CHAT.measure(Speaks(spoken), tokenizer, rows, (), max_new_tokens=8)
    assert found["call_accuracy"] == pytest.approx(2 / 3)
    assert "chrf" in found
    silent = CHAT.measure(Speaks(tokenizer.encode("21")), tokenizer, rows, (), max_new_tokens=8)
    assert silent["call_accuracy"] == 0


def test_a_base_without_calls_has_no_such_measure(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama3", templates()["llama3"], tmp_path)
    row = CHAT.normalise(json.loads(json.dumps(SHAPES["tool call"])))
    model: Any = Speaks(tokenizer.encode("21"))
    assert CHAT.measure(model, tokenizer, [row], (), max_new_tokens=8) == {}
