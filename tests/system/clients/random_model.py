#!/usr/bin/env python3
"""Models with the shape of Llama 3.2 1B and random weights, one file for each format, for measuring speed alone.

Formats are mixed as llama.cpp's quantize mixes them: with 4 bits, the embeddings, which are also the output, have 6.
Weights have a mean near 0 and a deviation near 0.02, so that nothing overflows. The vocabulary is made up: bytes, then
short words, as a SentencePiece vocabulary of that size. The same bytes come out of every run.
"""

import argparse
import itertools
import pathlib
import string
import struct

import numpy as np

LAYERS, HIDDEN, WIDE, HEADS, KV_HEADS, HEAD_DIM = 16, 2048, 8192, 32, 8, 64
VOCABULARY, CONTEXT = 128256, 8192
DEVIATION = 0.02
# Rows that are made at a time.
ROWS = 1024
ALIGNMENT = 32
# ggml.h, enum ggml_type: number, elements and bytes of a block.
TYPES = {"F32": (0, 1, 4), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210), "BF16": (30, 1, 2)}
# Format of the matrices, and of the embeddings.
MODELS = {"q4_0": ("Q4_0", "Q6_K"), "q8_0": ("Q8_0", "Q8_0"), "q4_k": ("Q4_K", "Q6_K"), "bf16": ("BF16", "BF16")}


def tensors(matrix: str, embedding: str) -> list[tuple[str, str, int, int]]:
    """Name, format, rows, columns."""
    found = [("token_embd.weight", embedding, VOCABULARY, HIDDEN)]
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        found += [(f"{name}{norm}.weight", "F32", 1, HIDDEN) for norm in ("attn_norm", "ffn_norm")]
        found += [
            (f"{name}attn_q.weight", matrix, HEADS * HEAD_DIM, HIDDEN),
            (f"{name}attn_k.weight", matrix, KV_HEADS * HEAD_DIM, HIDDEN),
            (f"{name}attn_v.weight", matrix, KV_HEADS * HEAD_DIM, HIDDEN),
            (f"{name}attn_output.weight", matrix, HIDDEN, HEADS * HEAD_DIM),
            (f"{name}ffn_gate.weight", matrix, WIDE, HIDDEN),
            (f"{name}ffn_up.weight", matrix, WIDE, HIDDEN),
            (f"{name}ffn_down.weight", matrix, HIDDEN, WIDE),
        ]
    return [*found, ("output_norm.weight", "F32", 1, HIDDEN)]


def size(form: str, rows: int, columns: int) -> int:
    _, elements, block_bytes = TYPES[form]
    return rows * columns // elements * block_bytes


def rows_of(rng: np.random.Generator, form: str, rows: int, columns: int) -> np.ndarray:
    """Some rows of a tensor, as bytes (layouts: ggml-common.h, `block_q4_0` and its kin)."""
    if form == "F32":
        return np.ones(rows * columns, np.float32).view(np.uint8)
    if form == "BF16":
        # Uniform, with the wanted deviation; the upper half of a float.
        values = (rng.random(rows * columns, np.float32) - 0.5) * np.float32(DEVIATION * 12**0.5)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    _, elements, block_bytes = TYPES[form]
    blocks = rng.integers(0, 256, (rows * columns // elements, block_bytes), np.uint8)

    def put(at: int, typical: float) -> None:
        scales = rng.uniform(0.5, 1.5, len(blocks)) * typical
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)

    # Of numbers that are uniform in a range of n, the deviation is n / 12**0.5.
    if form == "Q4_0":
        put(0, DEVIATION / 4.6)
    elif form == "Q8_0":
        put(0, DEVIATION / 73.9)
    elif form == "Q4_K":
        # Six-bit factors, 31.5 in the mean; minima that bring the mean nibble of 7.5 to 0.
        put(0, DEVIATION / 4.6 / 31.5)
        put(2, DEVIATION / 4.6 / 31.5 * 7.5)
    else:
        # Signed factors, here 0 to 15: with larger ones the scale would be subnormal.
        blocks[:, 192:208] &= 15
        put(208, DEVIATION / 18.5 / 7.5)
    return blocks.reshape(-1)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, value: object) -> bytes:
    """A key and its value (ggml, docs/gguf.md)."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    kind = {"float32": 6, "int32": 5}[value.dtype.name]
    return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + value.tobytes()


def metadata(name: str) -> list[bytes]:
    letters = string.ascii_lowercase
    pieces = ("".join(word) for length in range(1, 5) for word in itertools.product(letters, repeat=length))
    controls = ["<unk>", "<s>", "</s>"]
    tokens = controls + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581"]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259)
    tokens += itertools.islice(pieces, VOCABULARY - len(tokens))
    entries = {
        "general.architecture": "llama",
        "general.name": f"random 1B {name}",
        "general.alignment": ALIGNMENT,
        "general.quantization_version": 2,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": WIDE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(VOCABULARY, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    return [entry(key, value) for key, value in entries.items()]


def write(path: pathlib.Path, name: str) -> None:
    listed = tensors(*MODELS[name])
    entries = metadata(name)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries)) + b"".join(entries)
    at = 0
    for tensor, form, rows, columns in listed:
        shape = [columns] if rows == 1 else [columns, rows]
        head += text(tensor) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", TYPES[form][0], at)
        at += -(-size(form, rows, columns) // ALIGNMENT) * ALIGNMENT
    rng = np.random.Generator(np.random.PCG64(5))
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for _, form, rows, columns in listed:
            for first in range(0, rows, ROWS):
                file.write(rows_of(rng, form, min(ROWS, rows - first), columns).tobytes())
            file.write(bytes(-file.tell() % ALIGNMENT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    for name in MODELS:
        partial = folder / f"{name}.partial"
        write(partial, name)
        partial.rename(folder / f"random-1b-{name}.gguf")


if __name__ == "__main__":
    main()
