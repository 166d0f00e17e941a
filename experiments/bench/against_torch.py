"""Ours against transformers in torch: the same random weights, the same CPU, the same threads.

Nothing is timed before both give the same numbers. Then they take turns. Both start from what a processor
returns: the making of our batch, which holds what torch computes inside its model, is in every call.
"""

from __future__ import annotations

import gc
from collections.abc import Collection
from pathlib import Path

from experiments.bench.inputs import write_folder
from experiments.bench.jobs import SIZES, Job, difference, make_jobs
from experiments.bench.ours import Ours
from experiments.bench.tables import Tables, judged
from experiments.bench.timing import ratios, take_turns
from experiments.bench.torch_reference import Theirs
from o3jax.errors import UserError

# How many times as fast as torch a job should be, and what would be better.
TARGETS = {
    "forward": (1.2, 1.5),
    "train": (1.0, 1.3),
    "decode1": (2.5, 4.0),
    "decode8": (1.5, 2.2),
    "vision": (1.5, 2.0),
}


def measure(scratch: Path, rounds: int, names: Collection[str], size: str = "small") -> Tables:
    """Returns a row for each job of these names; UserError if the two sides do not give the same numbers."""
    folder = scratch / "model"
    write_folder(SIZES[size].config, folder)
    sides = Ours(folder), Theirs(folder)
    rows = []
    for job in make_jobs(SIZES[size], names):
        ours, theirs = calls(job, *sides)
        for _ in range(2):  # the second call, too: a training step starts from the first one's state
            if found := difference(sides[0].host(ours()), sides[1].host(theirs())):
                raise UserError(f"{job.name}: no speed is shown because the results differ: {found}")
        gc.collect()
        seconds = take_turns({"ours": ours, "theirs": theirs}, rounds)
        rates = {name: (job.amount / times[:, 0]).tolist() for name, times in seconds.items()}
        compared = ratios(seconds["theirs"], seconds["ours"])
        row = {"task": job.label, "unit": job.unit} | rates | compared
        rows.append(row | judged(row["ratio"], *TARGETS.get(job.name, (1.0,))))
    return {"ours / transformers in torch": rows}


def calls(job: Job, ours: Ours, theirs: Theirs) -> tuple:
    """Returns the job as a call of each side."""
    mine, other, tensors = job.start(ours), job.start(theirs), theirs.inputs(job.inputs)
    return lambda: mine(ours.inputs(job.inputs)), lambda: other(tensors)
