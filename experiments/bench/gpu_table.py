"""What `experiments.bench_gpu` says of its sides' results, as markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.bench.gpu_jobs import COMPARED, Found
from experiments.bench.jobs import Job, Size, make_jobs
from experiments.bench.tables import Cell, Row, table

LIMITS = ("copy", "matmul")
LARGER = {
    "rollouts": "groups of samples on shared prefixes, without the prefill",
    "gspo": "a GSPO step: shared prefix (ours), a copy of it for each response (repeated)",
    "sft8k": "training step, the first length",
    "sft32k": "training step, the second length",
}


def report(size: Size, found: Mapping[str, Found]) -> str:
    """Returns the table of a run, and what belongs to its figures."""
    ours, eager = found["ours"], found["eager"]
    card = {limit: ours.get("card", {}).get(limit) or ours.get(limit, {}).get("rate") for limit in LIMITS}
    rows = []
    for job in make_jobs(size):
        rates = {side: rate(one, job) for side, one in found.items()}
        row: Row = {"job": job.label, "unit": job.unit} | rates
        mine = rates.pop("ours")
        if isinstance(mine, float):
            row |= {f"ours / {side}": mine / one for side, one in rates.items() if isinstance(one, float)}
            if card[job.limit]:
                share = job.work * mine / job.amount / card[job.limit]
                row["of the card"] = f"{100 * share:.0f} % of {job.limit}"
        rows.append(row)

    def shown(value: Any, scale: float, unit: str) -> str:
        return f"{value / scale:,.2f} {unit}" if value else "not measured"

    more = [table(part) for part in (larger(found), attentions(found)) if part]
    names = ("device", "python", "jax", "XLA_FLAGS", "torch", "transformers")
    about = ", ".join(f"{name} {value}" for name in names if (value := (eager | ours).get(name)))
    between = "\n\n"
    return f"""{between.join([table(rows), *more])}

- {about}; {size.dtype}, sdpa attention in torch.
- "eager" is transformers with its default cache, "static" with a static one, where it compiles decoding.
- Measured limits: copy {shown(card["copy"], 1e12, "TB/s")} (read + write), bfloat16 matmul \
{shown(card["matmul"], 1e12, "TFLOP/s")}.
- Training: all parameters; parameters, gradients and both moments in the same dtype (a figure of speed, not \
a recipe), ours with remat=names, theirs without checkpointing. The share counts three forward passes of work.
- Decoding: without the prompt's part.
- {parity(found)[1]}"""


def larger(found: Mapping[str, Found]) -> list[Row]:
    """Returns the rows of the jobs that only a GPU has: long rows, groups of samples, a GSPO step."""
    rows = []
    for name, label in LARGER.items():
        results = {side: one[name] for side, one in found.items() if name in one}
        if results:
            row: Row = {"job": label}
            for side, result in results.items():
                row[f"{side}, s"] = result.get("seconds", result.get("failed"))
            mine = results.get("ours", {})
            if "seconds" in mine and "tokens" in mine:
                row["ours, tokens/s"] = mine["tokens"] / mine["seconds"]
            rows.append(row)
    return rows


def attentions(found: Mapping[str, Found]) -> list[Row]:
    """Returns a row for each kernel, forward and backward, with torch's flash attention among them."""
    both = [found[side].get("attention", {}) for side in ("ours", "eager") if side in found]
    figures = {name: value for one in both for name, value in one.items() if ", " in name}
    failed = {f"{number}": one["failed"] for number, one in enumerate(both) if "failed" in one}
    return [{"attention, forward + backward": name, "s": value} for name, value in (figures | failed).items()]


def rate(found: Found, job: Job) -> Cell:
    """Returns how much of a job's unit a side does in a second, or why that is not known."""
    result = found.get(job.name, {"failed": found.get("absent", "not measured")})
    return job.amount / result["seconds"] if "seconds" in result else result["failed"]


def parity(found: Mapping[str, Found]) -> tuple[bool, str]:
    """Returns whether both sides computed the same model, and the sentence that says so.

    In bfloat16 two right implementations differ by rounding, so correlation decides: a wrong model
    (a rotary axis, a missing tap) does not come near it.
    """
    forward = [found[side].get("parity") or found[side].get("forward", {}) for side in ("ours", "eager")]
    if not all("logits" in result for result in forward):
        return True, "Logits: not compared."
    ours, theirs = (np.asarray(result["logits"]) for result in forward)
    correlation = float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
    same = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    words = [
        f"Logits of the last {COMPARED} positions: correlation {correlation:.5f}, largest difference "
        f"{np.abs(ours - theirs).max():.3g} at a standard deviation of {theirs.std():.3g}, same first choice "
        f"at {100 * same:.0f} %"
    ]
    for job in (name for name in found["eager"] if name.startswith("decode")):
        a, b = (np.asarray(found[side].get(job, {}).get("tokens", [])) for side in ("ours", "eager"))
        if a.size and a.shape == b.shape:
            equal = (a == b).cumprod(1).sum(1).mean()
            words.append(f"{job}: the first {equal:.0f} of {a.shape[1]} tokens equal on average")
    right = correlation > 0.99
    return right, "; ".join(words) + ("." if right else ". PARITY FAILED: the speeds mean nothing.")
