"""The GSPO rows of `python -m experiments.bench`: one step with the prompt once, against once per response.

What a step is, on every side, for one video prompt and a group of G responses of a fixed length:

    sample     G completions, drawn from the model's own distribution; nothing ends one early
    logprobs   of the completions under the model, as the trainer computes them
    gradient   of the GSPO objective at all parameters, vision tower included; advantages are those of
               random rewards. The optimizer does nothing; no gradient checkpointing.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from experiments.bench.inputs import SMALL, Inputs, prompt, tokens_of, write_folder
from experiments.bench.ours import Ours
from experiments.bench.tables import Row, Tables, judged
from experiments.bench.timing import ratios, timed
from experiments.bench.torch_reference import Tensors, Theirs, torch
from experiments.planning.flops import flops
from experiments.training.rollouts import logprobs_of
from experiments.training.sampling import decoder
from o3jax.errors import UserError
from o3jax.generate.cache import extend, prefill
from o3jax.generate.group import sample_groups
from o3jax.gspo.loss import group_advantages
from o3jax.gspo.rows import UpdateBatch, UpdateShape, pack_groups
from o3jax.gspo.update import gspo_objective, sequence_counts
from o3jax.inputs.collate import collate
from o3jax.models.batch import map_arrays, take
from o3jax.models.config import Config
from o3jax.train.state import init_state, make_train_step

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
Phases = Float[np.ndarray, "3 2"]  # seconds of each phase: by the clock, and of processor time


class Way(Protocol):
    """A way to take a step. Results are on the host when a method returns; `gradient` gives its norm."""

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens: ...

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores: ...

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float: ...


class Rows:
    """Our sampler and update; `shared` is whether a group has its prompt once."""

    def __init__(self, side: Ours, shared: bool):
        self.side, self.shared = side, shared
        objective = functools.partial(gspo_objective, clip_low=CLIP[0], clip_high=CLIP[1])
        still = optax.set_to_zero()  # the gradient is all that is wanted
        self.step = make_train_step(objective, still, sequence_counts)
        self.state = init_state(jax.tree.map(jnp.copy, side.model), still)

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens:
        prompts, copies = collate(inputs, self.side.config), 1 if self.shared else group
        out = sample_groups(
            decoder(self.side.model),
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
        config = self.side.config
        prompts = collate(inputs, config)
        size, together = prompts.text.input_ids.shape[1], len(tokens) if self.shared else 1
        _, frame_pairs, patches, _ = prompts.patches.values.shape
        shape = UpdateShape(
            length=size + together * tokens.shape[1],
            frame_pairs=frame_pairs,
            patches=patches,
            sequences=together,
            response=tokens.shape[1],
        )
        return pack_groups(prompts, [tokens], config, shape, repeated=not self.shared)

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores:
        batch = self.pack(inputs, tokens)
        rows = [take(batch, slice(at, at + 1)) for at in range(len(batch.sequence))]
        return np.concatenate([logprobs_of(self.side.model, row) for row in rows]).reshape(tokens.shape)

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float:
        batch = self.pack(inputs, tokens)
        advantages, old = (batch.by_sequence(values[None]) for values in (advantages, old))
        batch = dataclasses.replace(batch, advantages=advantages, logp_old=old)
        self.state, metrics = self.step(self.state, one_by_one(batch))
        return float(metrics["grad_norm"])


def one_by_one(batch: UpdateBatch) -> UpdateBatch:
    """Returns a batch whose rows are processed one after the other, as micro-batches."""
    return map_arrays(lambda array: array[:, None], batch)


@dataclasses.dataclass(frozen=True)
class Loop:
    """The peer: each response is a sequence of its own."""

    side: Theirs

    def sample(self, inputs: Inputs, group: int, length: int, seed: int) -> Tokens:
        torch.manual_seed(seed)
        own = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        ids = self.side.generate(self.side.inputs(inputs), length, num_return_sequences=group, **own)
        return self.side.host(ids)

    def _logprobs(self, inputs: Inputs, tokens: Int[np.ndarray, " T"]) -> torch.Tensor:
        """Returns the log-probabilities [T] of one response, by a forward pass of its whole sequence."""
        ids = np.concatenate([inputs["input_ids"], tokens[None]], axis=1)
        kinds = np.pad(inputs["mm_token_type_ids"], ((0, 0), (0, len(tokens))))
        longer = {"input_ids": ids, "attention_mask": np.ones_like(ids), "mm_token_type_ids": kinds}
        whole: Tensors = self.side.inputs(inputs | longer)
        logits = self.side.run(whole, logits_to_keep=len(tokens) + 1).logits[0, :-1]
        return torch.log_softmax(logits, -1).gather(1, whole["input_ids"][0, -len(tokens) :, None])[:, 0]

    def logprobs(self, inputs: Inputs, tokens: Tokens) -> Scores:
        with torch.inference_mode():
            return np.stack([self.side.host(self._logprobs(inputs, one)) for one in tokens])

    def gradient(self, inputs: Inputs, tokens: Tokens, old: Scores, advantages: Advantages) -> float:
        model = self.side.model
        model.zero_grad(set_to_none=True)
        for one, before, advantage in zip(tokens, torch.from_numpy(old), advantages.tolist(), strict=True):
            ratio = (self._logprobs(inputs, one) - before.to(self.side.device)).mean().exp()
            clipped = ratio.clamp(1 - CLIP[0], 1 + CLIP[1])
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            (loss / len(tokens)).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).item()


def video_prompt(config: Config, length: int, grid: tuple[int, int]) -> Inputs:
    """Returns a prompt of `length` tokens, nearly all of them of a video; some are left for a question."""
    pairs = (length - min(length // 4, 64)) // tokens_of(config, grid)
    return prompt(config, length, pairs, grid)


def random_advantages(group: int, seed: int) -> Advantages:
    return group_advantages(np.random.default_rng(seed).random(group, np.float32))


def check(ways: Mapping[str, Way], config: Config) -> None:
    """Compares log-probabilities and gradients of the ways, for the same tokens of a small prompt.

    Raises:
        UserError: where they differ; no figure is shown then.
    """
    inputs = video_prompt(config, 128, (8, 8))
    (first, ours), *others = ways.items()
    tokens, advantages = ours.sample(inputs, 3, 16, seed=1), random_advantages(3, seed=1)
    logp = ours.logprobs(inputs, tokens)
    # An old policy whose ratios are outside of the clip, some of them on the side where it acts.
    old = logp + np.array([[1e-3], [-1e-3], [2e-4]], np.float32)
    norm = ours.gradient(inputs, tokens, old, advantages)
    for name, way in others:
        error = float(np.abs(way.logprobs(inputs, tokens) - logp).max())
        relative = abs(way.gradient(inputs, tokens, old, advantages) / norm - 1)
        if not (error <= 1e-4 and relative <= 1e-3):
            raise UserError(
                f"GSPO: no speed is shown because '{name}' differs from '{first}': log-probabilities by "
                f"{error:.1e} (1e-4 is allowed), the gradient's norm by {relative:.1e} of it (1e-3)"
            )


def step(way: Way, inputs: Inputs, group: int, updated: int, seed: int, response: int = RESPONSE) -> Phases:
    """Returns the seconds of each phase; `updated` is how many responses are updated."""
    tokens, sampling = timed(way.sample, inputs, group, response, seed)
    tokens, advantages = tokens[:updated], random_advantages(group, seed)[:updated]
    old, scoring = timed(way.logprobs, inputs, tokens)
    return np.stack([sampling, scoring, timed(way.gradient, inputs, tokens, old, advantages)[1]])


def bound(rows: Rows, inputs: Inputs, group: int) -> list[int]:
    """Returns the operations of each phase of a step of ours, as `experiments.planning` counts them."""
    state, model, decoding = (
        jax.eval_shape(lambda tree: tree, tree)
        for tree in (rows.state, rows.side.model, decoder(rows.side.model))
    )
    batch = rows.pack(inputs, np.ones((group, RESPONSE), np.int32))
    batch = dataclasses.replace(batch, advantages=batch.sequence[..., 0], logp_old=batch.response_ids)
    prompts, count = collate(inputs, rows.side.config), len(batch.sequence)
    # Every sample reads the whole of its prompt and room for its response at every step, shared or not.
    _, cache = jax.eval_shape(functools.partial(prefill, new_tokens=RESPONSE), decoding, prompts)
    one = flops(
        lambda model, tokens, cache: model.logits(extend(model, tokens, cache)[0]),
        decoding, np.zeros(1, np.int32), cache,
    )  # fmt: skip
    reading = count * flops(lambda m, b: prefill(m, b, RESPONSE), decoding, prompts)
    return [
        reading + group * (RESPONSE - 1) * one,
        count * flops(logprobs_of, model, take(batch, slice(1))),
        flops(rows.step, state, one_by_one(batch)),
    ]


def measure(scratch: Path, rounds: int) -> Tables:
    """Returns a row for each case, and one for the phases of each side in it.

    Raises:
        UserError: if the sides do not compute the same.
    """
    folder = scratch / "model"
    write_folder(SMALL, folder)
    ours = Ours(folder)
    ways = {"ours": Rows(ours, True), "off": Rows(ours, False), "torch": Loop(Theirs(folder))}
    check(ways, ours.config)
    steps, phases = [], []
    for size, group, most in CASES:
        inputs, case = video_prompt(ours.config, size, GRID), f"{size} + {group} x {RESPONSE}"
        updated = {"ours": group, "off": 1, "torch": group}
        # Compiles; torch has nothing to compile, and is warm since the check.
        first = {name: step(ways[name], inputs, group, updated[name], 0) for name in ("ours", "off")}
        taken = [
            {name: step(way, inputs, group, updated[name], seed) for name, way in ways.items()}
            for seed in range(min(rounds, most))
        ]
        once = {name: np.stack([turn[name] for turn in taken]) for name in ways}  # [rounds, phases, 2]
        times = {name: np.array([1, group // n, group // n])[:, None] for name, n in updated.items()}
        seconds = {name: (once[name] * times[name]).sum(1) for name in ways}
        operations = {name: bound(ways[name], inputs, group) for name in ("ours", "off")}
        compared = ratios(seconds["torch"], seconds["ours"], "torch / ours")
        row: Row = {"prompt + responses": case}
        row |= {f"{name}, s": whole[:, 0].tolist() for name, whole in seconds.items()}
        row |= compared | judged(compared["torch / ours"], TARGET, AIM)
        row |= ratios(seconds["off"], seconds["ours"], "off / ours")
        row["by FLOPs"] = sum(operations["off"]) / sum(operations["ours"])
        for name in ("ours", "off"):
            compiling = first[name] - np.median(once[name], axis=0)
            row[f"{name} compiled or loaded, s"] = float(compiling[:, 0].sum())
        steps.append(row)
        for name in ways:
            medians = np.median(once[name] * times[name], axis=0)[:, 0].tolist()
            row = {"prompt + responses": case, "": name}
            row |= {f"{phase}, s": value for phase, value in zip(PHASES, medians, strict=True)}
            counted = zip(PHASES, operations.get(name, ()), strict=False)
            phases.append(row | {f"{phase}, TFLOP": count / 1e12 for phase, count in counted})
    return {"A GSPO step": steps, "Its phases": phases}
