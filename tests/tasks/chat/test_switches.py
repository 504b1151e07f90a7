"""Switches and dates of chat templates: chosen for the rows, and the same in training and at the engine."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import DataError
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.tasks.chat.switches import settings_of
from ray_jobs.tasks.chat.template import variables_of
from ray_jobs.tasks.chat.turns import trained_turns
from tests.tasks.chat.engine import rendered_by_engine
from tests.tasks.chat.families import templates, tokenizer_of
from tests.tasks.chat.shapes import SHAPES, Row, answer, system, user

CHAT = TASKS["chat"]
TODAY, TOMORROW = date(2026, 7, 26), date(2026, 7, 27)
PLAIN: Row = {"messages": [user(), answer()]}
THINKING: Row = {"messages": [user(), answer(reasoning="They ask for the weather.")]}
ONE_OR_THE_OTHER = """
{%- for message in messages %}
{%- if message.role == 'assistant' and thinking and not message.reasoning_content %}{{ raise_exception('no thought') }}
{%- elif message.role == 'assistant' and message.reasoning_content and not thinking %}{{ raise_exception('a thought') }}
{%- endif %}<|im_start|>{{ message.role }}\\n{{ message.content }}<|im_end|>\\n
{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"""


def chosen(tokenizer: Any, *rows: Row) -> PromptSetting:
    canonical = [CHAT.normalise(json.loads(json.dumps(row))) for row in rows]
    return CHAT.setting_for([(f"row {i}", row) for i, row in enumerate(canonical, 1)], tokenizer, TODAY)


@pytest.mark.parametrize(
    ("family", "rows", "switches"),
    [
        ("qwen3", [PLAIN, THINKING], {}),
        ("qwen3_5_think", [PLAIN, THINKING], {}),
        ("nemotron_3_nano", [PLAIN], {"enable_thinking": False}),
        ("nemotron_3_nano", [THINKING], {}),
        ("nemotron_3_nano", [PLAIN, THINKING], {}),
        ("qwen3_5_nothink", [PLAIN], {}),
        ("qwen3_5_nothink", [THINKING], {"enable_thinking": True}),
        ("qwen3_5_nothink", [PLAIN, THINKING, SHAPES["reasoning in many turns"]], {"enable_thinking": True}),
        ("deepseek_r1_distill", [PLAIN], {}),
    ],
)
def test_the_switches_train_all_rows_after_the_prompt_that_the_engine_writes(
    family: str, rows: list[Row], switches: dict[str, bool], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(family, templates()[family], tmp_path)
    setting = chosen(tokenizer, *rows)
    assert setting == PromptSetting(switches=switches)
    for row in rows:
        canonical = CHAT.normalise(json.loads(json.dumps(row)))
        examples = CHAT.with_setting(setting).encode(canonical, tokenizer, ())
        assert CHAT.is_whole(canonical, examples, tokenizer)
        for turn in trained_turns(tokenizer, canonical["messages"], None, setting):
            messages = canonical["messages"][: turn.message]
            prompt = rendered_by_engine(tokenizer, messages, None, **setting.switches)
            assert tuple(tokenizer.encode(prompt, add_special_tokens=False)) == turn.prompt_ids


@pytest.mark.parametrize(
    ("template", "settings"),
    [
        ("{{ messages }}", []),
        (
            "{% if enable_thinking is defined and enable_thinking %}a{% endif %}",
            [{"enable_thinking": v} for v in (0, 1)],
        ),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}", [{"thinking": v} for v in (0, 1)]),
        ("{% if thinking_budget == 0 %}a{% elif thinking_budget > 0 %}b{% endif %}", [{"thinking_budget": 0}]),
        (
            "{% if reasoning_effort == 'none' %}a{% endif %}{% if reasoning_effort in ['low', 'high'] %}b{% endif %}",
            [{"reasoning_effort": v} for v in ("none", "low", "high")],
        ),
        ("{% set reasoning_content = '' %}{{ reasoning_content }}{% if preserve_thinking %}a{% endif %}", []),
        ("Reasoning: {{ reasoning_effort }}", []),
    ],
)
def test_switches_are_the_variables_of_the_template(
    template: str, settings: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert settings_of(tokenizer_of("qwen3", template, tmp_path)) == [{}, *settings]


def test_rows_that_no_setting_trains_together_are_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen3", ONE_OR_THE_OTHER, tmp_path)
    thought = {"messages": [user(), answer(reasoning="T", content="<think>T</think>21")]}
    assert chosen(tokenizer, PLAIN).switches == {}
    assert chosen(tokenizer, thought).switches == {"thinking": True}
    with pytest.raises(DataError, match="no setting of the base's chat template trains all rows") as caught:
        chosen(tokenizer, PLAIN, thought, thought)
    assert len(caught.value.details) == 3
    assert "the template's default: row 2, row 3: messages[1]: " not in str(caught.value.message)
    assert any(line.startswith("the template's default: row 2, row 3: ") for line in caught.value.details)
    assert any("thinking: true: row 1: " in line and "no thought" in line for line in caught.value.details)


def test_a_row_that_every_setting_refuses_does_not_decide(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen3_5_nothink", templates()["qwen3_5_nothink"], tmp_path)
    quotes = {"messages": [user(), answer("It ends with <|im_end|>.")]}
    late = {"messages": [user(), answer(), system(), user(), answer()]}
    assert chosen(tokenizer, quotes, late, THINKING).switches == {"enable_thinking": True}


@pytest.mark.parametrize("family", ["llama3_2", "gptoss"])
def test_prompts_with_a_date_are_those_of_one_day_and_the_engine_can_write_them(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, templates()[family], tmp_path)
    setting = chosen(tokenizer, PLAIN)
    assert setting.today == TODAY
    assert "2026-07-26" in setting.notes()[0]
    row = CHAT.normalise(json.loads(json.dumps(PLAIN)))
    days = [PromptSetting(today=day) for day in (TODAY, TOMORROW)]
    first, second = (CHAT.with_setting(day).encode(row, tokenizer, ()) for day in days)
    assert first != second
    (turn,) = trained_turns(tokenizer, row["messages"], None, setting)
    prompt = rendered_by_engine(tokenizer, row["messages"][:1], None, **variables_of(setting))
    assert tuple(tokenizer.encode(prompt, add_special_tokens=False)) == turn.prompt_ids
    assert datetime.combine(TODAY, time()).strftime("%Y") in prompt
    assert "26" in prompt


def test_a_template_without_a_date_has_no_day(tmp_path: Path) -> None:
    assert chosen(tokenizer_of("qwen3", templates()["qwen3"], tmp_path), PLAIN).today is None
