"""What both sides are asked to do: the jobs, at the sizes that are measured, and how much work each is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from experiments.bench.inputs import NARROW, SMALL, Inputs, prompt, tokens_of, with_labels, with_layers
from experiments.bench.ours import Side
from o3jax.models.config import Config
from o3jax.models.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how large each job is."""

    config: Config
    dtype: str
    grid: tuple[int, int]  # patches of a frame
    tokens: int  # of the forward pass and the training step
    pairs: int  # frame pairs among them
    vision_pairs: int  # of the vision tower alone
    decode_prompt: int
    new_tokens: int
    batches: tuple[int, ...]  # of greedy decoding


# 14 x 14 patches are 224 x 224 pixels, 28 x 28 are 448 x 448. At 8b, 16 pairs make 3,216 of the 4,096 tokens.
SIZES = {
    "small": Size(SMALL, "float32", (14, 14), 512, 4, 8, 128, 64, (1, 8)),
    "8b": Size(PRESETS["8B"], "bfloat16", (28, 28), 4096, 16, 32, 2048, 64, (1, 32, 128)),
    "tiny": Size(with_layers(NARROW, 3, 3), "float32", (4, 4), 64, 2, 2, 32, 16, (1, 2)),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A call of either side, and how much work it is."""

    name: str
    label: str
    unit: str
    amount: float  # of `unit`
    inputs: Inputs
    start: Callable[[Side], Callable[[Any], Any]]  # returns what takes the side's `inputs(inputs)`
    limit: str  # "matmul" or "copy": what bounds it on an accelerator
    work: float  # operations or bytes


def make_jobs(size: Size, names: Collection[str] = ()) -> list[Job]:
    """Returns the jobs of these names, or all: forward, vision, a decodeN for each batch, and train.

    Training is the last, because it takes the model.
    """
    c, patches = size.config, size.grid[0] * size.grid[1]
    text = prompt(c, size.tokens, size.pairs, size.grid)
    frames, pixels = 2 * size.vision_pairs, [side * c.vision.patch_size for side in size.grid]
    tower = prompt(c, size.vision_pairs * tokens_of(c, size.grid), size.vision_pairs, size.grid)
    work = text_flops(c, size.tokens) + vision_flops(c, size.pairs, patches)
    jobs = [
        Job(
            "forward", f"forward, {size.tokens} tokens with {2 * size.pairs} frames",
            "tokens/s", size.tokens, text, lambda side: side.forward, "matmul", work,
        ),
        Job(
            "vision", f"vision tower, {frames} frames {pixels[0]} x {pixels[1]}",
            "frames/s", frames, tower, lambda side: side.vision,
            "matmul", vision_flops(c, size.vision_pairs, patches),
        ),
    ]  # fmt: skip
    context, itemsize = size.decode_prompt + size.new_tokens / 2, 2 if size.dtype == "bfloat16" else 4
    jobs += [
        Job(
            f"decode{rows}", f"greedy decode, batch {rows}, {size.decode_prompt} + {size.new_tokens}",
            "new tokens/s", rows * size.new_tokens,
            prompt(c, size.decode_prompt, 1, size.grid, rows=rows, seed=rows),
            lambda side: functools.partial(side.generate, new_tokens=size.new_tokens),
            "copy", size.new_tokens * decode_bytes(c, rows, context, itemsize),
        )
        for rows in size.batches
    ]  # fmt: skip
    jobs.append(
        Job(
            "train",
            "training step, the same prompt",
            "tokens/s",
            size.tokens,
            with_labels(text, c),
            lambda side: side.trainer(),
            "matmul",
            3 * work,
        )  # fmt: skip
    )
    return [job for job in jobs if not names or job.name in names]


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Returns how far the results of a job in float32 differ, "" where they agree.

    Tokens have to be the same, numbers within 1e-4.
    """
    if ours.shape != theirs.shape:
        return f"shapes {ours.shape} and {theirs.shape}"
    if np.issubdtype(ours.dtype, np.integer):
        wrong = int((ours != theirs).sum())
        return f"{wrong} of {ours.size} greedy tokens differ" if wrong else ""
    error = float(np.abs(ours - theirs).max())
    return "" if error <= 1e-4 else f"the largest error is {error:.1e}, more than 1e-4"


def text_flops(config: Config, tokens: int) -> float:
    """Returns the operations of a causal forward pass over one sequence, the head included."""
    c = config.text
    attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    weights = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    weights += c.hidden_size * c.vocab_size
    return 2 * weights * tokens + 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * tokens**2


def vision_flops(config: Config, pairs: int, patches: int) -> float:
    """Returns the operations of the vision tower over `pairs` frame pairs of `patches` patches."""
    c = config.vision
    block = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
    wide = c.hidden_size * c.merge_unit
    mergers = (1 + len(c.deepstack_visual_indexes)) * wide * (wide + c.out_hidden_size)
    per_patch = c.depth * block + c.patch_dim * c.hidden_size + mergers / c.merge_unit
    return pairs * (2 * per_patch * patches + 4 * c.depth * c.hidden_size * patches**2)


def decode_bytes(config: Config, rows: int, context: float, itemsize: int) -> float:
    """Returns the bytes that one decoding step must read: the weights once, the cache of every row."""
    c = config.text
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * context * rows
    return itemsize * (text_flops(config, 1) / 2 + cache)
