#!/usr/bin/env python3
"""Asks one question through PyPI's `openai`, unchanged: with a client certificate, or through `casemate-verify proxy`.

Prints the answer as it arrives. Exit status 1, and the error on standard error, if there is no complete
answer: a stream without finish_reason is not complete.
"""

import argparse
import ssl
import sys

import openai
from openai.types.chat import ChatCompletionTokenLogprob


def parser(description: str) -> argparse.ArgumentParser:
    """The options of a connection."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base-url", required=True, help="such as https://localhost:8443/v1")
    parser.add_argument("--ca", help="PEM of the server's certificate, as `casemate-verify fetch` pinned it")
    parser.add_argument("--cert", help="PEM of the client's certificate; none through the proxy, which has its own")
    parser.add_argument("--key", help="PEM of the client's private key")
    parser.add_argument("--model", required=True)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds")
    return parser


def parse_args() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--stream", action="store_true")
    arguments.add_argument("--max-tokens", type=int, default=None)
    arguments.add_argument("--temperature", type=float, default=0.0)
    arguments.add_argument(
        "--top-logprobs", type=int, help="show each token's logprob and how many likely tokens came with it"
    )
    arguments.add_argument("prompt")
    return arguments.parse_args()


def connect(args: argparse.Namespace) -> openai.OpenAI:
    context = ssl.create_default_context(cafile=args.ca)
    if args.cert is not None:
        context.load_cert_chain(args.cert, args.key)
    return openai.OpenAI(
        base_url=args.base_url,
        # The certificate is the client's identity; the library insists on a key all the same.
        api_key="unused",
        max_retries=0,
        # httpx.Client of whichever httpx this openai is built on. An appliance stands on the internal
        # network: no proxy of the environment is asked.
        http_client=openai.DefaultHttpxClient(verify=context, timeout=args.timeout, trust_env=False),
    )


def ask(client: openai.OpenAI, args: argparse.Namespace) -> bool:
    """Prints the answer; returns whether it is complete."""
    request = {
        "model": args.model,
        "messages": [{"role": "user", "content": args.prompt}],
        "temperature": args.temperature,
    }
    if args.max_tokens is not None:
        request["max_tokens"] = args.max_tokens
    if args.top_logprobs is not None:
        request.update(logprobs=True, top_logprobs=args.top_logprobs)
    finish_reason = None
    tokens = []
    if args.stream:
        for chunk in client.chat.completions.create(stream=True, **request):
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
                finish_reason = choice.finish_reason or finish_reason
                tokens += _tokens(choice.logprobs)
    else:
        choice = client.chat.completions.create(**request).choices[0]
        print(choice.message.content, end="")
        finish_reason = choice.finish_reason
        tokens += _tokens(choice.logprobs)
    print()
    for token in tokens:
        print(token.logprob, len(token.top_logprobs), token.token, sep="\t")
    return finish_reason is not None


def _tokens(logprobs: object) -> list[ChatCompletionTokenLogprob]:
    """The entries of a choice's logprobs, each of which must be what the library's type says, to the letter."""
    if logprobs is None:
        return []
    assert logprobs.refusal is None
    for entry in logprobs.content:
        ChatCompletionTokenLogprob.model_validate(entry.model_dump(), strict=True)
        assert not entry.model_extra and not any(likely.model_extra for likely in entry.top_logprobs), entry
    return logprobs.content


def main() -> int:
    args = parse_args()
    try:
        if ask(connect(args), args):
            return 0
        print("the answer has no finish_reason", file=sys.stderr)
    except openai.OpenAIError as error:
        code = getattr(error, "code", None)
        print(f"{type(error).__name__} ({code}): {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
