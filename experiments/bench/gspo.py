"""The GSPO rows of `python -m experiments.bench`: one step with the prompt once, against once per response.

What a step is, on every side, for one video prompt and a group of G responses of a fixed length:

    sample     G completions, drawn from the model's own distribution; nothing ends one early
    logprobs   of the completions under the model, as the trainer computes them
    gradient   of the GSPO objective at all parameters, vision tower included; advantages are those of
               random rewards. No optimizer, no gradient checkpointing.

Ours does all three on the prompt once: prefilled once, and a single row [P; R1..RG]. "Off" is the same code
with every response behind a prompt of its own, one row after the other; because all rows take the same
time, its update is timed on one of them and counted G times. The peer is the loop of published
trainers in torch: `generate` with `num_return_sequences` and a KV cache (this transformers encodes the
video once for all of them), then a forward pass, then a forward and backward pass of each whole sequence;
it computes logits at the response alone. The sides take turns, and compilation is not in their times.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

from experiments.bench.inputs import Inputs, prompt
from experiments.bench.torch_reference import Theirs, torch
from experiments.flops import flops
from experiments.training.sampling import decoder
from o3jax.errors import UserError
from o3jax.generate.cache import extend, prefill
from o3jax.generate.group import sample_groups
from o3jax.gspo.loss import group_advantages
from o3jax.gspo.rows import UpdateBatch, UpdateShape, pack_groups
from o3jax.gspo.update import gspo_objective, response_logprobs, sequence_counts
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.collate import collate
from o3jax.models.batch import map_arrays, take
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL

# Tokens of the prompt, responses, rounds at most: a round of the last case takes minutes.
CASES = ((1200, 4, 3), (1200, 8, 3), (4000, 4, 1), (4000, 8, 1))
RESPONSE = 128  # tokens of each
GRID = (24, 24)  # patches of a frame: 384 x 384 pixels, 144 tokens
TARGET, AIM = 3.0, 5.0  # times as fast as the peer
CLIP = (3e-4, 4e-4)
PHASES = ("sample", "logprobs", "gradient")

Tokens = Int[np.ndarray, "G T"]
Scores = Float[np.ndarray, "G T"]
Advantages = Float[np.ndarray, " G"]


class Side(Protocol):
    """A way to take a step. Results are on the host when a method returns; `gradient` gives its norm."""

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens: ...

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores: ...

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float: ...


class Ours:
    """Our sampler and update; `shared` is whether a group has its prompt once."""

    def __init__(self, folder: Path, *, shared: bool):
        self.config = config_from_hf(folder)
        self.model = load_weights(folder, self.config)
        self.shared = shared

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens:
        prompts, copies = collate(inputs, self.config), 1 if self.shared else group
        out = sample_groups(
            decoder(self.model),
            map_arrays(lambda array: np.repeat(array, copies, axis=0), prompts),
            jax.random.key(seed),
            group_size=group // copies,
            max_new_tokens=length,
            eos_ids=(),
            pad_id=0,
        )
        return out.tokens.reshape(group, length)

    def pack(self, inputs: Inputs, tokens: Tokens) -> UpdateBatch:
        """Returns the update's rows: one, or one per response."""
        prompts = collate(inputs, self.config)
        size, together = prompts.text.input_ids.shape[1], len(tokens) if self.shared else 1
        _, frame_pairs, patches, _ = prompts.patches.values.shape
        shape = UpdateShape(
            length=size + together * tokens.shape[1],
            frame_pairs=frame_pairs,
            patches=patches,
            sequences=together,
            response=tokens.shape[1],
        )
        return pack_groups(prompts, [tokens], self.config, shape, repeated=not self.shared)

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores:
        found = [np.asarray(_logprobs(self.model, row)) for row in _rows(self.pack(inputs, tokens))]
        return np.concatenate(found).reshape(tokens.shape)

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float:
        batch = self.pack(inputs, tokens)
        advantages, old = (batch.by_sequence(values[None]) for values in (advantages, old))
        batch = dataclasses.replace(batch, advantages=advantages, logp_old=old)
        counts = sequence_counts(batch)
        total = None
        for row in _rows(batch):
            one = _gradient(self.model, row, counts)
            total = one if total is None else _sum(total, one)
        return math.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(total)))


_logprobs = jax.jit(response_logprobs)


@jax.jit
def _gradient(model: Qwen3VL, row: UpdateBatch, counts: Mapping[str, Any]) -> Qwen3VL:
    def loss(model: Qwen3VL) -> jax.Array:
        return gspo_objective(model, row, counts, clip_low=CLIP[0], clip_high=CLIP[1])[0]

    return jax.grad(loss)(model)


@functools.partial(jax.jit, donate_argnums=0)
def _sum(total: Qwen3VL, one: Qwen3VL) -> Qwen3VL:
    return jax.tree.map(jnp.add, total, one)


def _rows(batch: UpdateBatch) -> list[UpdateBatch]:
    """Returns each row as a batch: they are processed one after the other, as micro-batches are."""
    return [take(batch, slice(at, at + 1)) for at in range(len(batch.sequence))]


class Loop:
    """The peer: each response is a sequence of its own."""

    def __init__(self, folder: Path):
        self.peer = Theirs(folder)
        self.model = self.peer.model

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens:
        torch.manual_seed(seed)
        with torch.inference_mode():
            self.model.model.rope_deltas = None
            ids = self.model.generate(
                **self.peer.inputs(inputs), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=group, max_new_tokens=length,
            )  # fmt: skip
        return ids[:, -length:].cpu().numpy()

    def _logprobs(self, inputs: Inputs, tokens: Int[np.ndarray, " T"]) -> torch.Tensor:
        """Returns the log-probabilities [T] of one response, by a forward pass of its whole sequence."""
        ids = np.concatenate([inputs["input_ids"], tokens[None]], axis=1)
        whole = self.peer.inputs(
            inputs
            | {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "mm_token_type_ids": np.pad(inputs["mm_token_type_ids"], ((0, 0), (0, len(tokens)))),
            }
        )
        self.model.model.rope_deltas = None
        logits = self.model(**whole, use_cache=False, logits_to_keep=len(tokens) + 1).logits[0, :-1]
        return torch.log_softmax(logits, -1).gather(1, whole["input_ids"][0, -len(tokens) :, None])[:, 0]

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores:
        with torch.inference_mode():
            return np.stack([self._logprobs(inputs, one).cpu().numpy() for one in tokens])

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float:
        self.model.zero_grad(set_to_none=True)
        for one, before, advantage in zip(tokens, torch.from_numpy(old), advantages.tolist(), strict=True):
            ratio = (self._logprobs(inputs, one) - before.to(self.peer.device)).mean().exp()
            clipped = ratio.clamp(1 - CLIP[0], 1 + CLIP[1])
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            (loss / len(tokens)).backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).item()


def video_prompt(config: Config, length: int, seed: int = 0, grid: tuple[int, int] = GRID) -> Inputs:
    """Returns a prompt of `length` tokens, nearly all of them of a video; some are left for a question."""
    pair = grid[0] * grid[1] // config.vision.merge_unit + 5  # what `prompt` puts around a pair included
    return prompt(config, length, frame_pairs=(length - min(length // 4, 64)) // pair, grid=grid, seed=seed)


def random_advantages(group: int, seed: int) -> Advantages:
    return group_advantages(np.random.default_rng(seed).random(group, np.float32))


def check(sides: Mapping[str, Side], config: Config) -> None:
    """Compares log-probabilities and gradients of the sides, for the same tokens of a small prompt.

    Raises:
        UserError: where they differ; no figure is shown then.
    """
    inputs = video_prompt(config, 128, grid=(8, 8))
    (first, ours), *others = sides.items()
    tokens, advantages = ours.sample(inputs, 3, 16, seed=1), random_advantages(3, seed=1)
    logp = ours.logprobs(inputs, tokens)
    # An old policy whose ratios are outside of the clip, some of them on the side where it acts.
    old = logp + np.array([[1e-3], [-1e-3], [2e-4]], np.float32)
    norm = ours.gradient(inputs, tokens, old, advantages)
    for name, side in others:
        error = float(np.abs(side.logprobs(inputs, tokens) - logp).max())
        relative = abs(side.gradient(inputs, tokens, old, advantages) / norm - 1)
        if not (error <= 1e-4 and relative <= 1e-3):
            raise UserError(
                f"GSPO: no speed is shown because '{name}' differs from '{first}': log-probabilities by "
                f"{error:.1e} (1e-4 is allowed), the gradient's norm by {relative:.1e} of it (1e-3)"
            )


def step(
    side: Side, inputs: Inputs, group: int, length: int, seed: int, updated: int
) -> dict[str, np.ndarray]:
    """Returns wall and processor seconds [2] of each phase; `updated` is how many responses are updated."""
    seconds, last = {}, _clocks()

    def lap(name: str) -> None:
        nonlocal last
        now = _clocks()
        seconds[name], last = now - last, now

    tokens = side.sample(inputs, group, length, seed)[:updated]
    lap("sample")
    old = side.logprobs(inputs, tokens)
    lap("logprobs")
    side.gradient(inputs, tokens, old, random_advantages(group, seed)[:updated])
    lap("gradient")
    return seconds


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def bound(ours: Ours, inputs: Inputs, group: int, length: int) -> dict[str, int]:
    """Returns the operations of a step of ours, by phase, as `experiments.flops` counts them."""
    model, decoding = (jax.eval_shape(lambda m: m, m) for m in (ours.model, decoder(ours.model)))
    prompts, batch = collate(inputs, ours.config), ours.pack(inputs, np.ones((group, length), np.int32))
    copies, rows = 1 if ours.shared else group, len(batch.sequence)
    batch = dataclasses.replace(batch, advantages=batch.sequence[..., 0], logp_old=batch.response_ids)
    batch = _rows(batch)[0]
    counts = sequence_counts(batch)
    # Every sample reads the whole of its prompt and room for its response at every step, shared or not.
    _, cache = jax.eval_shape(functools.partial(prefill, new_tokens=length), decoding, prompts)
    one = flops(
        lambda model, tokens, cache: model.logits(extend(model, tokens, cache)[0]),
        decoding, np.zeros(1, np.int32), cache,
    )  # fmt: skip
    return {
        "sample": copies * flops(lambda m, b: prefill(m, b, length), decoding, prompts)
        + group * (length - 1) * one,
        "logprobs": rows * flops(_logprobs, model, batch),
        "gradient": rows * flops(_gradient, model, batch, counts),
    }


def measure_gspo(
    folder: Path,
    rounds: int,
    *,
    cases: Sequence[tuple[int, int, int]] = CASES,
    length: int = RESPONSE,
) -> Iterator[dict[str, Any]]:
    """Yields a row for each case.

    Raises:
        UserError: if the sides do not compute the same.
    """
    sides = {"ours": Ours(folder, shared=True), "off": Ours(folder, shared=False), "theirs": Loop(folder)}
    config = sides["ours"].config
    check(sides, config)
    for size, group, most in cases:
        inputs = video_prompt(config, size)
        visual = int(inputs["mm_token_type_ids"].astype(bool).sum())
        row: dict[str, Any] = {"prompt": size, "visual": visual, "group": group, "response": length}
        updated = {"ours": group, "off": 1, "theirs": group}
        # Compiles; torch has nothing to compile, and is warm since the check.
        first = {n: step(sides[n], inputs, group, length, 0, updated[n]) for n in ("ours", "off")}
        found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in sides}
        for number in range(min(rounds, most)):
            for name, side in sides.items():
                found[name].append(step(side, inputs, group, length, number, updated[name]))
        totals = {}
        for name, steps in found.items():
            times = {"sample": 1} | dict.fromkeys(PHASES[1:], group // updated[name])
            median = {p: float(np.median([s[p][0] for s in steps])) for p in PHASES}
            totals[name] = np.array([sum(s[p] * times[p] for p in PHASES) for s in steps])
            row[f"{name}_seconds"] = totals[name][:, 0].tolist()
            row[f"{name}_phases"] = {p: median[p] * times[p] for p in PHASES}
            if name in first:
                row[f"{name}_compile"] = float(sum(first[name][p][0] - median[p] for p in PHASES))
        for name in ("theirs", "off"):
            ratios = totals[name] / totals["ours"]
            row[f"{name}_ratio"], row[f"{name}_cpu_ratio"] = np.median(ratios, axis=0).tolist()
            row[f"{name}_range"] = [float(ratios[:, 0].min()), float(ratios[:, 0].max())]
        row["flops"] = {name: bound(sides[name], inputs, group, length) for name in ("ours", "off")}
        row["bound"] = sum(row["flops"]["off"].values()) / sum(row["flops"]["ours"].values())
        yield row


def show_gspo(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the rows: the sides, then the phases of their steps."""
    table = Table(title="GSPO step, seconds and ratios: medians (min-max)")
    columns = ("prompt + responses", "ours", "torch", "torch / ours", "CPU time", "target", "aim", "", "off")
    for heading in columns + ("off / on", "CPU time", "by FLOPs", "compiled or loaded, on + off"):
        table.add_column(heading, justify="right")
    phases = Table("prompt, G", "", *PHASES, title="Seconds of the phases (TFLOP)")

    def ratio(row: Mapping[str, Any], name: str) -> str:
        low, high = row[f"{name}_range"]
        return f"{row[f'{name}_ratio']:.2f} ({low:.2f}-{high:.2f})"

    for row in rows:
        medians = {name: float(np.median(row[f"{name}_seconds"])) for name in ("ours", "off", "theirs")}
        factor = row["theirs_ratio"]
        table.add_row(
            f"{row['prompt']} + {row['group']} x {row['response']}",
            f"{medians['ours']:.1f}", f"{medians['theirs']:.1f}", ratio(row, "theirs"),
            f"{row['theirs_cpu_ratio']:.2f}", f"{TARGET:.1f}", f"{AIM:.1f}",
            "aim" if factor >= AIM else "ok" if factor >= TARGET else "missed",
            f"{medians['off']:.1f}", ratio(row, "off"), f"{row['off_cpu_ratio']:.2f}", f"{row['bound']:.2f}",
            f"{row['ours_compile']:.0f} + {row['off_compile']:.0f}",
        )  # fmt: skip
        for name in medians:
            counted = row["flops"].get(name, {})
            cells = [
                f"{row[f'{name}_phases'][p]:.2f}" + (f" ({counted[p] / 1e12:.3f})" if counted else "")
                for p in PHASES
            ]
            phases.add_row(f"{row['prompt']}, {row['group']}", name, *cells)
    console.print(table)
    console.print(phases)
