"""The parsers found from a template read back what its models are trained to write, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.errors import DataError
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.chat.parsers import Parsers, parsers_of
from ray_jobs.tasks.chat.turns import end_token_ids, trained_turns
from tests.tasks.chat.families import FURTHER, further_templates, templates, tokenizer_of
from tests.tasks.chat.shapes import SHAPES, TOOLS, Row, answer, call, user

CHAT = TASKS["chat"]
THOUGHT = "They ask for the weather."
ROWS: dict[str, Row] = {
    "text": {"messages": [user(), answer()]},
    "reasoning": {"messages": [user(), answer(reasoning=THOUGHT)]},
    "a call": SHAPES["tool call"],
    "two calls": SHAPES["parallel calls"],
    "a text with marks": {"messages": [user(), answer('Write {"name": "x"} or <b>[f(1)]</b>.')], "tools": TOOLS},
    "a call with quotes": {
        "messages": [user(), answer(None, tool_calls=[call(arguments=json.dumps({"city": 'K"yō\nto'}))])],
        "tools": TOOLS,
    },
}
NOT_READ = {
    "gptoss": "its parser reads token ids of the Harmony vocabulary, which a small tokenizer lacks",
    "minicpm5": "vLLM's parser leaves a part of a streamed call in the text; the base has none",
    "seed_oss": "its calls are read; reasoning stays in the text without its end mark",
    "minimax_m3": "vLLM's parser needs an extension that its CPU build lacks; the base has none",
}


@dataclass
class Read:
    """What a parser read."""

    reasoning: str
    content: str
    calls: list[tuple[str, Any]]


def new_parser(tokenizer: Any, parsers: Parsers, request: Any) -> Any:
    from vllm.parser.parser_manager import ParserManager

    kind = ParserManager.get_parser(parsers.tool or "hermes", parsers.reasoning, enable_auto_tools=True)
    assert kind is not None
    return kind(tokenizer, request.tools, chat_template_kwargs=dict(parsers.switches))


def decoded(tokenizer: Any, parser: Any, request: Any, ids: list[int]) -> str:
    """The text of an answer, as the engine passes it to the parser."""
    asked = parser.adjust_request(request.model_copy())
    return str(tokenizer.decode(ids, skip_special_tokens=asked.skip_special_tokens))


def read_whole(tokenizer: Any, parsers: Parsers, request: Any, ids: list[int]) -> Read:
    parser = new_parser(tokenizer, parsers, request)
    text = decoded(tokenizer, parser, request, ids)
    reasoning, content, calls = parser.parse(text, request, enable_auto_tools=True, model_output_token_ids=ids)
    found = [(each.name, json.loads(each.arguments)) for each in calls or ()]
    return Read((reasoning or "").strip(), (content or "").strip(), found)


def read_streamed(tokenizer: Any, parsers: Parsers, request: Any, prompt: list[int], ids: list[int]) -> Read:
    parser = new_parser(tokenizer, parsers, request)
    read, arguments, said = Read("", "", []), dict[int, str](), ""
    for t in range(len(ids)):
        text = decoded(tokenizer, parser, request, ids[: t + 1])
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        delta = parser.parse_delta(
            text[len(said) :], ids[t : t + 1], request, prompt_token_ids=prompt, finished=t == len(ids) - 1
        )
        said = text
        if delta is None:
            continue
        read.reasoning += delta.reasoning or ""
        read.content += delta.content or ""
        for each in delta.tool_calls or ():
            if each.function.name:
                read.calls.append((each.function.name, None))
            arguments[each.index] = arguments.get(each.index, "") + (each.function.arguments or "")
    names = [name for name, _ in read.calls]
    found = [(name, json.loads(arguments[i])) for i, name in enumerate(names)]
    return Read(read.reasoning.strip(), read.content.strip(), found)


def wanted(message: Row, parsers: Parsers, text: str) -> Read:
    """What is to be read of a message. A template may have no place for reasoning, or write it in the text."""
    calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls", ())]
    reasoning = message["reasoning"] if message.get("reasoning", "-") in text else ""
    if reasoning and parsers.reasoning is None:
        return Read("", text.strip(), calls)
    return Read(reasoning, message["content"] or "", calls)


def trained(tokenizer: Any, row: Row) -> Iterator[tuple[Row, list[int], list[int], Mapping[str, Any]]]:
    """The first turn of a row: its message, prompt, answer without the end token, and the template's switches under
    which it is trained; nothing if it is refused."""
    canonical = CHAT.normalise(json.loads(json.dumps(row)))
    try:
        setting = CHAT.setting_for([("the row", canonical)], tokenizer, date(2026, 7, 26))
        turn = next(iter(trained_turns(tokenizer, canonical["messages"], canonical.get("tools"), setting)))
    except DataError:
        return
    ids = list(turn.answer_ids)
    assert ids[-1] in end_token_ids(tokenizer)
    yield canonical["messages"][turn.message], list(turn.prompt_ids), ids[:-1], setting.switches


@pytest.mark.parametrize("family", sorted({*templates(), *FURTHER} - NOT_READ.keys()))
def test_what_a_model_is_trained_to_write_is_read_back(family: str, tmp_path: Path) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    found = further_templates() if family in FURTHER else templates()
    tokenizer = tokenizer_of(family, found[family], tmp_path)
    base = parsers_of(tokenizer)
    problems = []
    for name, row in ROWS.items():
        body: dict[str, Any] = {"model": "m", "messages": [user()]}
        if row.get("tools"):
            body |= {"tools": row["tools"], "tool_choice": "auto" if base.tool else "none"}
        request = ChatCompletionRequest.model_validate(body)
        for message, prompt, ids, switches in trained(tokenizer, row):
            parsers = replace(base, switches={**base.switches, **switches})
            expected = wanted(message, parsers, tokenizer.decode(ids, skip_special_tokens=True))
            for how, read in (
                ("whole", read_whole(tokenizer, parsers, request, ids)),
                ("streamed", read_streamed(tokenizer, parsers, request, prompt, ids)),
            ):
                if read != expected:
                    problems.append(f"{name}, {how}: {read}, not {expected}")
    assert not problems, "\n".join([str(base), *problems])


@pytest.mark.parametrize(
    ("family", "whole"), [("qwen3", True), ("gemma4_v5", True), ("qwen2_5", False), ("gemma3", False)]
)
def test_reasoning_without_a_place_in_the_template_is_noticed(family: str, whole: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, templates()[family], tmp_path)
    for name, row in ROWS.items():
        if "tools" not in row:
            canonical = CHAT.normalise(json.loads(json.dumps(row)))
            examples = CHAT.encode(canonical, tokenizer, ())
            assert CHAT.is_whole(canonical, examples, tokenizer) == (whole or name == "text")
