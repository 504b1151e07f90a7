"""An old answer beside a new one: exact match, chrF, length, refusals, JSON and tool calls; and their summary. Pure.

Measures are of characters, so that they hold for Japanese as for English. They say how alike answers are, not which is
better.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_jobs.importing.client import Document
from ray_jobs.importing.completions import Asked
from ray_jobs.tasks.chat.messages import canonical, decoded, text_of

_RESAMPLES = 2000
_FEWEST_FOR_INTERVAL = 10
"""With fewer prompts there is no interval: resamples of a handful of values say little."""
_REFUSAL = re.compile(
    r"(?:i['’]m sorry|i am sorry|i apologi[sz]e|unfortunately)[^.!?\n]{0,40}\b(?:can['’]?t|cannot|not able|unable)\b"
    r"|\bi (?:can['’]?t|cannot|am unable to|won['’]?t) (?:help|assist|provide|comply|answer|do that)"
    r"|(?:申し訳|すみません|恐れ入り|残念)[^。\n]{0,60}(?:できません|できかねます|致しかねます|いたしかねます|お答えでき|対応でき)"
    r"|(?:お答え|お手伝い|ご案内|提供)(?:する)?(?:ことは|は)?(?:できません|できかねます|いたしかねます)",
    re.IGNORECASE,
)
_WITHIN = 200
"""Characters from the start in which a refusal is looked for."""


@dataclass(frozen=True)
class AnswerPair:
    """One prompt with both answers. None: the measure does not apply."""

    id: str
    prompt: str
    old: str
    new: str
    exact: bool
    """Equal texts without surrounding white space, and equal tool calls."""
    chrf: float | None
    """0 to 100, of the new text against the old one."""
    length_ratio: float | None
    """Characters of the new text over those of the old one."""
    old_refuses: bool
    new_refuses: bool
    """By a list of phrases, or the field `refusal`."""
    new_is_json: bool | None
    """None: the old answer is no JSON object or list, and none was requested."""
    json_equal: bool | None
    tools_equal: bool | None
    """Same functions with the same arguments in the same order. None: neither answer has a call."""
    new_cut_off: bool
    """The new answer ended at its limit of tokens."""


@dataclass(frozen=True)
class MeasureSummary:
    """A measure over all prompts to which it applies."""

    name: str
    value: float
    count: int
    low: float | None
    high: float | None
    """Ends of the 95 % bootstrap interval. None: too few prompts."""


def compare(asked: Asked, message: Document, *, cut_off: bool = False) -> AnswerPair:
    """Compare the old answer of a prompt with a new assistant's message."""
    old, new = _text(asked.answer), _text(message)
    old_calls, new_calls = _calls(asked.answer), _calls(message)
    old_json, new_json = _json(old), _json(new)
    wants_json = asked.response_format is not None or old_json is not None
    tools_equal = old_calls == new_calls if old_calls or new_calls else None
    return AnswerPair(
        id=asked.id,
        prompt=_prompt(asked),
        old=old or _shown(old_calls),
        new=new or _shown(new_calls),
        exact=old.strip() == new.strip() and tools_equal is not False,
        chrf=chrf(new, old) if old.strip() else None,
        length_ratio=len(new) / len(old) if old.strip() else None,
        old_refuses=refuses(asked.answer),
        new_refuses=refuses(message),
        new_is_json=new_json is not None if wants_json else None,
        json_equal=old_json == new_json if wants_json and old_json is not None else None,
        tools_equal=tools_equal,
        new_cut_off=cut_off,
    )


def chrf(new: str, old: str) -> float:
    """Sentence chrF2 of sacrebleu: F-score of character n-grams up to 6, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(new, [old]).score)


def refuses(message: Document) -> bool:
    """Whether an answer begins like a refusal. A list of phrases: it misses some, and takes others for one."""
    return bool(message.get("refusal")) or _REFUSAL.search(_text(message)[:_WITHIN]) is not None


def summarize(pairs: Sequence[AnswerPair]) -> list[MeasureSummary]:
    """Each measure that applies to a prompt."""
    measures: list[tuple[str, Callable[[AnswerPair], float | bool | None], Callable[[Sequence[float]], float]]] = [
        ("exact match", lambda pair: pair.exact, statistics.fmean),
        ("chrF", lambda pair: pair.chrf, statistics.fmean),
        ("length ratio (median)", lambda pair: pair.length_ratio, statistics.median),
        ("old answer refuses", lambda pair: pair.old_refuses, statistics.fmean),
        ("new answer refuses", lambda pair: pair.new_refuses, statistics.fmean),
        ("new answer is JSON", lambda pair: pair.new_is_json, statistics.fmean),
        ("JSON equal", lambda pair: pair.json_equal, statistics.fmean),
        ("tool calls equal", lambda pair: pair.tools_equal, statistics.fmean),
        ("new answer cut off", lambda pair: pair.new_cut_off, statistics.fmean),
    ]
    found = []
    for name, measure, center in measures:
        values = [float(value) for pair in pairs if (value := measure(pair)) is not None]
        if values:
            low, high = bootstrap_interval(values, center)
            found.append(MeasureSummary(name, center(values), len(values), low, high))
    return found


def bootstrap_interval(
    values: Sequence[float], center: Callable[[Sequence[float]], float], *, seed: int = 0
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of 2,000 resamples; (None, None) for fewer than ten values.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) < _FEWEST_FOR_INTERVAL:
        return None, None
    chosen = random.Random(seed)
    centers = sorted(center(chosen.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return centers[math.floor(0.025 * _RESAMPLES)], centers[math.ceil(0.975 * _RESAMPLES) - 1]


def as_json(pairs: Sequence[AnswerPair]) -> dict[str, Any]:
    return {
        "summary": [asdict(each) for each in summarize(pairs)],
        "prompts": [asdict(pair) for pair in pairs],
    }


def _text(message: Document) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts; others than text show nothing
        content = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = [{"type": "text", "text": part["text"]} for part in content]
    found = canonical([{"role": "assistant", "content": content}])[0]["content"]
    return text_of(found) or str(message.get("refusal") or "")


def _calls(message: Document) -> list[tuple[str, Any]]:
    functions = [each.get("function") for each in message.get("tool_calls") or () if isinstance(each, dict)]
    functions.append(message.get("function_call"))
    return [(str(each.get("name")), _arguments(each.get("arguments"))) for each in functions if isinstance(each, dict)]


def _arguments(given: object) -> object:
    found = decoded(given)
    return given if found is None else found


def _shown(calls: list[tuple[str, Any]]) -> str:
    return "\n".join(f"{name}({json.dumps(arguments, ensure_ascii=False)})" for name, arguments in calls)


def _json(text: str) -> Any:
    """The object or list that a text is; None for any other text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _prompt(asked: Asked) -> str:
    lines = []
    for message in asked.messages:
        calls = _shown(_calls(message))
        lines.append(f"{message.get('role')}: {_text(message)}{calls and ' ' + calls}")
    return "\n".join(lines)
