"""The jobs of the GPU benchmark, at toy size on a CPU; how they are run."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from experiments.bench import gpu_jobs
from experiments.bench.gpu_jobs import GpuJob, alone, jobs_of, run
from experiments.bench.gpu_table import parity, report
from experiments.bench.jobs import SIZES
from experiments.bench.timing import take_turns
from tests.support.commands import run_command


@pytest.fixture(scope="module")
def found():
    """What all jobs say on all sides, here in this process, in processor time: others may use the machine."""
    sides = {"ours": {}, "eager": {}, "static": {}}

    def spent(call):
        call()
        return float(np.median(take_turns({"": call}, gpu_jobs.REPEATS)[""][:, 1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_jobs, "median_seconds", spent)
        for job in jobs_of(SIZES["tiny"]):
            for side in job.sides:
                sides.setdefault(side, {})[job.name] = json.loads(json.dumps(run(job.name, side, "tiny")))
    return sides


def test_every_job_runs_at_toy_size(found):
    for side, results in found.items():
        for name, result in results.items():
            assert "failed" not in result, (side, name, result)
            measured = result.get("seconds", result.get("copy", result.get("logits")))
            if name == "attention":
                own = "xla" if side == "ours" else "flash"
                figures = [value for key, value in result.items() if key.endswith(f", {own}")]
                assert len(figures) == 2 and all(value > 0 for value in figures)
            else:
                assert measured and (name == "parity" or measured > 0), (side, name, result)
    # Another machine's kernels say that they cannot run.
    assert isinstance(found["ours"]["attention"]["text, 128 tokens, splash"], str)


def test_both_sides_are_one_model_and_the_table_has_every_job(found):
    right, said = parity(found)
    assert right and "correlation 1.0000" in said
    text = report(SIZES["tiny"], found)
    for words in ("greedy decode, batch 1", "vision tower", "groups of samples", "a GSPO step", "flash"):
        assert words in text, words


def test_a_job_has_a_process_and_a_time_of_its_own(monkeypatch):
    assert alone(GpuJob("decode1", 60), "ours", "tiny", 1.0)["failed"].endswith("the time was over")
    slow = GpuJob("decode1", 0.5)
    assert "more than 0 s" in alone(slow, "ours", "tiny", 100.0)["failed"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended with 1" in alone(GpuJob("decode1", 60), "ours", "tiny", 100.0)["failed"]


def test_an_unknown_job_is_refused(tmp_path, capfd):
    done = run_command(capfd, "bench_gpu", f"--out={tmp_path}", "--only=decode1,nothing")
    assert done.code == 2 and "--only has no job nothing; choose from card, decode1" in done.err
