"""Supervised fine-tuning on conversations: only the assistant's messages and their end tokens are trained.

A row is `{"messages": [{"role", "content"}, …]}`, or another shape of `shapes`; an assistant message may carry
`"weight": 0` to be read but not trained, and `tools` are passed to the chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar

from ray_jobs.errors import DataError
from ray_jobs.tasks.base import IGNORED, BaseNeeds, Batch, Column, Example, PromptSetting, Row, Task, padded
from ray_jobs.tasks.chat.calls import calls_of, read_calls
from ray_jobs.tasks.chat.messages import (
    canonical,
    canonical_tools,
    problems_of,
    problems_of_tools,
    text_of,
)
from ray_jobs.tasks.chat.parsers import parsers_of
from ray_jobs.tasks.chat.shapes import as_conversation
from ray_jobs.tasks.chat.switches import choose
from ray_jobs.tasks.chat.template import render
from ray_jobs.tasks.chat.turns import (
    end_token_ids,
    end_token_names,
    examples_of,
    has_reasoning_of,
    tokenize,
    trained_turns,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Chat(Task[Example]):
    setting: PromptSetting = field(default_factory=PromptSetting)
    """How the base's chat template writes prompts."""

    name: ClassVar[str] = "chat"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("messages", "the conversation: a list of {role, content} or {from, value}", required=False,
               aliases=("conversations", "conversation")),
        Column("prompt", "what the user says (with completion, instead of messages)", required=False,
               aliases=("instruction", "question", "query"),
               likely=("prompt", "question", "query", "request", "user", "document", "article",
                       "質問", "問い", "指示", "入力", "依頼", "原文", "記事")),
        Column("context", "text that follows the prompt", required=False, aliases=("input",),
               translations=("入力", "文脈", "背景", "参考情報", "コンテキスト")),
        Column("completion", "what the assistant answers", required=False, aliases=("output", "response", "answer"),
               likely=("completion", "answer", "response", "reply", "output", "assistant", "summary",
                       "回答", "答え", "返答", "返信", "応答", "出力", "要約")),
        Column("history", "exchanges before the prompt: pairs of texts", required=False, translations=("履歴",)),
        Column("system", "the system prompt", required=False, aliases=("system_prompt",),
               translations=("システム", "システムプロンプト")),
        Column("tools", "JSON schemas of the functions the assistant may call", required=False),
        Column("functions", "the same, as OpenAI's older rows have them", required=False),
    )  # fmt: skip
    measures: ClassVar[tuple[str, ...]] = ("token_accuracy", "chrf", "call_accuracy")
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
        suggested="Qwen/Qwen2.5-0.5B-Instruct",
    )
    packs: ClassVar[bool] = True
    shares_passes: ClassVar[bool] = True

    def check_row(self, row: Row) -> list[str]:
        conversation, problems = as_conversation(row)
        return problems or problems_of(conversation["messages"]) + problems_of_tools(conversation.get("tools"))

    def normalise(self, row: Row) -> Row:
        conversation, _ = as_conversation(row)
        tools = canonical_tools(conversation.get("tools"))
        return {"messages": canonical(conversation["messages"]), **({} if tools is None else {"tools": tools})}

    def recognises(self, columns: AbstractSet[str]) -> bool:
        has = {column.name for column in self.columns if columns & {column.name, *column.aliases}}
        return "messages" in has or ("completion" in has and bool(has & {"prompt", "context"}))

    def input_of(self, row: Row) -> str:
        """The messages before the first trained answer, without what they call: a conversation that was logged turn by
        turn, in rows that grow, is one input."""
        asked = _asked(row)
        return "\n".join(f"{message['role']}: {text_of(message.get('content'))}" for message in asked) or (
            super().input_of(row)
        )

    def question_of(self, row: Row) -> str:
        """Without the system's messages, which many rows share."""
        asked = [message for message in _asked(row) if message["role"] in ("user", "assistant", "tool")]
        return "\n".join(text_of(message.get("content")) for message in asked) or self.input_of(row)

    def setting_for(
        self, rows: Iterable[tuple[str, Row]], processor: PreTrainedTokenizerBase, today: date
    ) -> PromptSetting:
        """The template's switches under which all rows are trained as they are served, and the day that it writes."""
        return choose(processor, rows, today)

    def with_setting(self, setting: PromptSetting) -> Chat:
        return Chat(setting)

    def encode(self, row: Row, processor: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[Example]:
        """One example, or more where the template rewrites what came before an answer."""
        return examples_of(list(trained_turns(processor, row["messages"], row.get("tools"), self.setting)))

    def is_whole(self, row: Row, examples: Sequence[Example], processor: PreTrainedTokenizerBase) -> bool:
        """Whether the trained answers have their reasoning, for which most templates have no place."""
        if not any("reasoning" in message for message in row["messages"]):
            return True
        said = [label for example in examples for label in example.labels if label != IGNORED]
        return has_reasoning_of(row["messages"], str(processor.decode(said)))

    def check_encoded(self, examples: Sequence[Example], processor: PreTrainedTokenizerBase) -> None:
        """Refuse rows that train nothing, or seldom the end token: the model would not learn to stop."""
        if not any(example.supervised for example in examples):
            raise DataError(
                f"none of the {len(examples)} rows supervises a token: every assistant message is empty, has weight 0, "
                "or was cut off; give assistant messages weight 1 or raise data.max_tokens"
            )
        ends = end_token_ids(processor)
        cut = sum(not any(label in ends for label in example.labels) for example in examples)
        if 2 * cut > len(examples):
            raise DataError(
                f"{cut} of {len(examples)} rows are cut off before the token that ends their answer "
                f"({end_token_names(processor)}), so the model would not learn to stop: raise data.max_tokens, or set "
                "data.too_long to drop"
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
        """Measures of greedy answers: chrF (Popović 2015) against the reference texts, which compares characters and so
        suits Japanese too; and `call_accuracy`, the share of references with tool calls whose answer calls the same
        functions with equal arguments, if the base writes calls that the endpoint reads."""
        from sacrebleu.metrics.chrf import CHRF

        asked = [(row, last_assistant(row["messages"])) for row in rows]
        texts = [(row, last) for row, last in asked if isinstance(row["messages"][last].get("content"), str)]
        parser = parsers_of(processor).tool if any(calls_of(row["messages"][last]) for row, last in asked) else None
        calling = [(row, last) for row, last in asked if parser is not None and calls_of(row["messages"][last])]
        found: dict[str, float] = {}
        if texts:
            answers = [
                str(processor.decode(ids, skip_special_tokens=True)).strip()
                for ids in self._answer(model, processor, texts, max_new_tokens)
            ]
            references = [row["messages"][last]["content"] for row, last in texts]
            found["chrf"] = float(CHRF().corpus_score(answers, [references]).score)
        if parser is not None and calling:
            right = sum(
                read_calls(processor, parser, row["tools"], ids) == calls_of(row["messages"][last])
                for (row, last), ids in zip(
                    calling, self._answer(model, processor, calling, max_new_tokens), strict=True
                )
            )
            found["call_accuracy"] = right / len(calling)
        return found

    def _answer(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        asked: Sequence[tuple[Row, int]],
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Greedy answers to conversations up to these places."""
        texts = [
            render(processor, row["messages"][:last], row.get("tools"), generate=True, setting=self.setting)
            for row, last in asked
        ]
        return answer(model, processor, texts, max_new_tokens=max_new_tokens)


def last_assistant(messages: Sequence[Row]) -> int:
    """Index of the assistant's last message."""
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of greedy answers to prompts, in batches of 8, shortest first."""
    import torch

    device = next(model.parameters()).device
    pad_id = int((tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0)
    prompts = [tokenize(tokenizer, text) for text in texts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
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
            answers[i] = answer_ids
    return answers


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


def _asked(row: Row) -> Sequence[Mapping[str, Any]]:
    """The messages before the first trained answer; none where no user or tool is among them."""
    answers = (m["role"] == "assistant" and m.get("weight", 1) != 0 for m in row["messages"])
    asked: Sequence[Mapping[str, Any]] = row["messages"][: next(i for i, trained in enumerate(answers) if trained)]
    return asked if any(message["role"] in ("user", "tool") for message in asked) else ()
