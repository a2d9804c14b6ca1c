"""The two programs that `engine_bench.py` compares, and what else the machine does meanwhile."""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator

import llama_cpp

# Seconds: longest run of one program.
RUN_S_MAX = 1800
# Sequences that are decoded together, and their tokens, as `casemate-engine bench --part batched` has them.
TOGETHER, PROMPT, ANSWER = [8, 16], 64, 56


def run(command: list) -> list[dict]:
    command = [str(part) for part in command]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S_MAX).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


class Llama:
    """llama-bench and llama-batched-bench, with their defaults but for what is said here; each makes a pass of its own
    before it measures."""

    name = "llama.cpp"

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        # "CPU : SSE3 = 1 | AVX2 = 1 | …": the library that the programs use, too.
        features = llama_cpp.llama_print_system_info().decode().replace("CPU :", "").split("|")
        uses = " ".join(name.split("=")[0].strip() for name in features if name.strip().endswith("= 1"))
        self.about = f"llama-cpp-python {llama_cpp.__version__} with {uses}"

    def speeds(self, model: pathlib.Path, prefill: list[int], decode: int, threads: int) -> dict[str, float]:
        command = [self.folder / "llama-bench", "-m", model, "-r", 1, "-o", "jsonl", "-t", threads, "-n", decode]
        lines = run(command + [word for tokens in prefill for word in ("-p", tokens)])
        name = {True: "pp{n_prompt}", False: "tg{n_gen}"}
        return {name[line["n_prompt"] > 0].format(**line): line["avg_ts"] for line in lines}

    def batched(self, model: pathlib.Path, threads: int) -> dict[str, float]:
        command = [self.folder / "llama-batched-bench", "-m", model, "-t", threads, "-tb", threads]
        command += ["-c", max(TOGETHER) * (PROMPT + ANSWER), "-npp", PROMPT, "-ntg", ANSWER]
        lines = run([*command, "-npl", ",".join(map(str, TOGETHER)), "--output-format", "jsonl"])
        return {f"tg x{line['pl']}": line["speed_tg"] for line in lines}


class Ours:
    """`casemate-engine bench`."""

    name = "engine"

    def __init__(self, program: pathlib.Path, options: list[str]):
        self.program, self.options = program, options
        self.about = ""

    def tests(self, model: pathlib.Path, threads: int, *more: object) -> dict[str, dict]:
        lines = run([self.program, *self.options, "bench", "--json", "--model", model, "--threads", threads, *more])
        self.about = f"{lines[0]['kernels']} kernels"
        return {line["test"]: line for line in lines}

    def speeds(self, model: pathlib.Path, prefill: list[int], decode: int, threads: int) -> dict[str, float]:
        lengths = ["--prefill", ",".join(map(str, prefill)), "--decode", decode]
        self.last = self.tests(model, threads, *lengths)
        return {name: test["tokens_per_s"] for name, test in self.last.items() if "tokens_per_s" in test}

    def batched(self, model: pathlib.Path, threads: int) -> dict[str, float]:
        self.last = self.tests(model, threads, "--part", "batched")
        return {name: test["tokens_per_s"] for name, test in self.last.items()}


@contextlib.contextmanager
def loaded() -> Iterator[None]:
    """Another process on each processor, for as long as this lasts."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


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


def processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {os.cpu_count()} processors"
