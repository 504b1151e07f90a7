"""The assistant's turns as token ids: each after the prompt that the endpoint sends for it, with its end token.

A template may rewrite what came before (drop earlier reasoning, open a `<think>`), so every trained turn has a prompt
of its own. Turns whose prompts continue each other's ids share a sequence, which is one for most templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import DataError, ModelError
from ray_jobs.tasks.base import IGNORED, Example, PromptSetting
from ray_jobs.tasks.chat.messages import Message, text_of, texts_of
from ray_jobs.tasks.chat.template import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENED, _CLOSED = "<think>", "</think>"
_MARKS = "<\n"
"""Where a part of the assistant's beginning ends: a tag is never split."""
_NEXT: Message = {"role": "user", "content": "?"}
"""Said after an answer to see how the template ends it."""
_DEFAULT = PromptSetting()

Write = Callable[..., str]
"""`render` for one base, its tools and its setting."""


@dataclass(frozen=True)
class Turn:
    """One answer of the assistant."""

    message: int
    """Its index among the messages."""
    prompt_ids: tuple[int, ...]
    """What the endpoint's engine is sent for it."""
    answer_ids: tuple[int, ...]
    """What it is trained to generate, its end token last."""
    continues: bool = True
    """Whether the template's own text of the conversation continues the prompt."""


def trained_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] | None,
    setting: PromptSetting = _DEFAULT,
) -> Iterator[Turn]:
    """The turns with a weight. Raises DataError for one that the template does not write as it would be generated."""
    write = partial(render, tokenizer, tools=tools, setting=setting)
    for i, message in enumerate(messages):
        if not is_trained(message):
            continue
        _refuse_special_tokens(tokenizer, message, i)
        prompt = write(messages[:i], generate=True)
        answer, continues = _answer(write, messages[: i + 1], prompt)
        if lost := _left_out(message, answer):
            raise DataError(f"messages[{i}]: the base's chat template leaves out {lost}")
        answer_ids = tokenize(tokenizer, answer)
        end = _end_of(tokenizer, answer_ids)
        if end is None:
            following = _next_token(tokenizer, write, messages[: i + 1])
            if following not in end_token_ids(tokenizer):
                raise DataError(
                    f"messages[{i}]: the base's chat template ends this answer with no token at which generation "
                    f"stops ({end_token_names(tokenizer)}), so the model would not learn to stop"
                )
            answer_ids, end = [*answer_ids, following], len(answer_ids) + 1
        yield Turn(i, tuple(tokenize(tokenizer, prompt)), tuple(answer_ids[:end]), continues)


def is_trained(message: Message) -> bool:
    """Whether a message is an answer that counts in the loss."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def has_reasoning_of(messages: Sequence[Message], text: str) -> bool:
    """Whether a text has what the trained answers thought."""
    return all(
        message["reasoning"].strip() in text for message in messages if is_trained(message) and "reasoning" in message
    )


def _answer(write: Write, messages: Sequence[Message], prompt: str) -> tuple[str, bool]:
    """What the last message adds to the prompt that it is generated from, and whether its template's text continues it.

    For most templates it is what follows the prompt. Others write earlier answers otherwise once a message follows, or
    open a `<think>` in the prompt that the finished answer does not have: then it is what follows the beginning of the
    assistant's part, with an empty `<think>` closed. Others put the system message into the last message of the user
    only while no answer follows: then it is what follows the last question and the prompt's end.
    """
    whole = write(messages)
    if whole.startswith(prompt):
        return whole[len(prompt) :], True
    before = write(messages[:-1])
    header = prompt.removeprefix(before) if prompt.startswith(before) else ""
    ends = [len(header), *(at for at in reversed(range(len(header))) if header[at] in _MARKS)]
    known = next((header[:end] for end in ends if header[:end] in whole), "")
    rest = header[len(known) :].strip()
    if known.strip() and whole.count(known) > before.count(known):
        answer = whole[whole.rindex(known) + len(known) :]
        reasoning = _reasoning_of(messages[-1])
        if not rest or (_CLOSED in rest and not reasoning):
            return answer, False
        if rest == _OPENED and _CLOSED not in answer:
            return f"{reasoning}\n{_CLOSED}\n\n{answer.lstrip()}", False
    if (at := _end_of_prompt(prompt, whole, messages)) is not None:
        return whole[at:], False
    raise DataError(
        f"messages[{len(messages) - 1}]: the base's chat template does not write this answer after the prompt that it "
        f"is generated from: it writes {_first_difference(prompt, whole)}"
    )


def _end_of_prompt(prompt: str, whole: str, messages: Sequence[Message]) -> int | None:
    """Where the conversation's text has the prompt's end, from the last message before the answer on; None: nowhere."""
    question = text_of(messages[-2]["content"]).strip() if len(messages) > 1 else ""
    start = prompt.rfind(question) if question else -1
    if start < 0 or not prompt[start + len(question) :].strip():
        return None
    at = whole.rfind(prompt[start:])
    return None if at < 0 else at + len(prompt) - start


def _left_out(message: Message, answer: str) -> str | None:
    """What of a message its template does not write."""
    calls = message.get("tool_calls", ())
    if any(call["function"]["name"] not in answer for call in calls):
        return "the tool calls: use a base that is tuned for tools"
    if any(text.rpartition(_CLOSED)[2].strip() not in answer for text in texts_of(message["content"])):
        return f"its text{' beside tool calls: remove it' if calls else ''}"
    return None


def _reasoning_of(message: Message) -> str:
    """What the assistant thought, in a field of its own or in the text."""
    if message.get("reasoning"):
        return str(message["reasoning"]).strip()
    thought, closed, _ = text_of(message["content"]).partition(_CLOSED)
    return thought.replace(_OPENED, "").strip() if closed else ""


def _without_reasoning(message: Message) -> Message:
    found = {name: value for name, value in message.items() if name != "reasoning"}
    content = found["content"]
    return found if content is None else found | {"content": text_of(content).rpartition(_CLOSED)[2].lstrip("\n")}


def examples_of(turns: Sequence[Turn]) -> list[Example]:
    """Turns as sequences: one for each run of turns of which each continues the ids of those before it."""
    examples: list[Example] = []
    ids: list[int] = []
    labels: list[int] = []
    for turn in turns:
        known = len(ids)
        if known and list(turn.prompt_ids[:known]) != ids:
            examples.append(Example(tuple(ids), tuple(labels)))
            ids, labels, known = [], [], 0
        added = [*turn.prompt_ids[known:], *turn.answer_ids]
        ids += added
        labels += [IGNORED] * (len(added) - len(turn.answer_ids)) + list(turn.answer_ids)
    return [*examples, Example(tuple(ids), tuple(labels))] if ids else examples


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text, which already has every special token."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens at which generation stops: the tokenizer's end token and those of generation_config.json beside it.

    Raises ModelError where both are missing.
    """
    eos = tokenizer.eos_token_id
    ends = _generation_ends(tokenizer.name_or_path) | (frozenset() if eos is None else {int(eos)})
    if not ends:
        raise ModelError("the tokenizer has no end token: set eos_token in tokenizer_config.json")
    return ends


@lru_cache(maxsize=8)
def _generation_ends(directory: str) -> frozenset[int]:
    path = Path(directory) / "generation_config.json"
    if not path.is_file():
        return frozenset()
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _end_of(tokenizer: PreTrainedTokenizerBase, answer_ids: Sequence[int]) -> int | None:
    """Number of the answer's ids through its end token; what the template writes behind it is not generated.

    The last one, since a template may write an end within an answer; of several with only space between, the first.
    """
    stops = end_token_ids(tokenizer)
    ends = [t for t, token in enumerate(answer_ids) if token in stops]
    while len(ends) > 1 and not str(tokenizer.decode(list(answer_ids[ends[-2] + 1 : ends[-1]]))).strip():
        ends.pop()
    return ends[-1] + 1 if ends else None


def _next_token(tokenizer: PreTrainedTokenizerBase, write: Write, messages: Sequence[Message]) -> int | None:
    """The token that follows the last message in a longer conversation: an answer may end where the next role begins.

    A template may drop the answer's reasoning once a message follows.
    """
    *earlier, last = messages
    calls = last.get("tool_calls")
    following: Message = {"role": "tool", "content": "?"} if calls else _NEXT
    if calls and "id" in calls[0]:
        following = following | {"tool_call_id": calls[0]["id"]}
    for answer in (last, _without_reasoning(last)):
        try:
            before, longer = (write([*earlier, answer, *more]) for more in ((), (following,)))
        except DataError:
            return None
        if longer.startswith(before):
            return next(iter(tokenize(tokenizer, longer.removeprefix(before))), None)
    return None


def _refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, message: Message, i: int) -> None:
    """Refuse an answer that quotes a special token: its text would become the token, and end the answer early."""
    said = [text_of(message["content"]), message.get("reasoning")]
    said += [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls", ())]
    for token in tokenizer.all_special_tokens:
        if any(text and token in text for text in said):
            raise DataError(
                f"messages[{i}]: the answer contains {token!r}, which the base's tokenizer reads as a special token: "
                "an answer cannot quote it"
            )


def _first_difference(prompt: str, whole: str) -> str:
    at = next((t for t, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    return f"{whole[at : at + 40]!r}, not {prompt[at : at + 40]!r}"


def end_token_names(tokenizer: PreTrainedTokenizerBase) -> str:
    """The end tokens as an error names them."""
    return ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(end_token_ids(tokenizer)))))
