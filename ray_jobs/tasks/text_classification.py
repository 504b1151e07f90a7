"""Classification: one label a text. Training, evaluation and serving run the same encode and predict code.

A row is `{"text": …, "label": …}`; the labels are those of the training rows, in sorted order.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from ray_jobs.tasks.base import Baseline, BaseNeeds, Batch, Column, Example, Row, Task, padded
from ray_jobs.tasks.ngram_features import READ_CHARACTERS, ngram_classifier, ngram_features
from ray_jobs.tasks.positions import longest_sequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_WHOLE = re.compile(r"^(-?\d+)\.0+$")
PASS_TOKENS = 8192
"""Most tokens of a pass that predicts."""
_BAG_ROWS, _BAG_LABELS = 20_000, 50
"""Training rows that the bag of words reads, and most labels that it is made for."""
_BAG_INVERSE_REGULARISATION = 10.0
_LEAST_CHANCE = 1e-9
"""Probability of a label that the bag of words has not seen."""


@dataclass(frozen=True)
class Prediction:
    """The most likely label and the probability of each, which add up to 1."""

    label: str
    scores: dict[str, float]


class TextClassification(Task[Example]):
    name: ClassVar[str] = "text_classification"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text", "what is classified",
               likely=("text", "sentence", "body", "content", "review", "comment", "message", "mail", "subject",
                       "title", "本文", "文章", "テキスト", "内容", "レビュー", "コメント", "口コミ", "感想", "メール",
                       "件名", "質問", "意見", "要望", "声")),
        Column("label", "its class: text, a number or true/false",
               likely=("label", "class", "category", "sentiment", "tag", "intent", "topic", "rating", "target", "type",
                       "評価", "満足度", "ラベル", "分類", "カテゴリ", "区分", "種別", "種類", "感情", "判定", "部署",
                       "担当")),
    )  # fmt: skip
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    route: ClassVar[str] = "/v1/classify"
    pipeline_tag: ClassVar[str] = "text-classification"
    base: ClassVar[BaseNeeds | None] = BaseNeeds(
        architectures=("Model", "ForMaskedLM", "ForSequenceClassification", "ForPreTraining"),
        excluded_architectures=("ForCausalLM", "LMHeadModel"),
        auto_class="AutoModelForSequenceClassification",
        adapter_type="SEQ_CLS",
        head=True,
        frozen_learning_rate=1e-3,
        frozen_features="first_token",
        suggested="intfloat/multilingual-e5-small",
    )
    predictor: ClassVar[str | None] = "serving.inference.predictors.text_classification:build"
    label_column: ClassVar[str | None] = "label"
    shares_passes: ClassVar[bool] = True

    def check_row(self, row: Row) -> list[str]:
        problems = []
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text.strip():
            problems.append(f"text must be non-empty text, not {text!r:.60}")
        endless = isinstance(label, float) and not math.isfinite(label)
        if not isinstance(label, str | int | float) or endless or not str(label).strip():
            problems.append(f"label must be text, a number or true/false, not {label!r:.60}")
        return problems

    def normalise(self, row: Row) -> Row:
        return {"text": row["text"], "label": _label(row["label"])}

    def input_of(self, row: Row) -> str:
        return str(row["text"])

    def encode(self, row: Row, processor: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[Example]:
        return [Example(tuple(processor.encode(row["text"])), (labels.index(row["label"]),))]

    def collate(self, examples: Sequence[Example], *, packed: bool = False, pad_id: int = 0) -> Batch:
        import torch

        targets_B = torch.tensor([example.labels[0] for example in examples], dtype=torch.long)
        rows = [example.input_ids for example in examples] or [(pad_id,)]
        return Batch(padded(rows, pad_id), targets_B)

    def baselines(self, train: Collection[Row], held_out: Sequence[Row]) -> Sequence[Baseline]:
        """The majority class, with the training rows' shares of the labels as probabilities, and a bag of words."""
        counts = Counter(row["label"] for row in train)
        labels = sorted(counts)
        found = {"the majority class": [[counts[label] / len(train) for label in labels]] * len(held_out)}
        if 1 < len(labels) <= _BAG_LABELS and held_out:
            found["a bag of words"] = _bag_of_words(list(islice(train, _BAG_ROWS)), held_out, labels)
        truth = [row["label"] for row in held_out]
        return [_baseline(name, chances, labels, truth) for name, chances in found.items()]

    def measure(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        labels: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> dict[str, float]:
        """Accuracy and macro-F1 (the mean over labels, so a rare one counts as much as a common one)."""
        truth = [row["label"] for row in rows]
        guess = [p.label for p in self.predict(model, processor, [row["text"] for row in rows], labels)]
        return _measures(truth, guess, labels)

    def predict(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], labels: Sequence[str]
    ) -> list[Prediction]:
        """Classify texts. A text over the model's limit is cut at the end."""

        def chances(batch: Batch) -> torch.Tensor:
            return self.logits(model, batch).float().softmax(-1)

        rows = self._through(model, tokenizer, texts, chances)
        scores = [dict(zip(labels, row, strict=True)) for row in rows]
        return [Prediction(max(each, key=each.__getitem__), each) for each in scores]

    def embed(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> list[list[float]]:
        """Each text's vector: the mean of its tokens' last hidden states, of length 1 (Reimers and Gurevych 2019,
        arXiv:1908.10084)."""

        def vectors(batch: Batch) -> torch.Tensor:
            from torch.nn import functional

            hidden_BTH = model(**batch.inputs, output_hidden_states=True).hidden_states[-1].float()
            mask_BT1 = batch.inputs["attention_mask"].unsqueeze(-1)
            mean_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            return functional.normalize(mean_BH, dim=-1)

        return self._through(model, tokenizer, texts, vectors)

    def _through(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        compute: Callable[[Batch], torch.Tensor],
    ) -> list[list[float]]:
        """A row of numbers for each text; similar lengths share a pass of at most `PASS_TOKENS` tokens."""
        import torch

        limit = longest_sequence(model.config.to_dict()) or 512
        encoded = [tokenizer.encode(text, truncation=True, max_length=limit) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        device = next(model.parameters()).device
        pad_id = int(tokenizer.pad_token_id or 0)
        rows: list[list[float]] = [[] for _ in texts]
        while order:
            size = max(1, sum(1 for n, i in enumerate(order) if (n + 1) * len(encoded[i]) <= PASS_TOKENS))
            group, order = order[:size], order[size:]
            batch = self.collate([Example(tuple(encoded[i]), (0,)) for i in group], packed=False, pad_id=pad_id)
            with torch.no_grad():
                found = compute(batch.to(device)).tolist()
            for i, row in zip(group, found, strict=True):
                rows[i] = row
        return rows


def _measures(truth: Sequence[str], guess: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    return {
        "accuracy": sum(a == b for a, b in zip(truth, guess, strict=True)) / max(len(truth), 1),
        "macro_f1": float(f1_score(truth, guess, labels=list(labels), average="macro", zero_division=0)),
    }


def _bag_of_words(train: Sequence[Row], held_out: Sequence[Row], labels: Sequence[str]) -> list[list[float]]:
    """Probabilities of the labels by a logistic regression on n-grams, (held-out rows, labels)."""
    features = ngram_features(len(labels))
    seen = features.fit_transform([row["text"][:READ_CHARACTERS] for row in train])
    model = ngram_classifier(len(labels), _BAG_INVERSE_REGULARISATION).fit(seen, [row["label"] for row in train])
    at = {str(label): i for i, label in enumerate(model.classes_)}
    rows = model.predict_proba(features.transform([row["text"][:READ_CHARACTERS] for row in held_out]))
    return [[float(row[at[label]]) if label in at else 0.0 for label in labels] for row in rows]


def _baseline(name: str, chances: Sequence[Sequence[float]], labels: Sequence[str], truth: Sequence[str]) -> Baseline:
    at = {label: i for i, label in enumerate(labels)}
    guess = [labels[max(range(len(labels)), key=row.__getitem__)] for row in chances]
    own = [max(row[at[label]], _LEAST_CHANCE) for row, label in zip(chances, truth, strict=True)]
    return Baseline(name, tuple(-math.log(chance) for chance in own), _measures(truth, guess, labels))


def _label(value: str | float) -> str:
    """One spelling of a label: `１`, `1.0` and 1 are `1`; `TRUE`, `True` and true are `true`."""
    text = " ".join(unicodedata.normalize("NFKC", str(value)).split())
    if text.casefold() in ("true", "false"):
        return text.casefold()
    return _WHOLE.sub(r"\1", text)
