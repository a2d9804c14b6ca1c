#!/usr/bin/env python3
"""Compares llama.cpp's logits of the engine's tiny models with those of Hugging Face transformers.

The engine is compared with transformers in its own tests, where the same hand wrote the reference's weights and the
GGUF files. That llama.cpp reads the same logits out of these files shows that they mean what the engine takes them for:
names of keys and tensors, orders of pairs, and how fused, stacked and transposed tensors lie.

Exit status 1 if a case is off by more than ERROR_MAX, or llama.cpp refuses a file that is not named in APART.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy

TOKENS = [(position * 37 + 11) % 128 for position in range(40)]
# Logits have a standard deviation of 1; the cache of either program is in half precision.
ERROR_MAX = 2e-2
# Where llama.cpp computes something else than the models' authors.
APART = {
    "mistral": "it has no sliding window for the architecture llama",
    "phi3": "it has no sliding window for the architecture phi3",
    "deepseek2": "it takes DeepSeek-V3's measure of a group of experts for V2, too",
    "deepseek2-lite": "it knows models without q_lora_rank by their 26 or 27 layers",
}


def logits(model: pathlib.Path) -> numpy.ndarray:
    llama = llama_cpp.Llama(str(model), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    llama.eval(TOKENS)
    rows = [llama_cpp.llama_get_logits_ith(llama.ctx, i) for i in range(len(TOKENS))]
    return numpy.stack([numpy.ctypeslib.as_array(row, shape=(128,)).copy() for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", required=True, type=pathlib.Path, help="folder of the engine's example families")
    parser.add_argument("--golden", required=True, type=pathlib.Path, help="agent/engine/tests/golden")
    args = parser.parse_args()
    failed, compared = False, 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([args.examples / "families", folder], check=True)
        for model in sorted(pathlib.Path(folder).glob("*.gguf")):
            if reason := APART.get(model.stem):
                print(f"{model.stem}: not compared, llama.cpp is another: {reason}")
                continue
            reference = numpy.fromfile(args.golden / f"{model.stem}.f32", "<f4").reshape(len(TOKENS), -1)
            found = logits(model)
            error = numpy.abs(found - reference).max()
            others = int((found.argmax(1) != reference.argmax(1)).sum())
            bad = not error <= ERROR_MAX or others > 0
            failed, compared = failed or bad, compared + 1
            print(f"{model.stem}: {'FAILED, ' if bad else ''}largest error {error:.1e}, {others} best tokens differ")
    return 1 if failed or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
