#!/usr/bin/env python3
"""The engine's speed beside llama.cpp's on the same file, alternating in the same minutes.

Machines of this kind change their speed by the hour, so that only ratios of neighbouring runs mean anything: each round
runs both programs, in turned order, and gives one ratio per shape. Printed are medians, with the lowest and highest.

`pp N`: N tokens of prompt into an empty cache. `tg N`: N tokens one after the other. llama-bench draws its next tokens
at random; the engine's are sampled, turned into text and sent through its scheduler, which is counted.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

import llama_cpp

TESTS = ["pp64", "pp512", "tg64"]
THREADS = [1, 2]
# Seconds: longest run of one program.
RUN_S_MAX = 900


def run(command: list) -> list[dict]:
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S_MAX).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


class Llama:
    """llama-bench, with its defaults but for what is said here; it makes a pass of its own before it measures."""

    name = "llama.cpp"

    def __init__(self, program: pathlib.Path, model: pathlib.Path):
        self.command = [program, "-m", model, "-r", "1", "-o", "jsonl"]
        for test in TESTS:
            self.command += ["-p" if test.startswith("pp") else "-n", test[2:]]
        # "CPU : SSE3 = 1 | AVX2 = 1 | …": the library that the program uses, too.
        features = llama_cpp.llama_print_system_info().decode().replace("CPU :", "").split("|")
        uses = " ".join(name.split("=")[0].strip() for name in features if name.strip().endswith("= 1"))
        self.about = f"llama-cpp-python {llama_cpp.__version__} built for this processor, with {uses}"

    def speeds(self, threads: int) -> dict[str, float]:
        lines = run([*self.command, "-t", str(threads)])
        name = {True: "pp{n_prompt}", False: "tg{n_gen}"}
        return {name[line["n_prompt"] > 0].format(**line): line["avg_ts"] for line in lines}


class Ours:
    """`casemate-engine bench`."""

    name = "engine"

    def __init__(self, program: pathlib.Path, model: pathlib.Path):
        self.command = [program, "bench", "--json", "--model", model]
        self.about = ""

    def speeds(self, threads: int) -> dict[str, float]:
        lines = run([*self.command, "--threads", str(threads)])
        self.about = f"{lines[0]['kernels']} kernels"
        return {line["test"]: line["tokens_per_s"] for line in lines}


class Machine:
    """What else the processors did meanwhile."""

    def __init__(self) -> None:
        self.begin = self._now()

    def others(self) -> tuple[float, float]:
        """Shares of all processor time: taken by other programs, and by other guests of the same host."""
        total, busy, stolen, ours = (now - then for now, then in zip(self._now(), self.begin))
        return max(0.0, busy - ours) / total, stolen / total

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        """Seconds since boot; proc_stat(5): user nice system idle iowait irq softirq steal."""
        line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, iowait, irq, softirq, steal = (int(f) / ticks_per_s for f in line.split()[1:9])
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = user + nice + system + irq + softirq
        return busy + idle + iowait + steal, busy, steal, children.ru_utime + children.ru_stime


def spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):8.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"


def processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {os.cpu_count()} processors"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("engine", "llama-bench", "model"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error("fewer than 3 rounds have no spread")
    programs = [Ours(args.engine, args.model), Llama(args.llama_bench, args.model)]
    shapes = [(threads, test) for threads in THREADS if threads <= os.cpu_count() for test in TESTS]
    measured = {program.name: {shape: [] for shape in shapes} for program in programs}
    machine = Machine()
    for number in range(args.rounds):
        for threads in sorted({threads for threads, _ in shapes}):
            for program in programs if number % 2 == 0 else programs[::-1]:
                speeds = program.speeds(threads)
                if sorted(speeds) != sorted(TESTS):
                    raise RuntimeError(f"{program.name} measured {sorted(speeds)}, expected {TESTS}")
                for test, speed in speeds.items():
                    measured[program.name][threads, test].append(speed)
                shown = ", ".join(f"{test} {speed:.1f}" for test, speed in speeds.items())
                print(f"    round {number + 1}, threads {threads}, {program.name}: {shown} tokens/s", file=sys.stderr)
    others, stolen = machine.others()
    print(f"{args.model.name} on {processor()}")
    print(f"engine: {programs[0].about}")
    print(f"llama.cpp: {programs[1].about}")
    print(f"{args.rounds} rounds: median (lowest – highest), tokens per second; ratio above 1: the engine is faster")
    print(f"{'threads':7} {'test':6} {'engine':>28} {'llama.cpp':>28} {'ratio':>24}")
    for threads, test in shapes:
        ours, theirs = (measured[program.name][threads, test] for program in programs)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"{threads:7} {test:6} {spread(ours, 1):>28} {spread(theirs, 1):>28} {spread(ratios, 2):>24}")
    print(f"meanwhile other programs took {others:.0%} of the processors, other guests of the host {stolen:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
