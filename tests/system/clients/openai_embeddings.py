#!/usr/bin/env python3
"""Asks for the vectors of texts through PyPI's `openai`, unchanged, with a client certificate; prints them as JSON.

The library asks for base64 unless told otherwise; the same vectors must come as numbers, too.
"""

import json
import sys

import openai

from openai_chat import connect, parser


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("text", nargs="+")
    args = arguments.parse_args()
    client = connect(args)
    try:
        answer = client.embeddings.create(model=args.model, input=args.text)
        numbers = client.embeddings.create(model=args.model, input=args.text, encoding_format="float")
    except openai.OpenAIError as error:
        print(f"{type(error).__name__} ({getattr(error, 'code', None)}): {error}", file=sys.stderr)
        return 1
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == list(range(len(args.text))), answer
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0, answer.usage
    # Base64 has the bits of 32-bit floats, the numbers their shortest decimal form.
    for one, other in zip(vectors, (entry.embedding for entry in numbers.data), strict=True):
        assert len(one) == len(other) and all(abs(a - b) < 1e-7 for a, b in zip(one, other)), (one, other)
    print(json.dumps(vectors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
