"""Real models of a few thousand weights, made on the spot: a causal one with a ChatML template, and an encoder.

Their tokenizer is a byte-pair encoding trained on a few sentences, English and Japanese.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "How do I reset my password? Open the settings and choose reset.",
    "返品はできますか。はい、三十日以内であればできます。",
    "user assistant system the a of to and in is it you that",
]


def save_tokenizer(directory: Path, *, chat_template: str | None = CHATML) -> Any:
    """A byte-level BPE of 400 tokens; `<|im_end|>` ends a message."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _SENTENCES * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is half typed
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>"
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    fast.save_pretrained(str(directory))
    return fast


def save_causal(directory: Path, *, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """A Llama of 3 blocks, 48 wide; about 80,000 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(directory, chat_template=chat_template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(str(directory))  # type: ignore[no-untyped-call]  # as above
    return directory


def save_encoder(directory: Path, *, seed: int = 0) -> Path:
    """A BERT of 2 blocks, 32 wide, without a head."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = save_tokenizer(directory, chat_template=None)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(str(directory))  # type: ignore[no-untyped-call]  # as above
    return directory


def save_classifier(directory: Path, classes: Sequence[str], *, kind: str = "bert") -> Path:
    """A BERT or RoBERTa as `save_encoder`, with a head for these classes in this order."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = save_tokenizer(directory, chat_template=None)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=130, pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)}, **sizes,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(str(directory))  # type: ignore[no-untyped-call]  # as above
    return directory


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of uneven length, some in Japanese, some with two turns."""
    rows = []
    for i in range(count):
        question = f"What is {i} of {'the ' * (i % 5)}capital?" if i % 3 else f"第{i}の質問。返品はできますか。"
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"It is {i * 7 % 11}" + ", and so on" * (i % 4) + "."},
        ]
        if i % 4 == 0:
            messages += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": f"Then {i}."}]
        rows.append({"messages": messages})
    return rows


def label_rows(count: int) -> list[dict[str, str]]:
    """Texts whose label follows from their bag of words."""
    return [
        {"text": f"number {i} is {'good and fine' if i % 2 else '返品 settings reset'}", "label": "ab"[i % 2]}
        for i in range(count)
    ]
