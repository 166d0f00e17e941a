"""The table of `experiments.bench_gpu`: the sizes that it measures, how much work each job is, markdown."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.bench.inputs import SMALL, with_layers
from o3jax.models.config import Config
from o3jax.models.presets import PRESETS

COMPARED = 64  # positions at the end of the prompt whose logits are compared


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how much work each job is."""

    config: Config
    dtype: str
    grid: tuple[int, int]  # patches of a frame
    prompt_tokens: int  # of the forward pass, the training step and the vision tower
    prompt_pairs: int
    vision_pairs: int
    decode_prompt: int
    new_tokens: int
    batches: tuple[int, int]
    repeats: int
    matmul: int  # side of the matrices that the card's rate is measured with
    copy_bytes: int


# 28 x 28 patches are 448 x 448 pixels; 16 pairs make 3,216 of the 4,096 tokens.
SIZES = {
    "8b": Size(PRESETS["8B"], "bfloat16", (28, 28), 4096, 16, 32, 1024, 128, (1, 32), 5, 8192, 1 << 32),
    "tiny": Size(with_layers(SMALL, 3, 3), "float32", (4, 4), 64, 2, 2, 32, 8, (1, 2), 2, 256, 1 << 20),
}


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


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: which job, how much of `unit` it is, and its share of the card's limit."""

    job: str
    label: str
    unit: str
    amount: float
    limit: str  # "matmul" or "copy"
    work: float  # operations or bytes


def make_rows(size: Size) -> list[Row]:
    """Returns the lines of the table."""
    c, patches, itemsize = size.config, size.grid[0] * size.grid[1], np.dtype(np.float16).itemsize
    if size.dtype == "float32":
        itemsize = 4
    pixels = f"{size.grid[0] * c.vision.patch_size} x {size.grid[1] * c.vision.patch_size}"
    prompt_work = text_flops(c, size.prompt_tokens) + vision_flops(c, size.prompt_pairs, patches)
    tokens, frames = size.prompt_tokens, 2 * size.vision_pairs
    steps, context = size.new_tokens - 1, size.decode_prompt + size.new_tokens / 2
    forward = f"forward, {tokens} tokens with {2 * size.prompt_pairs} frames"
    rows = [
        Row("forward", forward, "tokens/s", tokens, "matmul", prompt_work),
        Row(
            "vision", f"vision tower, {frames} frames {pixels}", "frames/s", frames,
            "matmul", vision_flops(c, size.vision_pairs, patches),
        ),
        Row("train", "training step, the same prompt", "tokens/s", tokens, "matmul", 3 * prompt_work),
    ]  # fmt: skip
    rows += [
        Row(
            f"decode{batch}", f"greedy decode, batch {batch}, {size.decode_prompt} + {size.new_tokens}",
            "tokens/s", batch * steps, "copy", steps * decode_bytes(c, batch, context, itemsize),
        )
        for batch in size.batches
    ]  # fmt: skip
    return rows


def markdown(size: Size, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Returns the section for docs/performance.md."""
    missing = {"failed": theirs.get("absent", "not measured")}

    def rate(result: dict[str, Any], amount: float) -> str:
        return result["failed"] if "failed" in result else f"{amount / result['seconds']:,.1f}"

    def ratio(a: dict[str, Any], b: dict[str, Any]) -> str:
        return f"{b['seconds'] / a['seconds']:.2f}" if "seconds" in a and "seconds" in b else "-"

    limits = {"matmul": ours.get("matmul", missing), "copy": ours.get("copy", missing)}
    lines = [
        "| job | unit | ours | transformers, eager | ratio | static cache, compiled | ratio | of the card |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in make_rows(size):
        mine, eager = ours.get(row.job, missing), theirs.get(row.job, missing)
        static = theirs.get("static", {}).get(row.job, missing) if "decode" in row.job else {"failed": "-"}
        share, limit = "-", next(iter(limits[row.limit].values()))
        if "seconds" in mine and not isinstance(limit, str):
            share = f"{100 * row.work / mine['seconds'] / limit:.0f} % of {row.limit}"
        cells = [row.label, row.unit, rate(mine, row.amount)]
        cells += [rate(eager, row.amount), ratio(mine, eager), rate(static, row.amount), ratio(mine, static)]
        lines.append("| " + " | ".join([*cells, share]) + " |")

    def shown(value: Any, scale: float, unit: str) -> str:
        return f"{value / scale:,.2f} {unit}" if isinstance(value, float | int) else "not measured"

    about = [
        f"{key} {value}" for key, value in (
            ("device", ours["device"]), ("python", ours["python"]), ("jax", ours["jax"]),
            ("XLA_FLAGS", ours["XLA_FLAGS"]), ("torch", theirs.get("torch")),
            ("transformers", theirs.get("transformers")),
        ) if value
    ]  # fmt: skip
    notes = [
        f"- {', '.join(about)}; {size.dtype}, sdpa attention in torch.",
        f"- Measured limits: copy {shown(limits['copy'].get('bytes_per_second'), 1e12, 'TB/s')} "
        f"(read + write), bfloat16 matmul "
        f"{shown(limits['matmul'].get('flops_per_second'), 1e12, 'TFLOP/s')}.",
        "- Training: all parameters; parameters, gradients and both moments in the same dtype (a figure of "
        "speed, not a recipe), ours with remat=names, theirs without checkpointing. The share counts three "
        "forward passes of work.",
        f"- Peak device memory: ours {shown(ours.get('peak_bytes'), 2**30, 'GiB')}, "
        f"theirs {shown(theirs.get('peak_bytes'), 2**30, 'GiB')}.",
        f"- {parity(ours, theirs)[1]}",
    ]
    return "\n".join([*lines, "", *notes])


def parity(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[bool, str]:
    """Returns whether both sides computed the same model, and the sentence that says so.

    In bfloat16 two right implementations differ by rounding, so correlation decides: a wrong model
    (a rotary axis, a missing tap) does not come near it.
    """
    forward = theirs.get("forward", {})
    if "correlation" not in forward:
        return True, "Logits: not compared."
    right = forward["correlation"] > 0.99
    words = [
        f"Logits of the last {COMPARED} positions: correlation {forward['correlation']:.5f}, largest "
        f"difference {forward['max_error']:.3g} at a standard deviation of {forward['spread']:.3g}, "
        f"same first choice at {100 * forward['same_argmax']:.0f} %"
    ]
    for job in (name for name in theirs if name.startswith("decode")):
        a, b = (np.asarray(side.get(job, {}).get("tokens", [])) for side in (ours, theirs))
        if a.size and a.shape == b.shape:
            equal = (a == b).cumprod(1).sum(1).mean()
            words.append(f"{job}: the first {equal:.0f} of {a.shape[1]} tokens equal on average")
    return right, "; ".join(words) + ("." if right else ". PARITY FAILED: the speeds mean nothing.")
