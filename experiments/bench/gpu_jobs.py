"""`python -m experiments.bench.gpu_jobs JOB SIDE SIZE OUT`: one job of `experiments.bench_gpu` on one side.

A job has a process of its own, so that each has the whole card, and one that hangs or runs out of memory
costs nothing but its own figure. Weights are random and made on the card.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.inputs import prompt, tokens_of, with_labels, with_layers, write_folder
from experiments.bench.jobs import SIZES, Size, make_jobs
from experiments.bench.ours import Ours, Side
from experiments.bench.timing import take_turns
from experiments.cli import shell
from o3jax.files import json_text, read_json, write_json
from o3jax.generate.group import sample_groups
from o3jax.hf.config import config_to_hf
from o3jax.inputs.collate import collate
from o3jax.models.attention import Mask, attention
from o3jax.models.attention.kernels import KERNELS
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import Qwen3VL

COMPARED = 64  # positions at the end of the prompt whose logits are compared
REPEATS = 3
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GpuJob:
    """A job, the seconds that its process may take on each side, and the sides that have it."""

    name: str
    limit_s: float
    sides: tuple[str, ...] = ("ours", "eager")  # "static" is transformers with a static cache


@dataclasses.dataclass(frozen=True)
class Large:
    """How large the jobs are that only a GPU has."""

    matmul: int  # side of the matrices
    copied: int  # bytes
    prefix: int  # tokens that the samples of a prompt share
    prompts: int
    group: int
    new_tokens: int
    step: tuple[int, int, int]  # of a GSPO step: tokens of the prompt, responses, tokens of each
    rows: dict[str, int]  # of training steps, tokens
    attention: tuple[int, int, int, int]  # tokens, query heads, key heads, their dims: causal
    tower: tuple[int, int, int]  # frame pairs, patches of each, heads of 72: all read all


LARGE = {
    "8b": Large(
        *(8192, 1 << 32, 12288, 8, 8, 128, (4000, 8, 128), {"sft8k": 8192, "sft32k": 32768}),
        *((8192, 32, 8, 128), (32, 784, 16)),
    ),
    "tiny": Large(
        *(256, 1 << 20, 64, 2, 2, 4, (48, 2, 4), {"sft8k": 64, "sft32k": 96}), *((128, 4, 2, 64), (2, 32, 2))
    ),
}


def jobs_of(size: Size) -> list[GpuJob]:
    """Returns the jobs, the most important first: all of them are not done in every time limit."""
    one, *others = (f"decode{rows}" for rows in size.batches)
    return [
        GpuJob("card", 40, ("ours",)),
        GpuJob(one, 70, ("ours", "static")),
        *[GpuJob(name, 70) for name in others[:1]],
        GpuJob("rollouts", 90, ("ours",)),
        GpuJob("gspo", 110, ("ours", "repeated")),
        GpuJob("attention", 60),
        GpuJob("sft8k", 90),
        GpuJob("vision", 40),
        GpuJob("parity", 60),
        *[GpuJob(name, 70, ("ours",)) for name in others[1:]],
        GpuJob("sft32k", 100, ("ours",)),
        GpuJob("forward", 50),
    ]


def alone(job: GpuJob, side: str, size: str, left_s: float) -> Found:
    """Returns what a job measures on a side, in a process of its own; or a sentence, why nothing."""
    if left_s < 5:
        return {"failed": "not measured: the time was over"}
    limit = min(job.limit_s, left_s)
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "found.json"
        command = [sys.executable, "-m", "experiments.bench.gpu_jobs", job.name, side, size, str(path)]
        try:
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"failed": f"not measured: it took more than {limit:.0f} s"}
        if ended.returncode or not path.exists():
            last = (ended.stderr.strip().splitlines() or ["nothing was said"])[-1]
            return {"failed": f"ended with {ended.returncode}: {last[:160]}"}
        return read_json(path)


def run(name: str, side: str, size_name: str) -> Found:
    """Returns what a job measures: `seconds` and more, or `failed`, a sentence."""
    size, large = SIZES[size_name], LARGE[size_name]
    mine = side in ("ours", "repeated")
    found = about(mine)
    try:
        if name == "card":
            return found | card_rates(large)
        if name == "attention":
            return found | (our_attention(large, size.dtype) if mine else their_attention(large, size.dtype))
        if name == "rollouts":
            return found | rollouts(size, large)
        if name == "gspo":
            return found | gspo_step(size, large, shared=side == "ours")
        return found | on_side(name, side, size, large)
    except Exception as error:
        return found | {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"}


def about(mine: bool) -> Found:
    """Returns what a side runs on."""
    if mine:
        device = jax.local_devices()[0].device_kind
        flags = os.environ.get("XLA_FLAGS", "")
        return {
            "device": device,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "XLA_FLAGS": flags,
        }
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def random_model(size: Size) -> Qwen3VL:
    """Returns a random model of a size, on the device."""
    key = jax.random.key(0, impl="rbg")  # the fast generator: eight billion numbers are drawn
    make = jax.jit(lambda: Qwen3VL(size.config, Initializer(key, jnp.dtype(size.dtype))))
    return jax.block_until_ready(make())


def open_side(side: str, size: Size, folder: Path | None = None, remat: str = "names") -> Side:
    """Returns a side of a benchmark with random weights, or with those of a folder."""
    if side == "ours":
        kernel = "cudnn" if jax.default_backend() == "gpu" else "xla"
        return Ours(folder or random_model(size), dtype=size.dtype, remat=remat, kernel=kernel)
    import torch

    from experiments.bench.torch_reference import Theirs

    options = {"dtype": size.dtype, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    options["cache"] = "static" if side == "static" else None
    if folder is not None:
        return Theirs(folder, **options)
    with tempfile.TemporaryDirectory() as scratch:
        write_json(Path(scratch) / "config.json", config_to_hf(size.config, jnp.dtype(size.dtype)))
        return Theirs(Path(scratch), random=True, **options)


def card_rates(large: Large) -> Found:
    """Returns the card's own copy bandwidth and bfloat16 matmul rate."""

    def rate(work: float, fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        compute = jax.jit(fn)
        return work / median_seconds(lambda: jax.block_until_ready(compute(x)))

    copied, n = large.copied, large.matmul
    return {
        "copy": rate(2 * copied, lambda x: x + 1, jnp.zeros(copied // 4, jnp.float32)),
        "matmul": rate(2 * n**3, lambda x: x @ x, jnp.ones((n, n), jnp.bfloat16)),
    }


def on_side(name: str, side: str, size: Size, large: Large) -> Found:
    """Returns what a job measures that both sides have: decoding, the tower, a forward pass, training."""
    if name == "parity":
        few = dataclasses.replace(size, config=with_layers(size.config, 4, 4))
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(few.config, Path(scratch) / "model", jnp.dtype(size.dtype), std=0.02)
            opened = open_side(side, few, Path(scratch) / "model")
            (job,) = make_jobs(few, ["forward"])
            logits = opened.forward(opened.inputs(job.inputs))[0, -COMPARED:]
            return {"logits": opened.host(logits).tolist()}
    if name in large.rows:
        tokens, c = large.rows[name], size.config
        pairs = max(1, 3 * tokens // (4 * tokens_of(c, size.grid)))
        inputs = with_labels(prompt(c, tokens, pairs, size.grid), c)
        opened = open_side(side, size, remat="names" if name == "sft8k" else "full")
        inputs, step = opened.inputs(inputs), opened.trainer()
        return {"seconds": median_seconds(lambda: step(inputs)), "tokens": tokens}
    opened = open_side(side, size)
    (job,) = make_jobs(size, [name])
    call, inputs = job.start(opened), opened.inputs(job.inputs)
    seconds = median_seconds(lambda: call(inputs))
    if not name.startswith("decode"):
        return {"seconds": seconds}
    # Without the prompt's part, as long as all new tokens take.
    first = median_seconds(lambda: opened.generate(inputs, new_tokens=1))
    return {"seconds": (seconds - first) * size.new_tokens / (size.new_tokens - 1)}


def rollouts(size: Size, large: Large) -> Found:
    """Returns the seconds of sampling groups on shared prefixes, without the prompts' part."""
    opened = Ours(random_model(size), dtype=size.dtype)
    batch = collate(prompt(size.config, large.prefix, 1, size.grid, rows=large.prompts), size.config)

    def sample(new_tokens: int) -> None:
        options = {"eos_ids": (), "pad_id": 0, "group_size": large.group}
        sample_groups(opened.decoder, batch, jax.random.key(0), max_new_tokens=new_tokens, **options)

    first, whole = (median_seconds(functools.partial(sample, n)) for n in (1, large.new_tokens))
    tokens = large.prompts * large.group * (large.new_tokens - 1)
    return {"seconds": whole - first, "tokens": tokens, "prefill_s": first}


def gspo_step(size: Size, large: Large, shared: bool) -> Found:
    """Returns the seconds of a GSPO step, with the prompt once, or behind a copy of it for each response."""
    from experiments.bench.gspo import Rows, step, video_prompt

    length, group, response = large.step
    way = Rows(Ours(random_model(size), dtype=size.dtype), shared)
    inputs = video_prompt(size.config, length, size.grid)
    # All rows take the same time: of many, one is timed.
    updated = group if shared else 1
    step(way, inputs, group, updated, 0, response)
    phases = step(way, inputs, group, updated, 1, response)[:, 0]
    phases[1:] *= group // updated
    return {"seconds": float(phases.sum()), "phases": phases.tolist()}


def our_attention(large: Large, dtype: str) -> Found:
    """Returns the seconds of each kernel, forward and backward; or why one cannot run."""
    found: Found = {}
    for what, (rows, tokens, heads, kv_heads, width), causal in shapes(large):
        q, k = (jnp.ones((rows, tokens, n, width), jnp.dtype(dtype)) for n in (heads, kv_heads))
        segments = jnp.ones((rows, tokens), jnp.int32)
        mask = Mask(segments, segments, causal=causal)
        for kernel in KERNELS:
            try:
                found[f"{what}, {kernel}"] = _kernel_seconds(kernel, q, k, mask)
            except Exception as error:
                found[f"{what}, {kernel}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return found


def _kernel_seconds(kernel: str, q: jax.Array, k: jax.Array, mask: Mask) -> float:
    compute = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, mask, kernel).sum(), (0, 1, 2)))
    return median_seconds(lambda: jax.block_until_ready(compute(q, k, k)))


def their_attention(large: Large, dtype: str) -> Found:
    """Returns the seconds of torch's flash attention, forward and backward."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, found = "cuda" if torch.cuda.is_available() else "cpu", {}
    for what, (rows, tokens, heads, kv_heads, width), causal in shapes(large):

        def tensor(n: int, rows=rows, tokens=tokens, width=width) -> Any:
            shape = (rows, n, tokens, width)
            return torch.ones(shape, dtype=getattr(torch, dtype), device=device, requires_grad=True)

        q, k, v = tensor(heads), tensor(kv_heads), tensor(kv_heads)

        def compute(q=q, k=k, v=v, causal=causal, shared=heads // kv_heads) -> None:
            k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        found[f"{what}, flash"] = median_seconds(compute)
    return found


def shapes(large: Large) -> list[tuple[str, tuple[int, int, int, int, int], bool]]:
    """Returns the attentions that are compared: (rows, tokens, heads, key heads, width), and if causal."""
    pairs, patches, heads = large.tower
    return [
        (f"text, {large.attention[0]} tokens", (1, *large.attention), True),
        (f"tower, {pairs} x {patches} patches", (pairs, patches, heads, heads, 72), False),
    ]


def median_seconds(call: Callable[[], Any]) -> float:
    """Returns the median of some calls after one that warms up."""
    call()
    return float(np.median(take_turns({"": call}, REPEATS)[""][:, 0]))


if __name__ == "__main__":
    job, side, size_name, out = sys.argv[1:]
    shell.use_compilation_cache()
    Path(out).write_text(json_text(run(job, side, size_name)))
