"""Conversations as text, by a base's chat template, as vLLM renders the same request.

Owns what vLLM does between the messages and the template (`vllm.renderers.hf`): content as parts for a template that
loops over them, `developer` as `system` for one that does not know it. Messages are canonical (`messages`). Does not
know tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import DataError, ModelError
from ray_jobs.tasks.base import PromptSetting
from ray_jobs.tasks.chat.messages import Message, text_of

if TYPE_CHECKING:
    from jinja2 import nodes
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Tags that transformers adds to the language."""
_MAX_MESSAGE = 300
"""Characters of a template's own error that are shown."""
_DEFAULT = PromptSetting()
_CLOCK = "strftime_now"
"""Function by which a template asks for the time."""
_WITH_AND_WITHOUT_TOOLS: tuple[Sequence[Message] | None, ...] = (None, [{}])


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] | None = None,
    *,
    generate: bool = False,
    setting: PromptSetting = _DEFAULT,
) -> str:
    """The conversation as text. `generate` ends it where the assistant begins.

    Raises DataError, with the template's words, for messages that it refuses.
    """
    from jinja2.exceptions import TemplateError

    template = template_of(tokenizer, tools)
    conversation = _for_template([_with_reasoning(message) for message in messages], template)
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=generate,
            **variables_of(setting),
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        words = " ".join(str(error).split())[:_MAX_MESSAGE] or type(error).__name__
        raise DataError(f"the base's chat template refuses this conversation: {words}") from error
    assert isinstance(text, str)
    return text


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Message] | None = None) -> str:
    """The template that is applied: a base may have one of its own for conversations with tools."""
    try:
        return str(tokenizer.get_chat_template(None, tools=list(tools) if tools else None))
    except ValueError as error:
        raise ModelError(f"the base has no chat template: {error}") from error


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template of the base asks for the day, so that its prompts differ from day to day."""
    return any(_CLOCK in template_of(tokenizer, tools) for tools in _WITH_AND_WITHOUT_TOOLS)


def variables_of(setting: PromptSetting) -> dict[str, Any]:
    """What a template gets beside the conversation. A fixed day replaces the clock of transformers."""
    if setting.today is None:
        return dict(setting.switches)
    return {**setting.switches, _CLOCK: datetime.combine(setting.today, time(12)).strftime}


@lru_cache(maxsize=32)
def parsed(template: str) -> nodes.Template | None:
    """A template's syntax tree. None: it cannot be read."""
    from jinja2 import Environment, TemplateSyntaxError

    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # text, not HTML
    try:
        return environment.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError:
        return None


def _with_reasoning(message: Message) -> Message:
    found = {name: value for name, value in message.items() if name != "weight"}
    if "reasoning" in found:
        found["reasoning_content"] = found["reasoning"]
    return found


def _for_template(conversation: list[Message], template: str) -> list[Message]:
    parts = _reads_parts(template)
    for message in conversation:
        as_parts = parts and message["role"] != "tool"
        message["content"] = _parts(message["content"]) if as_parts else text_of(message["content"])
    knows_developer = '"developer"' in template or "'developer'" in template
    if not knows_developer and any(message["role"] == "developer" for message in conversation):
        conversation = _one_system_message(conversation)
    return conversation


def _parts(content: str | list[dict[str, str]] | None) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _one_system_message(conversation: list[Message]) -> list[Message]:
    """The conversation with what its system and developer messages say in one system message at its beginning."""
    named = [message | {"role": "system"} if message["role"] == "developer" else message for message in conversation]
    system = [message for message in named if message["role"] == "system"]
    if len(system) == 1 and named[0] is system[0]:
        return named
    texts = [text_of(message["content"]) for message in system]
    merged: Message = {"role": "system", "content": "\n\n".join(filter(None, texts))}
    return [merged, *(message for message in named if message["role"] != "system")]


@lru_cache(maxsize=32)
def _reads_parts(template: str) -> bool:
    """Whether the template loops over the parts of a message's content, so that vLLM passes parts to it.

    It does where a `for` runs over `content`, or over the content of a variable that a `for` over `messages` sets.
    """
    from jinja2 import nodes

    root = parsed(template)
    if root is None:  # vLLM passes text to a template that it cannot read
        return False
    loops = list(root.find_all(nodes.For))
    lists = _names_of(root, "messages")
    items = {
        loop.target.name
        for loop in loops
        if isinstance(loop.target, nodes.Name) and any(_is_named(loop.iter, name) for name in lists)
    }
    return any(
        (isinstance(loop.iter, nodes.Name) and loop.iter.name == "content")
        or any(_is_named(loop.iter, item, "content") for item in items)
        for loop in loops
    )


def _names_of(root: nodes.Template, variable: str) -> set[str]:
    """Names of the variable and of those that are assigned from it or a part of it."""
    from jinja2 import nodes

    found, new = {variable}, [variable]
    while new:
        name = new.pop()
        for assignment in root.find_all(nodes.Assign):
            target = assignment.target
            if _is_named(assignment.node, name) and isinstance(target, nodes.Name) and target.name not in found:
                found.add(target.name)
                new.append(target.name)
    return found


def _is_named(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """Whether an expression is the variable, or its `key`; through filters, tests and slices."""
    from jinja2 import nodes

    if isinstance(node, nodes.Filter | nodes.Test):
        return _is_named(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_named(node.node, variable, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable
    if isinstance(node, nodes.Getitem):
        return _is_named(node.node, variable) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and node.attr == key and _is_named(node.node, variable)
