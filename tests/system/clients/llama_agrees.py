#!/usr/bin/env python3
"""Compares the engine with llama.cpp, an implementation of the same model that shares no code with it.

Each question is answered by the engine's real process, greedily. Then llama.cpp computes, at every token of that
answer, its own logits after the same beginning. How many first tokens agree is how long llama.cpp alone would have
written the same; where it would have gone on otherwise, its logits say why. The template is rendered by Jinja2.

Then both read a text of a few hundred tokens, and at each position the distributions of the next one are compared: not
only what is best, but all of it, where neither program is sure, too.

Exit status 1 if a prompt is encoded otherwise anywhere, if a token of ours is worse by llama.cpp's judgement than
GAP_MAX, or if the logits or distributions of the two programs are further apart than RMS_MAX, KL_MEAN_MAX or KL_MAX.
The engine's logits come from its example `logits`; that each token of the process is the best of them shows that they
are the process's, too.
"""

import argparse
import ctypes
import dataclasses
import pathlib
import subprocess
import sys

import jinja2.sandbox
import llama_cpp
import numpy

from engine_process import EngineProcess

TOKENS_MAX = 32
# Both programs round activations to 8 bits and sum in orders of their own. Beside the same weights computed in f64
# throughout (NumPy, on these questions) the logits of each are off by 0.15 (root mean square over the vocabulary), and
# the difference of the two best by up to 0.8.
# Root mean square of the difference over the vocabulary, each mean set to 0, averaged over an answer.
RMS_MAX = 0.25
# In logits: two tokens this near are a tie that either program may break.
GAP_MAX = 1.0
# Divergence of Kullback and Leibler in nats, from llama.cpp's distribution to ours, over the positions of TEXT: mean and
# largest. Seen: 0.0045 and 0.05 beside llama.cpp's AVX2 kernels.
KL_MEAN_MAX = 0.01
KL_MAX = 0.2
POSITIONS_MIN = 300

QUESTIONS = [
    "What is the capital of Cameroon?",
    "Count from one to five.",
    "Write a haiku about the sea.",
    "Explain in one sentence what a TPM is.",
    "Quelle est la capitale de la France ? Réponds en français.",
    "Complete this Python: def fibonacci(n):\n    if n < 2:\n\treturn n\n",
    "Translate into French: good morning, 12345 friends!",
    "List three fruits, one per line.",
    "Yaoundé 2026 — naïve ½ ٣, 日本語 🦀‍💻 it's  two  spaces\r\n\n\nand 3.14e-10",
]

TEXT = """The harbour of Kribi lies where the river Lobé falls straight into the sea. In 1998, 37 boats left it every morning;
today there are fewer than ten, and most of them belong to one family. "We do not sell the nets," says Mrs Abena, "because
nobody would know how to mend them." She counts on her fingers: one for the cooperative, two for the bank, three for school.

A bank keeps its ledger twice. The first copy is written by the clerk, the second by a machine which never sees the
customer, and on the last day of each month both are read aloud, line by line, until every sum is the same. If line 4 says
1,250.00 and line 4 of the other says 1,205.00, the clerk looks for the receipt; if there is none, the month stays open.

def total(lines):
    result = 0
    for line in lines:
        if line.startswith("#"):
            continue
        result += int(line.split(",")[1])
    return result

La mer était calme et le ciel sans nuages. Il n'y avait personne sur la plage, sauf un enfant qui cherchait des coquillages.
Quand il en trouvait un, il le montrait à son père, puis il le remettait exactement à sa place. Warum tust du das? fragte
der Vater. Because it lives here, said the child, and went on.
"""


@dataclasses.dataclass
class Step:
    """One token of our answer, and what llama.cpp thinks of it."""

    ours: str
    best: str
    # llama.cpp's logit of its best token less that of ours; 0 if it is the same.
    gap: float
    token: int
    logits: numpy.ndarray


class Peer:
    """llama.cpp on one thread."""

    def __init__(self, model: pathlib.Path):
        self.llama = llama_cpp.Llama(str(model), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
        vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        self.count = llama_cpp.llama_vocab_n_tokens(vocab)
        self.ends = [i for i in range(self.count) if llama_cpp.llama_vocab_is_eog(vocab, i)]
        normal = [i for i in range(self.count) if not llama_cpp.llama_vocab_is_control(vocab, i)]
        self.bytes = {i: self._piece(vocab, i) for i in normal}
        self.by_bytes = {piece: i for i, piece in self.bytes.items() if piece}
        self.piece_max = max(map(len, self.by_bytes))
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(self.llama.metadata["tokenizer.chat_template"])

    def prompt(self, content: str) -> list[int]:
        messages = [{"role": "user", "content": content}]
        text = self.template.render(messages=messages, add_generation_prompt=True)
        return self.llama.tokenize(text.encode(), add_bos=True, special=True)

    def logits(self, tokens: list[int]) -> numpy.ndarray:
        """Logits after the sequence so far and `tokens`."""
        self.llama.eval(tokens)
        row = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return numpy.ctypeslib.as_array(row, shape=(self.count,)).copy()

    def name(self, token: int) -> str:
        return "(end)" if token in self.ends else repr(self.bytes.get(token, b"?").decode(errors="replace"))

    @staticmethod
    def _piece(vocab: object, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            raise RuntimeError(f"token {token} is longer than {len(buffer)} bytes")
        return buffer.raw[:length]


class Answer:
    """The engine's answer, read token by token.

    The engine sends text, one piece for each token that completes a character. A token is known by its bytes, unless
    several make one piece; then llama.cpp's choice is taken if it fits, else the longest that does.
    """

    def __init__(self, reply: dict):
        self.pieces = reply["pieces"]
        # Cut inside a character: the tokens of its beginning are not told.
        self.cut = reply["finish"] == "length" and self.pieces[-1:] == ["\ufffd"]
        if self.cut:
            self.pieces = self.pieces[:-1]
        self.text = "".join(self.pieces).encode()
        self.at = 0

    def next(self, peer: Peer, best: int) -> int:
        """The token after those taken so far."""
        lengths = range(min(peer.piece_max, len(self.text) - self.at), 0, -1)
        longest = (peer.by_bytes.get(self.text[self.at : self.at + n]) for n in lengths)
        for token in [best, *longest]:
            if token is not None and self._take(peer.bytes.get(token, b"")):
                return token
        raise RuntimeError(f"no token begins {self.text[self.at:]!r} in {self.pieces}")

    def _take(self, piece: bytes) -> bool:
        end = self.at + len(piece)
        if not piece or self.text[self.at : end] != piece:
            return False
        shown = self.text[:end].decode(errors="ignore")[len(self.text[: self.at].decode(errors="ignore")) :]
        if shown and shown != self.pieces[0]:
            return False
        if shown:
            self.pieces = self.pieces[1:]
        self.at = end
        return True

    def ended(self) -> bool:
        return self.at == len(self.text)


def judge(peer: Peer, prompt: list[int], reply: dict) -> list[Step]:
    """What llama.cpp thinks of each token of the answer."""
    peer.llama.reset()
    answer, steps, logits = Answer(reply), [], peer.logits(prompt)
    expected, ended = reply["completion_tokens"], False
    while len(steps) < expected and not (answer.cut and answer.ended()):
        best, ended = int(logits.argmax()), answer.ended()
        # Which of the tokens that end an answer it was is not told; all mean the same.
        token = max(peer.ends, key=lambda end: logits[end]) if ended else answer.next(peer, best)
        gap = 0.0 if token == best else float(logits[best] - logits[token])
        steps.append(Step(peer.name(token), peer.name(best), gap, token, logits))
        if ended:
            break
        logits = peer.logits([token])
    # A character has at most 4 bytes, so at most 3 tokens begin one and do not end it.
    unseen = range(1, 4) if answer.cut else range(1)
    if expected - len(steps) not in unseen or not answer.ended() or ended != (reply["finish"] == "stop"):
        raise RuntimeError(f"{len(steps)} tokens explain the answer, the engine counted {expected}: {reply}")
    return steps


class Examples:
    """What the sockets do not tell, from the engine's examples."""

    def __init__(self, folder: pathlib.Path, model: pathlib.Path):
        self.folder, self.model = folder, model

    def prompts(self, questions: list[str]) -> list[list[int]]:
        lines = self._run("tokens", *questions).decode().splitlines()
        if len(lines) != len(questions):
            raise RuntimeError(f"{len(lines)} prompts came back for {len(questions)} questions")
        return [[int(number) for number in line.split()] for line in lines]

    def logits(self, prompt: list[int], steps: list[Step]) -> numpy.ndarray:
        """The logits from which each token of the answer was chosen."""
        return self.from_position(len(prompt) - 1, prompt + [step.token for step in steps[:-1]])

    def from_position(self, first: int, tokens: list[int]) -> numpy.ndarray:
        """The logits after each token from number `first` on."""
        out = self._run("logits", str(first), *map(str, tokens))
        return numpy.frombuffer(out, dtype="<f4").reshape(len(tokens) - first, -1)

    def _run(self, name: str, *args: str) -> bytes:
        command = [self.folder / name, self.model, *args]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def distance(ours: numpy.ndarray, steps: list[Step]) -> float:
    """Mean over the steps of the root mean square difference of logits."""
    difference = ours - numpy.stack([step.logits for step in steps])
    return float((difference - difference.mean(axis=1, keepdims=True)).std(axis=1).mean())


def log_softmax(logits: numpy.ndarray) -> numpy.ndarray:
    shifted = logits.astype(numpy.float64) - logits.max(axis=1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(axis=1, keepdims=True))


def compare_text(peer: Peer, examples: Examples) -> list[str]:
    """Both programs read TEXT; prints how far their distributions are apart, and returns what is wrong."""
    tokens = peer.llama.tokenize(TEXT.encode(), add_bos=True, special=False)
    peer.llama.reset()
    theirs, ours = numpy.stack([peer.logits([token]) for token in tokens]), examples.from_position(0, tokens)
    difference = ours - theirs
    rms = (difference - difference.mean(axis=1, keepdims=True)).std(axis=1)
    truth, found = log_softmax(theirs), log_softmax(ours)
    divergence = (numpy.exp(truth) * (truth - found)).sum(axis=1)
    best = int((truth.argmax(axis=1) == found.argmax(axis=1)).sum())
    # What each would pay for the text itself.
    rows, following = numpy.arange(len(tokens) - 1), numpy.array(tokens[1:])
    costs = [float(-all[rows, following].mean()) for all in (truth, found)]
    quantiles = [f"{numpy.quantile(divergence, q):.4f}" for q in (0.5, 0.9, 0.99, 1.0)]
    print(f"text of {len(tokens)} tokens: logits apart {rms.mean():.3f} in the mean, at most {rms.max():.3f}; divergence")
    print(f"  in the mean {divergence.mean():.4f} nats, quantiles 0.5, 0.9, 0.99 and 1: {', '.join(quantiles)};")
    print(f"  best token equal at {best}; cross-entropy of the text: llama.cpp {costs[0]:.4f}, ours {costs[1]:.4f}", flush=True)
    bounds = [
        ("tokens in the text", -len(tokens), -POSITIONS_MIN),
        ("logits apart in the mean", rms.mean(), RMS_MAX),
        ("divergence in the mean", divergence.mean(), KL_MEAN_MAX),
        ("largest divergence", divergence.max(), KL_MAX),
    ]
    # Not a number is within no bound.
    return [f"text: {what}: {abs(found):.4f}, bound {abs(most)}" for what, found, most in bounds if not found <= most]


def compare(peer: Peer, engine: EngineProcess, examples: Examples, question: str, ours: list[int]) -> list[str]:
    """Prints one row; returns what is wrong."""
    theirs = peer.prompt(question)
    reply = engine.chat(question, TOKENS_MAX)
    label = question.splitlines()[0][:40]
    if ours != theirs or reply["prompt_tokens"] != len(theirs):
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        counts = f"{len(ours)} and {reply['prompt_tokens']} tokens, llama.cpp {len(theirs)}"
        at = f"from number {first}: {ours[first:first + 4]}, llama.cpp {theirs[first:first + 4]}"
        return [f"{label!r}: the prompt is encoded otherwise: {counts}; {at}"]
    steps = judge(peer, theirs, reply)
    logits = examples.logits(theirs, steps)
    rms = distance(logits, steps)
    agree = next((i for i, step in enumerate(steps) if step.gap > 0), len(steps))
    equal, worst = sum(step.gap == 0 for step in steps), max(step.gap for step in steps)
    count = len(steps)
    row = f"{label:40}  {len(theirs):6}  {agree:3} of {count:2}  {equal:3} of {count:2}  {worst:7.3f}  {rms:5.3f}"
    if agree < count:
        step = steps[agree]
        row += f"  ours {step.ours}, llama.cpp's {step.best} is {step.gap:.3f} above it"
    print(row, flush=True)
    wrong = [f"ours {s.ours}, llama.cpp's {s.best} is {s.gap:.3f} above it" for s in steps if s.gap > GAP_MAX]
    if not rms <= RMS_MAX:
        wrong.append(f"logits are {rms:.3f} apart, expected at most {RMS_MAX}")
    for number, (step, row) in enumerate(zip(steps, logits, strict=True)):
        if peer.name(int(row.argmax())) != step.ours:
            wrong.append(f"token {number} is {step.ours}, but not the best of the engine's own logits")
    return [f"{label!r}: {what}" for what in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "engine", "examples"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    args = parser.parse_args()
    peer, examples = Peer(args.model), Examples(args.examples, args.model)
    prompts = examples.prompts(QUESTIONS)
    wrong = []
    with EngineProcess(args.engine, args.model) as engine:
        print(f"engine: {engine.info['kernels']} kernels; llama-cpp-python {llama_cpp.__version__}, 1 thread; greedy")
        print(f"{'question':40}  prompt  first       in all      largest  logits  first difference, by llama.cpp's")
        print(f"{'':40}  tokens  that agree  that agree  gap      apart   logits")
        for question, ours in zip(QUESTIONS, prompts, strict=True):
            wrong += compare(peer, engine, examples, question, ours)
    wrong += compare_text(peer, examples)
    print("'In all' and 'apart' give llama.cpp our own beginning each time. Both programs round activations to 8 bits,")
    print(f"so logits may be {RMS_MAX} apart (root mean square), and a gap of up to {GAP_MAX} is a tie.")
    for line in wrong:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
