"""SmolLM2-135M-Instruct from its GGUF file to a directory that transformers, PEFT and vLLM load.

Owns the way back from the quantised file to plain weights and the tokenizer. Knows nothing of packages or the store.
"""

from __future__ import annotations

import copy
from pathlib import Path

END_OF_TURN = "<|im_end|>"


def convert(gguf: Path, directory: Path) -> None:
    """Write config, generation config, fp32 weights, tokenizer and chat template to `directory`.

    fp32, although the file is twice as large as in bf16: a Q4_1 weight is an fp16 scale times 0–15 plus an fp16
    offset, which bf16's 8 bits would round once more (0.13 % of a layer's norm), and then the directory and the GGUF
    file would be two different models.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = copy.deepcopy(quantised.config)
    # Left in, they make transformers refuse to save, and vLLM look for a quantised file.
    del config.quantization_config
    # Loaded again as plain weights: the object above still believes that it is quantised.
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers is half typed
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.save_pretrained(directory)

    tokenizer = AutoTokenizer.from_pretrained(**source)
    _restore_digits(tokenizer)
    if tokenizer.eos_token != END_OF_TURN or not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} has end token {tokenizer.eos_token!r} or no chat template; it is another file")
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)


def _restore_digits(tokenizer: object) -> None:
    """Split digits one by one before anything else, as the GGUF's `tokenizer.ggml.pre: smollm` asks for.

    transformers reads every GPT-2-like tokenizer of a GGUF file the same way and passes this over; it shows where
    several spaces stand before a number.
    """
    from tokenizers import pre_tokenizers

    backend = getattr(tokenizer, "backend_tokenizer")  # noqa: B009  # the base class does not declare it
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
