#!/usr/bin/env python3
"""The engine's speed beside llama.cpp's on the same file, alternating in the same minutes.

Machines of this kind change their speed by the hour, so that only ratios of neighbouring runs mean anything: each round
runs both programs, in turned order, and gives one ratio per shape. Printed are medians, with the lowest and highest.

`pp N`: N tokens of prompt into an empty cache. `tg N`: N tokens one after the other. `tg xN`: N sequences at once, all
their tokens together. llama-bench draws its next tokens at random; the engine's are sampled, turned into text and sent
through its scheduler, which is counted.

There is no figure for what independence of the batch costs: the kernels have no variant without it. Each row of weights
and each token have sums of their own anyway, and no sum is divided among threads.
"""

import argparse
import os
import pathlib
import statistics
import sys
from collections.abc import Callable

from bench_programs import Llama, Machine, Ours, loaded, processor

# The shapes of SmolLM2, and of the models that are nine times as large.
SMALL, LARGE = ([64, 512, 2048], 64), ([128], 32)
FORMATS = ["q4_0", "q8_0", "q4_k", "bf16"]
PARTS = ["smollm2", *FORMATS, "batched", "prefix", "busy"]
THREADS = [threads for threads in (1, 2) if threads <= (os.cpu_count() or 1)]
ALL = THREADS[-1]
# Bytes that the engine may take beside cache and 1.1 times its weights.
MEMORY_BESIDE = 256 << 20


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.rounds, self.smollm2, self.random = args.rounds, args.smollm2, args.random
        self.ours = Ours(args.engine, ["--no-avx512"] if args.no_avx512 else [])
        self.llama = Llama(args.llama)

    def model(self, name: str) -> pathlib.Path:
        return self.smollm2 if name == "smollm2" else self.random / f"random-1b-{name}.gguf"

    def compare(self, what: str, cases: dict[str, Callable[[object], dict[str, float]]], note: Callable = lambda _: None) -> dict:
        """Runs each case with both programs in each round; returns what was measured, by program and test."""
        measured: dict[str, dict[str, list[float]]] = {self.ours.name: {}, self.llama.name: {}}
        for number in range(self.rounds):
            for case, work in cases.items():
                for program in [self.ours, self.llama][:: 1 if number % 2 == 0 else -1]:
                    speeds = {f"{case} {test}": speed for test, speed in work(program).items()}
                    for test, speed in speeds.items():
                        measured[program.name].setdefault(test, []).append(speed)
                    if program is self.ours:
                        note(case)
                    shown = ", ".join(f"{test} {speed:.1f}" for test, speed in speeds.items())
                    print(f"    {what}, round {number + 1}, {program.name}: {shown} tokens/s", file=sys.stderr)
        ours, theirs = measured[self.ours.name], measured[self.llama.name]
        if sorted(ours) != sorted(theirs):
            raise RuntimeError(f"{what}: the engine measured {sorted(ours)}, llama.cpp {sorted(theirs)}")
        print(f"{what}\n  {'threads, test':16} {'engine':>28} {'llama.cpp':>28} {'ratio':>24}")
        for test in ours:
            ratios = [a / b for a, b in zip(ours[test], theirs[test], strict=True)]
            print(f"  {test:16} {spread(ours[test], 1):>28} {spread(theirs[test], 1):>28} {spread(ratios, 2):>24}")
        return measured

    def speed(self, name: str) -> None:
        """One sequence; with it, what the machine reads in the same runs, and the most memory that was taken."""
        model, (prefill, decode) = self.model(name), SMALL if name == "smollm2" else LARGE
        cases = {str(threads): lambda program, t=threads: program.speeds(model, prefill, decode, t) for threads in THREADS}
        rates: dict[str, list[float]] = {case: [] for case in cases}
        shares: dict[str, list[float]] = {case: [] for case in cases}
        memory: dict = {}

        def note(case: str) -> None:
            tests = self.ours.last
            read = tests["read"]["bytes_per_s"]
            rates[case].append(read / 1e9)
            shares[case].append(tests["read"]["step_bytes"] * tests[f"tg{decode}"]["tokens_per_s"] / read)
            memory.update(tests["memory"])

        measured = self.compare(name, cases, note)
        for case in cases:
            theirs = [share * b / a for share, a, b in zip(shares[case], *(measured[p][f"{case} tg{decode}"] for p in measured))]
            print(f"  {case} threads read {spread(rates[case], 1)} GB/s; decoding reads that share of it: "
                  f"engine {spread(shares[case], 2)}, llama.cpp {spread(theirs, 2)}")
        bound = 1.1 * memory["file_bytes"] + memory["cache_bytes"] + MEMORY_BESIDE
        print(f"  memory: at most {memory['peak_bytes'] / 1e6:.0f} MB; 1.1 x weights + cache + 256 MiB are {bound / 1e6:.0f} MB: "
              f"{memory['peak_bytes'] / bound:.0%} of it")

    def batched(self) -> None:
        """Several sequences at once, on all threads."""
        for name in ("q4_0", "q8_0"):
            shares: list[float] = []
            self.compare(
                f"{name}, sequences decoded together",
                {str(ALL): lambda program, m=self.model(name): program.batched(m, ALL)},
                lambda _: shares.extend(test["scheduler_share"] for test in self.ours.last.values()),
            )
            print(f"  the scheduler's share of a step: {spread([share * 100 for share in shares], 3)} %")

    def prefix(self) -> None:
        """Sixteen chats with 512 tokens in common, one after the other: time to the first token."""
        tests = [self.ours.tests(self.model("q4_0"), ALL, "--part", "prefix")["prefix"] for _ in range(self.rounds)]
        without, with_cache, ratio = ([test[key] for test in tests] for key in ("without_s", "with_s", "without_by_with"))
        print(f"q4_0, {ALL} threads, 16 chats that share 512 tokens: first token after {spread(without, 3)} s without, "
              f"{spread(with_cache, 3)} s with the prefix cache: 1/{spread(ratio, 1)}")

    def busy(self) -> None:
        """What a busy machine leaves of the speed: another process on each processor, or none."""
        model, (_, decode) = self.smollm2, SMALL

        def work(program: object, busy: bool) -> dict[str, float]:
            if not busy:
                return program.speeds(model, [64], decode, ALL)
            with loaded():
                return program.speeds(model, [64], decode, ALL)

        cases = {f"{state} {ALL}": lambda program, b=state == "busy": work(program, b) for state in ("idle", "busy")}
        measured = self.compare("smollm2, idle and busy", cases)
        for program, tests in measured.items():
            for test in ("pp64", f"tg{decode}"):
                pairs = zip(tests[f"busy {ALL} {test}"], tests[f"idle {ALL} {test}"], strict=True)
                print(f"  {program}, {test}: a busy machine leaves {spread([busy / idle for busy, idle in pairs], 2)} of the speed")


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, type=pathlib.Path, help="casemate-engine")
    parser.add_argument("--llama", required=True, type=pathlib.Path, help="folder of llama.cpp's programs")
    parser.add_argument("--smollm2", required=True, type=pathlib.Path, help="GGUF file")
    parser.add_argument("--random", required=True, type=pathlib.Path, help="folder that random_model.py filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be said again")
    parser.add_argument("--no-avx512", action="store_true", help="the engine leaves AVX-512 unused; llama.cpp must be built without")
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error("fewer than 3 rounds have no spread")
    bench, machine = Bench(args), Machine()
    print(f"{processor()}; {args.rounds} rounds: median (lowest – highest), tokens per second; ratio above 1: the engine is faster")
    print(f"llama.cpp: {bench.llama.about}", flush=True)
    for part in [part for part in PARTS if not args.only or part in args.only]:
        if part in ("batched", "prefix", "busy"):
            getattr(bench, part)()
        else:
            bench.speed(part)
        sys.stdout.flush()
    others, stolen = machine.others()
    print(f"engine: {bench.ours.about}")
    print(f"meanwhile other programs took {others:.0%} of the processors, other guests of the host {stolen:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
