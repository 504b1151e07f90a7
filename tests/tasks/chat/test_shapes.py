"""Rows in the shapes that people have become one conversation, or say why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.findings import Findings
from ray_jobs.data.ingest import read_rows
from ray_jobs.tasks import TASKS

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"function": {"arguments": {"x": 1}, "name": "f"}, "type": "function"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"name": "f", "parameters": {"type": "object"}}


def read(tmp_path: Path, *rows: dict[str, Any]) -> tuple[list[dict[str, Any]], Findings]:
    path, findings = tmp_path / "rows.jsonl", Findings()
    path.write_text("\n".join(map(json.dumps, rows)))
    return [row for _, row in read_rows(path, "rows", TASKS["chat"], {}, findings)], findings


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "q", "completion": "a"}, [USER, ANSWER]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [SYSTEM, USER, ANSWER]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [SYSTEM, USER, ANSWER]),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, ANSWER]),
        ({"instruction": "q", "input": "x", "output": "a"}, [{"role": "user", "content": "q\nx"}, ANSWER]),
        ({"question": "q", "context": "x", "answer": "a"}, [{"role": "user", "content": "q\nx"}, ANSWER]),
        ({"input": "q", "output": "a"}, [USER, ANSWER]),
        ({"query": "q", "response": "a", "history": [["q", "a"]]}, [USER, ANSWER, USER, ANSWER]),
        ({"prompt": "q", "completion": "a", "history": json.dumps([["q", "a"]])}, [USER, ANSWER, USER, ANSWER]),
        ({"prompt": "q", "completion": "a", "history": [USER, ANSWER]}, [USER, ANSWER, USER, ANSWER]),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [USER, {**ANSWER, "weight": 0}, USER, ANSWER]),
        ({"messages": [USER, ANSWER], "system": "s"}, [SYSTEM, USER, ANSWER]),
        ({"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "prompt": "", "completion": None}, [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "prompt": "q"}, [USER, ANSWER]),
        ({"messages": [], "prompt": "q", "completion": "a"}, [USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ANSWER]),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "GPT", "value": "a"}]},
            [SYSTEM, USER, ANSWER],
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "r"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            [USER, CALLING, {"role": "tool", "content": "r"}, ANSWER],
        ),
    ],
)  # fmt: skip
def test_a_shape_becomes_messages(tmp_path: Path, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    rows, findings = read(tmp_path, row)
    assert findings.details == []
    assert rows == [{"messages": messages}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER, ANSWER], "prompt": "other"}, "it has messages and prompt"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "other"}, "begin with a system message"),
        ({"instruction": "q", "prompt": "other", "output": "a"}, "'prompt', 'instruction' may each be the prompt"),
        ({"prompt": "q", "completion": ""}, "completion must be non-empty text"),
        ({"prompt": "q", "completion": "a", "system": 1}, "system must be text"),
        ({"prompt": "q", "completion": "a", "history": [["q"]]}, "history[0] must be a pair"),
        ({"prompt": [USER], "completion": "a", "context": "x"}, "context must be text that follows a prompt of text"),
        ({"conversations": [{"from": "alien", "value": "q"}]}, "messages[0] must have a from"),
        ({"conversations": [{"from": "human", "value": 1}]}, "messages[0] must have a from"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "messages[0] must be a call"),
        ({"messages": [USER, {**ANSWER, "train": False}]}, "messages[1]: train is False, which is not read"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": False}]},
            "messages[1]: loss is False, which is not read: write weight: 0",
        ),
        ({"completion": "a"}, "prompt must be non-empty text"),
    ],
)
def test_what_is_no_conversation_says_why(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    rows, findings = read(tmp_path, row)
    assert rows == []
    assert said in findings.details[0]


def test_tools_beside_a_pair_and_as_text(tmp_path: Path) -> None:
    pair = {"prompt": "q", "completion": "a", "tools": json.dumps([TOOL])}
    rows, findings = read(tmp_path, pair, {"conversations": [USER, ANSWER], "tools": [TOOL]})
    assert findings.details == []
    assert [row["tools"][0]["function"]["name"] for row in rows] == ["f", "f"]


def test_what_is_renamed_left_out_and_not_used_is_said(tmp_path: Path) -> None:
    rows, findings = read(
        tmp_path,
        {"question": "q", "answer": "a", "id": 1, "train": True},
        {"question": "q", "answer": "a", "id": 2, "train": False},
        {"question": "q", "answer": "a", "id": 3, "weight": 0},
    )
    assert len(rows) == 1
    assert findings.details == []
    assert findings.notices == [
        "rows: 'question' is read as prompt",
        "rows: 'answer' is read as completion",
        "rows: 1 row(s) are left out by the column 'train', where it is false or 0; others count in full; "
        "rename it if it means something else",
        "rows: 1 row(s) are left out by the column 'weight', where it is false or 0; others count in full; "
        "rename it if it means something else",
        "rows: not used: the column(s) 'id'",
    ]


def test_a_conversation_logged_turn_by_turn_is_one_input() -> None:
    chat = TASKS["chat"]
    more = {"role": "user", "content": "r"}
    growing = [[USER, ANSWER], [USER, ANSWER, more, ANSWER], [USER, {**ANSWER, "content": "b"}]]
    assert len({chat.input_of(chat.normalise({"messages": messages})) for messages in growing}) == 1
    read_before = {"messages": [USER, {**ANSWER, "weight": 0}, more, ANSWER]}
    assert chat.input_of(chat.normalise(read_before)) != chat.input_of({"messages": [USER, ANSWER]})
    alone = [{"messages": [{**ANSWER, "content": text}]} for text in "ab"]
    assert len({chat.input_of(row) for row in alone}) == 2
