"""`python -m experiments.bench_gpu`: a random Qwen3-VL-8B in bfloat16 on one GPU, against transformers.

Jobs run one after the other, the most important first, each side of each in a process of its own with a time
limit; after every one the table and the JSON are written again. What fails (out of memory, say), takes too
long or has no time left is a cell that says so. Inputs lie on the device before the clock starts; compilation
is not in any figure. `--size=tiny` takes every path of this script on a CPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.bench.gpu_jobs import Found, alone, jobs_of
from experiments.bench.gpu_table import parity, report
from experiments.bench.jobs import SIZES
from experiments.cli import shell
from o3jax.errors import UserError
from o3jax.files import write_json, write_text

_SIZE = flags.DEFINE_enum("size", "8b", ["8b", "tiny"], "The model; tiny tests this script on a CPU.")
_OUT = flags.DEFINE_string("out", None, "Folder for bench_gpu.md and bench_gpu.json.", required=True)
_ONLY = flags.DEFINE_list("only", [], "Names of jobs to run; all by default.")
_SECONDS = flags.DEFINE_float("seconds", 480.0, "When all of them are to be over.", lower_bound=1)
_KINDS = ("device", "jax", "python", "XLA_FLAGS", "torch", "transformers")


def main(argv: Sequence[str]) -> None:
    del argv
    out, until = Path(_OUT.value), time.monotonic() + _SECONDS.value
    jobs = jobs_of(SIZES[_SIZE.value])
    if unknown := sorted(set(_ONLY.value) - {job.name for job in jobs}):
        raise UserError(f"--only has no job {unknown[0]}; choose from {', '.join(job.name for job in jobs)}")
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {"ours": {}, "eager": {}, "static": {}}
    for job in jobs:
        if _ONLY.value and job.name not in _ONLY.value:
            continue
        for side in job.sides:
            start = time.monotonic()
            result = alone(job, side, _SIZE.value, until - start)
            about = {name: result.pop(name) for name in _KINDS if name in result}
            found.setdefault(side, {}).update(about | {job.name: result})
            shown = {name: value for name, value in result.items() if name != "logits"}
            print(f"{job.name}, {side}: {shown} ({time.monotonic() - start:.0f} s)", flush=True)
            write_json(out / "bench_gpu.json", found, indent=2)
            write_text(out / "bench_gpu.md", report(SIZES[_SIZE.value], found) + "\n")
    print(report(SIZES[_SIZE.value], found))
    if not parity(found)[0]:
        sys.exit(1)


if __name__ == "__main__":
    shell.run(main)
