"""Supervised fine-tuning on conversations: only the assistant's messages and their end tokens are trained.

A row is `{"messages": [{"role", "content"}, …]}`, or `{"prompt", "completion"}`; an assistant message may carry
`"weight": 0` to be read but not trained, and `tools` are passed to the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ray_jobs.errors import DataError, ModelError
from ray_jobs.tasks.base import IGNORED, BaseNeeds, Batch, Column, Example, Row, Task, padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROLES = ("system", "developer", "user", "assistant", "tool")


class Chat(Task[Example]):
    name: ClassVar[str] = "chat"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("messages", "the conversation: a list of {role, content}", required=False),
        Column("prompt", "what the user says (with completion, instead of messages)", required=False),
        Column("completion", "what the assistant answers", required=False),
        Column("tools", "JSON schemas of the functions the assistant may call", required=False),
    )
    measures: ClassVar[tuple[str, ...]] = ("token_accuracy", "chrf")
    route: ClassVar[str] = "/v1/chat/completions"
    pipeline_tag: ClassVar[str] = "text-generation"
    base: ClassVar[BaseNeeds | None] = BaseNeeds(
        architectures=("ForCausalLM", "LMHeadModel"),
        auto_class="AutoModelForCausalLM",
        adapter_type="CAUSAL_LM",
        head=False,
        frozen_learning_rate=5e-5,
        frozen_features="all_tokens",
        chat_template=True,
    )
    packs: ClassVar[bool] = True
    shares_passes: ClassVar[bool] = True

    def check_row(self, row: Row) -> list[str]:
        if "messages" not in row:
            if "prompt" not in row and "completion" not in row:
                return ["neither messages nor prompt and completion"]
            return [
                f"{key} must be non-empty text, not {_short(row.get(key))}"
                for key in ("prompt", "completion")
                if not isinstance(row.get(key), str) or not row[key].strip()
            ]
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            return [f"messages must be a non-empty list, not {_short(messages)}"]
        problems: list[str] = []
        for i, message in enumerate(messages):
            problems += [f"messages[{i}]: {problem}" for problem in _check_message(message)]
            if len(problems) >= 10:  # enough of one row
                return problems
        if not problems and not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
            problems.append("no assistant message with weight 1: nothing would be trained")
        return problems

    def normalise(self, row: Row) -> Row:
        if "messages" in row:
            return {key: row[key] for key in ("messages", "tools") if row.get(key) is not None}
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }

    def encode(self, row: Row, processor: PreTrainedTokenizerBase, labels: Sequence[str]) -> Example:
        """Each part is tokenised as the endpoint sees it: a prompt ends where generation begins."""
        tokenizer, messages, tools = processor, row["messages"], row.get("tools")
        whole = render(tokenizer, messages, tools)
        input_ids: list[int] = []
        targets: list[int] = []
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = len(render(tokenizer, messages[:i], tools, generate=True))
            end = len(render(tokenizer, messages[: i + 1], tools))
            if whole[:start] != render(tokenizer, messages[:i], tools, generate=True) or start < done:
                raise ModelError(
                    "the chat template rewrites earlier text when a message is added, so the assistant's tokens cannot "
                    "be located: use a template whose output only grows"
                )
            prompt_ids = tokenize(tokenizer, whole[done:start])
            answer_ids = tokenize(tokenizer, whole[start:end])
            input_ids += prompt_ids + answer_ids
            targets += [IGNORED] * len(prompt_ids)
            trained = _through_end_token(tokenizer, answer_ids) if message.get("weight", 1) else 0
            targets += answer_ids[:trained] + [IGNORED] * (len(answer_ids) - trained)
            done = end
        return Example(tuple(input_ids), tuple(targets))

    def check_encoded(self, examples: Sequence[Example], processor: PreTrainedTokenizerBase) -> None:
        """Refuse rows that train nothing, or never the end token: the model would not learn to stop."""
        if not any(example.supervised for example in examples):
            raise DataError(
                f"none of the {len(examples)} rows supervises a token: every assistant message is empty, has weight 0, "
                "or was cut off; give assistant messages weight 1 or raise data.max_tokens"
            )
        ends = end_token_ids(processor)
        if not any(label in ends for example in examples for label in example.labels):
            raise DataError(
                f"the end token ({', '.join(map(repr, processor.convert_ids_to_tokens(sorted(ends))))}) is supervised "
                f"in none of the {len(examples)} rows, so the model would not learn to stop: the chat template must "
                "write it after an assistant message, and data.max_tokens must not cut it off"
            )

    def collate(self, examples: Sequence[Example], *, packed: bool = False, pad_id: int = 0) -> Batch:
        return _pack(examples, pad_id) if packed else _pad(examples, pad_id)

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits_BTV: torch.Tensor = model(**batch.inputs, use_cache=False).logits
        # squeeze, not [0], whose gradient is copied into zeros as large as the logits.
        return logits_BTV.squeeze(0) if batch.select_SV is None else logits_BTV[batch.select_SV]

    def measure(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        labels: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> dict[str, float]:
        """chrF (Popović 2015) of greedy answers against the references: it compares characters, so it suits Japanese
        too."""
        from sacrebleu.metrics.chrf import CHRF

        prompts, references = [], []
        for row in rows:
            last = last_assistant(row["messages"])
            if isinstance(row["messages"][last].get("content"), str):
                prompts.append(row | {"messages": row["messages"][:last]})
                references.append(row["messages"][last]["content"])
        if not prompts:
            return {}
        answers = answer(model, processor, prompts, max_new_tokens=max_new_tokens)
        return {"chrf": float(CHRF().corpus_score(answers, [references]).score)}


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list[Row] | None = None, *, generate: bool = False
) -> str:
    """The conversation as text, by the tokenizer's chat template. `generate` ends it where the assistant begins."""
    text = tokenizer.apply_chat_template(
        messages, tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=generate
    )
    assert isinstance(text, str)
    return text


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text, which already has every special token."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def last_assistant(messages: Sequence[Row]) -> int:
    """Index of the assistant's last message."""
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, max_new_tokens: int
) -> list[str]:
    """Greedy answers to conversations that end with the user, in batches of 8, shortest first."""
    import torch

    device = next(model.parameters()).device
    pad_id = int((tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0)
    texts = [render(tokenizer, row["messages"], row.get("tools"), generate=True) for row in rows]
    prompts = [tokenize(tokenizer, text) for text in texts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for at in range(0, len(order), 8):
        group = order[at : at + 8]
        inputs = padded([prompts[i] for i in group], pad_id, side="left")
        with torch.no_grad():
            out_BT = model.generate(  # type: ignore[operator]  # transformers' mixin is untyped
                **{name: tensor.to(device) for name, tensor in inputs.items()},
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
            )
        for i, answer_ids in zip(group, out_BT[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            answers[i] = str(tokenizer.decode(answer_ids, skip_special_tokens=True)).strip()
    return answers


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


def _through_end_token(tokenizer: PreTrainedTokenizerBase, answer_ids: list[int]) -> int:
    """Number of the answer's ids to train: up to the last end token, without what the template adds after it."""
    ends = end_token_ids(tokenizer)
    return next((i + 1 for i in reversed(range(len(answer_ids))) if answer_ids[i] in ends), len(answer_ids))


def _pack(examples: Sequence[Example], pad_id: int) -> Batch:
    """All examples in one sequence of T tokens; positions restart with each, which keeps attention inside it.

    `logits_to_keep` makes the model compute only the S rows of logits that have a target.
    """
    import torch

    ids = [token for example in examples for token in example.input_ids]
    positions = [t for example in examples for t in range(len(example.input_ids))]
    labels = [label for example in examples for label in (IGNORED, *example.labels[1:])]
    next_T = torch.tensor(labels[1:], dtype=torch.long)
    keep_S = (next_T != IGNORED).nonzero().flatten()
    inputs = {
        "input_ids": torch.tensor([ids or [pad_id]]),
        "position_ids": torch.tensor([positions or [0]]),
        "logits_to_keep": keep_S if len(keep_S) else torch.tensor([0]),
    }
    return Batch(inputs, next_T[keep_S])


def _pad(examples: Sequence[Example], pad_id: int) -> Batch:
    """One row an example, padded at the end to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    examples = examples or [Example((pad_id,), (IGNORED,))]
    labels = [torch.tensor(example.labels[1:], dtype=torch.long) for example in examples]
    next_BT = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    rows, positions = (next_BT != IGNORED).nonzero(as_tuple=True)
    inputs = padded([example.input_ids for example in examples], pad_id)
    return Batch(inputs, next_BT[rows, positions], (rows, positions))


def _check_message(message: object) -> list[str]:
    if not isinstance(message, dict):
        return [f"must be an object with role and content, not {_short(message)}"]
    problems = []
    role = message.get("role")
    if role not in _ROLES:
        problems.append(f"role is {_short(role)}, must be one of {', '.join(_ROLES)}")
    content = message.get("content")
    if role == "assistant" and message.get("tool_calls"):
        if content is not None and not isinstance(content, str):
            problems.append(f"content must be text or null beside tool_calls, not {_short(content)}")
    elif not isinstance(content, str):
        problems.append(f"content must be text, not {_short(content)}")
    elif role in ("user", "assistant") and not content.strip():
        problems.append("content is empty")
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        problems.append(f"weight is {_short(message['weight'])}; only an assistant message has one, 0 or 1")
    return problems


def _short(value: object) -> str:
    text = repr(value[:60] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else text[:57] + "..."
