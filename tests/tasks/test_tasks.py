"""Encoding: only the assistant's messages and their end tokens are trained; rows that teach nothing are refused."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.encoding import Encoded, encode_rows
from ray_jobs.errors import DataError, ModelError
from ray_jobs.models import load_processor
from ray_jobs.tasks import TASKS, text_classification
from ray_jobs.tasks.base import IGNORED, Example
from ray_jobs.tasks.chat.template import render
from ray_jobs.tasks.chat.turns import tokenize
from tests.models import tiny_models

CHAT, CLASSIFY = TASKS["chat"], TASKS["text_classification"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_models.save_tokenizer(directory)
    return load_processor(directory, "chat")


def conversation(*turns: Any, **last: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": turn} for i, turn in enumerate(turns)
    ]
    messages[-1] |= last
    return {"messages": messages}


def trained_text(example: Example, tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def test_only_the_assistant_and_its_end_token_are_trained(tokenizer: Any) -> None:
    row = conversation("Can I return it?", "Yes.", "返品は?", "三十日以内。")
    (example,) = CHAT.encode(row, tokenizer, [])
    assert trained_text(example, tokenizer) == "Yes.<|im_end|>三十日以内。<|im_end|>"
    assert tokenizer.decode(example.input_ids) == render(tokenizer, row["messages"]).rstrip("\n")
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (IGNORED, token)


def test_a_prompt_is_tokenised_as_the_endpoint_does_it(tokenizer: Any) -> None:
    row = conversation("Can I return it?", "Yes.")
    (example,) = CHAT.encode(row, tokenizer, [])
    prompt = tokenize(tokenizer, render(tokenizer, row["messages"][:1], generate=True))
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.labels[len(prompt)] != IGNORED
    assert example.labels[len(prompt) - 1] == IGNORED


def test_weight_0_is_read_and_not_trained(tokenizer: Any) -> None:
    row = conversation("Can I?", "No.", "Really?", "Yes.")
    row["messages"][1]["weight"] = 0
    assert trained_text(CHAT.encode(row, tokenizer, [])[0], tokenizer) == "Yes.<|im_end|>"


def test_rows_that_supervise_nothing_are_refused(tokenizer: Any) -> None:
    cut = Example((1, 2, 3), (IGNORED, IGNORED, IGNORED))
    with pytest.raises(DataError, match="none of the 2 rows supervises a token"):
        CHAT.check_encoded([cut, cut], tokenizer)


def test_rows_of_which_most_are_cut_off_are_refused(tokenizer: Any) -> None:
    whole = CHAT.encode(conversation("q", "a " * 20), tokenizer, [])
    cut = [example.truncated(example.length - 5) for example in whole]
    CHAT.check_encoded([*whole, *cut], tokenizer)
    with pytest.raises(DataError, match=r"2 of 3 rows are cut off before the token .*<\|im_end\|>"):
        CHAT.check_encoded([*whole, *cut, *cut], tokenizer)


def test_a_template_without_an_end_token_is_refused(tmp_path: Path) -> None:
    tiny_models.save_tokenizer(tmp_path, chat_template=tiny_models.CHATML.replace("'<|im_end|>' + ", ""))
    tokenizer = load_processor(tmp_path, "chat")
    with pytest.raises(DataError, match=r"no token at which generation stops \('<\|im_end\|>'\)"):
        CHAT.encode(conversation("Hello", "Hi"), tokenizer, [])


def test_a_template_that_rewrites_history_gives_each_answer_a_prompt_of_its_own(tmp_path: Path) -> None:
    template = "{{ messages | length if add_generation_prompt else messages | length - 1 }}" + tiny_models.CHATML
    tiny_models.save_tokenizer(tmp_path, chat_template=template)
    tokenizer, row = load_processor(tmp_path, "chat"), conversation("a", "b", "c", "d")
    examples = CHAT.encode(row, tokenizer, [])
    assert [trained_text(example, tokenizer) for example in examples] == ["b<|im_end|>", "d<|im_end|>"]
    for example, messages in zip(examples, (row["messages"][:1], row["messages"][:3]), strict=True):
        prompt = tokenize(tokenizer, render(tokenizer, messages, generate=True))
        assert list(example.input_ids[: len(prompt)]) == prompt


def test_an_answer_that_the_template_writes_otherwise_is_refused(tmp_path: Path) -> None:
    template = tiny_models.CHATML.replace("message['role']", "message['role'][:4]")
    tiny_models.save_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(DataError, match=r"messages\[1\].* does not write this answer after the prompt"):
        CHAT.encode(conversation("a", "b"), load_processor(tmp_path, "chat"), [])


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tiny_models.save_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        load_processor(tmp_path, "chat")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "neither messages nor prompt"),
        ({"prompt": "a"}, "completion must be"),
        ({"messages": []}, "non-empty list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role is 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "nothing would be trained"),
        (conversation("a", "b", weight=2), "weight is 2"),
        (
            conversation("a", [{"type": "image_url", "image_url": {}}]),
            "content[0] is 'image_url'; the models read text",
        ),
        (conversation("a", None), "neither content nor tool_calls"),
        (conversation("a", "b", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "must be a JSON object"),
        (conversation("a", "b", tool_calls=[{"function": {}}]), "function.name must be text"),
        (conversation("a", "b", tool_calls="f"), "tool_calls must be a list"),
        (conversation("a", tool_calls=[{"function": {"name": "f"}}]), "only the assistant calls tools"),
        (
            {"messages": [*conversation("a", "b")["messages"], {"role": "tool", "content": "c", "tool_call_id": "x"}]},
            "no call",
        ),
        (conversation("a", "b") | {"tools": ["f"]}, "tools[0] must be"),
        (conversation("a", "b") | {"tools": [{"name": "f"}, {"name": "f"}]}, "a second function 'f'"),
        (conversation("a", "b") | {"tools": "f"}, "tools must be a list"),
        (conversation("a", "b", weight=0), "nothing would be trained"),
    ],
)
def test_malformed_conversations(row: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in CHAT.check_row(row))


def test_good_rows_are_normalised() -> None:
    pair = {"prompt": "a", "completion": "b"}
    assert CHAT.check_row(pair) == []
    assert CHAT.normalise(pair) == conversation("a", "b")
    called = [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}]
    older = {"messages": [*conversation("a")["messages"], *called], "functions": [{"name": "f"}]}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    newer = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls}],
        "tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}],
    }
    in_a_table = {name: json.dumps(value) for name, value in older.items()}
    for row in (older, in_a_table, newer):
        assert CHAT.check_row(row) == []
        assert CHAT.normalise(row) == newer
    assert CLASSIFY.normalise({"text": "x", "label": True}) == {"text": "x", "label": "true"}
    assert CLASSIFY.normalise({"text": "x", "label": 4.5}) == {"text": "x", "label": "4.5"}, "as from a CSV file"
    assert CLASSIFY.check_row({"text": "", "label": 1.5}) != []
    assert CLASSIFY.check_row({"text": "x", "label": 1.5}) == []
    assert CLASSIFY.check_row({"text": "x", "label": float("nan")}) != []


def test_long_rows_follow_the_policy(tokenizer: Any) -> None:
    rows = [conversation("q", "a"), conversation("q", "a " * 50)]
    longest = len(CHAT.encode(rows[0], tokenizer, [])[0].input_ids)

    def encode(policy: Any) -> tuple[Encoded, list[int]]:
        encoded, kept = encode_rows(rows, CHAT, tokenizer, [], max_tokens=longest, too_long=policy, source="train")
        return encoded, kept.kept

    with pytest.raises(DataError, match="1 of 2 train rows are longer") as caught:
        encode("error")
    assert caught.value.details[0].startswith("row 2: ")
    assert encode("drop")[1] == [0]
    cut, kept = encode("truncate")
    assert kept == [0, 1]
    assert max(cut.lengths) == longest


def test_encoded_rows_are_read_back_unchanged(tokenizer: Any, tmp_path: Path) -> None:
    examples = [*chain(*(CHAT.encode(row, tokenizer, []) for row in tiny_models.chat_rows(7)))]
    encoded = Encoded.of(examples)
    encoded.save(tmp_path / "x.safetensors")
    again = Encoded.load(tmp_path / "x.safetensors")
    assert [again[i] for i in range(len(again))] == examples
    assert again.supervised == tuple(example.supervised for example in examples)
    assert all(type(array).__name__ == "memmap" for array in again.values.values()), (
        "read from the file where it is used"
    )
    halves = [Encoded.of(examples[:3]), Encoded.of(examples[3:])]
    assert list(Encoded.joined(halves)) == examples


def test_predictions_come_back_in_order_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ray_jobs.models import load_base
    from ray_jobs.tasks.text_classification import TextClassification

    base = tiny_models.save_encoder(tmp_path)
    model = load_base(base, "text_classification", ["no", "yes"], torch.float32, seed=1).eval()  # type: ignore[no-untyped-call]
    tokenizer = load_processor(base, "text_classification")
    texts = ["short", "a much longer text " * 9, "返品はできますか", "x"]
    monkeypatch.setattr(text_classification, "PASS_TOKENS", 64)
    together = TextClassification().predict(model, tokenizer, texts, ["no", "yes"])
    monkeypatch.undo()
    for text, prediction in zip(texts, together, strict=True):
        (alone,) = TextClassification().predict(model, tokenizer, [text], ["no", "yes"])
        assert prediction.scores == pytest.approx(alone.scores, abs=1e-5)
        assert sum(prediction.scores.values()) == pytest.approx(1.0)
        assert prediction.label == max(prediction.scores, key=prediction.scores.__getitem__)


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(tmp_path: Path) -> None:
    import numpy as np
    import torch

    from ray_jobs.models import load_base
    from ray_jobs.tasks.text_classification import TextClassification

    base = tiny_models.save_encoder(tmp_path)
    model = load_base(base, "text_classification", ["no", "yes"], torch.float32, seed=1).eval()  # type: ignore[no-untyped-call]
    tokenizer = load_processor(base, "text_classification")
    texts = ["short", "a much longer text " * 9, "返品はできますか", "返品はできますか。"]
    vectors = np.array(TextClassification().embed(model, tokenizer, texts))
    assert vectors.shape == (4, model.config.hidden_size)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        assert TextClassification().embed(model, tokenizer, [text])[0] == pytest.approx(vector, abs=1e-5)
    alike = vectors @ vectors.T
    assert alike[2, 3] > max(alike[2, 0], alike[2, 1])


def test_the_majority_class_and_a_bag_of_words_are_baselines() -> None:
    train, held_out = (
        [{"text": f"{label * 8} {number}", "label": label} for number, label in enumerate(labels)]
        for labels in ("aaab" * 10, "ab")
    )
    majority, bag = CLASSIFY.baselines(train, held_out)
    assert (majority.name, bag.name) == ("the majority class", "a bag of words")
    assert majority.metrics["accuracy"] == 0.5
    assert majority.metrics["loss"] == pytest.approx(0.837, abs=1e-3)
    assert majority.losses == pytest.approx((-math.log(0.75), -math.log(0.25)))
    assert bag.metrics["accuracy"] == 1.0
    assert bag.metrics["loss"] < majority.metrics["loss"]
