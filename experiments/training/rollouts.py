"""One iteration of reinforcement learning: prompts -> completions, advantages -> minibatches."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.prompts import with_text
from o3jax.errors import UserError
from o3jax.files import write_arrays
from o3jax.generate.group import sample_groups
from o3jax.generate.sampling import Sampling, StopStrings
from o3jax.grounding import Grounding
from o3jax.gspo.rows import UpdateBatch, UpdateShape, pack_groups
from o3jax.gspo.update import response_logprobs
from o3jax.inference.locate import ReadFrames, frames_nearest, locate, proposals
from o3jax.inference.respond import encode_visuals
from o3jax.inference.search import search
from o3jax.inputs.collate import bucket
from o3jax.inputs.dense import SingleFrames
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, Features, PromptBatch, TextRow, flatten, take, unflatten
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures, visual_features
from o3jax.models.text import for_decoding
from o3jax.prompts import grammar
from o3jax.prompts.feedback import with_proposals
from o3jax.prompts.mentions import claim_numbers, mention_positions


@dataclasses.dataclass(frozen=True)
class Sampled:
    """G completions of each of B prompts, and the prompts as the model read them."""

    prompts: PromptBatch  # where the tower is frozen `with_features`
    visuals: (
        VisualFeatures | None
    )  # what `encode_visuals` made of their pixels; not saved, nor is `read_frames`
    read_frames: ReadFrames | None  # that boxes are read from, where the model does
    tokens: Int[np.ndarray, "B G T"]
    logprobs: Float[np.ndarray, "B G T"]  # of the sampler
    length: Int[np.ndarray, "B G"]
    finished: Bool[np.ndarray, "B G"]

    def responses(self) -> list[list[list[int]]]:
        """Returns the tokens of each completion, its end included."""
        return [
            [tokens[:n].tolist() for tokens, n in zip(*group, strict=True)]
            for group in zip(self.tokens, self.length, strict=True)
        ]


@jax.jit
def decoder(model: Qwen3VL) -> Qwen3VL:
    """Returns the model as generation wants it: its layers separate."""
    model = jax.tree.map(lambda a: a, model)
    model.text.layers = for_decoding(model.text.layers)
    return model


def sample(
    model: Qwen3VL,
    processor: Processor,
    config: ConfigDict,
    prompts: PromptBatch,
    samples: Sequence[Sample | None],
    sources: Sequence[SingleFrames | None],
    key: jax.Array,
    *,
    group_size: int,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
) -> Sampled:
    """Returns completions of prompt rows; each video is encoded once, whatever the size of the group.

    Args:
        model: of `decoder`.
        samples: what the prompts ask, None where the clip could not be read.
        sources: what boxes are read from, of `MakePrompt.source`.
    """
    visuals: VisualFeatures = encode_visuals(model, prompts.inputs)
    if not config.lr_multipliers.vision:
        prompts = with_features(prompts, visuals)  # the tower need not run again
    read_frames = None
    if any(sources):
        patches = prompts.inputs.places.centres.shape[2] * model.config.vision.merge_unit
        read_frames = functools.partial(frames_nearest, processor, model, sources, patches)
    if model.config.evidence is not None and model.config.evidence.feedback == "prompt":
        inputs = prompts.inputs
        found = proposals(model, search(model, inputs, visuals), visuals, read_frames)
        prompts = with_text(prompts, _asked(processor, prompts, samples, found, config.box_step))
    out = sample_groups(
        model,
        prompts.inputs,
        key,
        group_size=group_size,
        max_new_tokens=config.max_completion_length,
        eos_ids=eos_ids,
        pad_id=processor.tokenizer.pad_token_id,
        sampling=sampling,
        visuals=visuals,
        slots=config.rollout_slots or None,
        stop=StopStrings(tuple(config.stop), processor.decode) if config.stop else None,
    )
    return Sampled(prompts, visuals, read_frames, out.tokens, out.logprobs, out.length, out.finished)


def with_features(prompts: PromptBatch, visuals: VisualFeatures) -> PromptBatch:
    """Returns prompt rows that carry what a frozen tower made of them, in place of their patches."""
    length = prompts.inputs.patches.length
    values = np.asarray(visual_features(visuals.tokens, visuals.taps, length.shape[1]))
    inputs = dataclasses.replace(prompts.inputs, patches=None, features=Features(values, length))
    return dataclasses.replace(prompts, inputs=inputs)


def _asked(
    processor: Processor,
    prompts: PromptBatch,
    samples: Sequence[Sample | None],
    found: Sequence[Sequence[Any]],
    box_step: int,
) -> list[list[int]]:
    """Returns the tokens behind each prompt's last frame, with the proposals after the question."""
    text, texts = prompts.inputs.text, []
    for row, (one, mine) in enumerate(zip(samples, found, strict=True)):
        start, end = int(prompts.start[row]), int((text.segment_ids[row] > 0).sum())
        ids = text.input_ids[row, start:end].tolist()
        if one is not None:
            tokenizer = processor.tokenizer
            asked = tokenizer.decode(ids, skip_special_tokens=False)
            # As its tokens say it: a tokenizer may write a character in another way (NFC).
            question = tokenizer.decode(tokenizer(one.question)["input_ids"], skip_special_tokens=False)
            before, found_it, after = asked.rpartition(question)
            if not found_it:
                raise UserError(f"{one.id}: its question is not in its prompt as the tokenizer writes it")
            ids = tokenizer(before + with_proposals(question, mine, box_step) + after)["input_ids"]
        texts.append(ids)
    return texts


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the optimizer steps of one iteration need; saved, so that a run goes on inside an iteration."""

    sampled: Sampled
    advantages: Float[np.ndarray, "B G"]
    logp_old: Float[np.ndarray, "B G T"]  # of the trainer, before the iteration's first step
    logp_ref: Float[np.ndarray, "B G T"] | None
    metrics: dict[str, float]

    def save(self, path: Path) -> None:
        """Writes all but the prompts' pixels or features, which are read or made again."""
        s = self.sampled
        arrays = flatten(s.prompts.inputs.text, "text")
        arrays |= {"tokens": s.tokens, "logprobs": s.logprobs, "length": s.length, "finished": s.finished}
        arrays |= {"advantages": self.advantages, "logp_old": self.logp_old}
        if self.logp_ref is not None:
            arrays["logp_ref"] = self.logp_ref
        write_arrays(path, metrics=json.dumps(self.metrics), **arrays)

    @classmethod
    def load(cls, path: Path, prompts: PromptBatch) -> Rollout:
        """Returns what `save` wrote, with the pixels or features of `prompts`."""
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
        inputs = dataclasses.replace(prompts.inputs, text=unflatten(TextRow, arrays, "text"))
        names = ("tokens", "logprobs", "length", "finished")
        return cls(
            Sampled(
                dataclasses.replace(prompts, inputs=inputs), None, None, *(arrays[name] for name in names)
            ),
            arrays["advantages"],
            arrays["logp_old"],
            arrays.get("logp_ref"),
            json.loads(arrays["metrics"].item()),
        )


@dataclasses.dataclass(frozen=True)
class Updates:
    """How completions become rows of the update."""

    model: Config
    shape: UpdateShape
    multiple: int  # of rows: micro-batches times the devices that share one
    mask_truncated: bool

    def pack(self, sampled: Sampled, part: slice) -> UpdateBatch:
        """Returns the update rows of some of the prompts."""
        prompts = take(sampled.prompts.inputs, part)
        responses = sampled.responses()[part]
        batch = pack_groups(prompts, responses, self.model, self.shape)
        rows = len(batch.sequence)
        if rows % self.multiple:
            rows += -rows % self.multiple
            batch = pack_groups(prompts, responses, self.model, self.shape, rows=rows)
        counted = batch.by_sequence(self.counted(sampled)[part])[..., None]
        return dataclasses.replace(batch, response_mask=batch.response_mask & counted)

    def counted(self, sampled: Sampled) -> Bool[np.ndarray, "B G"]:
        """Returns which completions the update is made of: not those about a clip that could not be read."""
        read = sampled.prompts.number >= 0
        return (sampled.finished | (not self.mask_truncated)) & read[:, None]

    def wider(self, more: int) -> Updates:
        """Returns itself with room for so many more completions in each row."""
        length, sequences = self.shape.length + more * self.shape.response, self.shape.sequences + more
        shape = dataclasses.replace(self.shape, length=length, sequences=sequences)
        return dataclasses.replace(self, shape=shape)

    def minibatch(self, rollout: Rollout, part: slice) -> UpdateBatch:
        """Returns what `gspo_objective` reads of some of the prompts."""
        batch, ref = self.pack(rollout.sampled, part), rollout.logp_ref
        return dataclasses.replace(
            batch,
            advantages=batch.by_sequence(rollout.advantages[part]).astype(np.float32),
            logp_old=batch.by_sequence(rollout.logp_old[part]),
            logp_ref=None if ref is None else batch.by_sequence(ref[part]),
        )

    def logprobs(
        self, model: Qwen3VL, sampled: Sampled, parts: Sequence[slice]
    ) -> Float[np.ndarray, "B G T"]:
        """Returns the trainer's log-probabilities [B, G, T] of the completions, 0 behind their ends."""
        out = np.zeros(sampled.tokens.shape, np.float32)
        for part in parts:
            batch = self.pack(sampled, part)
            found = np.asarray(_logprobs(model, batch))
            for row, number in zip(*np.nonzero(batch.sequence[..., 0] >= 0), strict=True):
                prompt, one = batch.sequence[row, number]
                out[part][prompt, one] = found[row, number]
        return out


@jax.jit
def _logprobs(model: Qwen3VL, batch: UpdateBatch) -> Float[Array, "B N T"]:
    return response_logprobs(model, batch)


def decoder_evidence(
    model: Qwen3VL, processor: Processor, updates: Updates, sampled: Sampled, parts: Sequence[slice]
) -> list[list[list[Grounding]]]:
    """Returns what the evidence modules say of each completion's claims.

    Args:
        model: in the dtype that the update computes in, layers stacked.
        parts: the prompts of each minibatch.
    """
    responses = sampled.responses()
    places = [[mention_positions(processor.tokenizer, ids) for ids in group] for group in responses]
    count, group = sampled.tokens.shape[:2]
    capacity = bucket(max(1, *(len(found) for mine in places for found in mine)))
    states = np.zeros((count, group, capacity, model.config.text.hidden_size), np.float32)
    for part in parts:
        batch = updates.pack(sampled, part)
        at = np.zeros((*batch.sequence.shape[:2], capacity), np.int32)
        there = list(zip(*np.nonzero(batch.sequence[..., 0] >= 0), strict=True))
        for row, number in there:
            prompt, one = batch.sequence[row, number]
            found = places[part][prompt][one]
            # A completion's first token stands where its second one is predicted.
            at[row, number, : len(found)] = batch.response_index[row, number, 1] + np.array(found, np.int32)
        read = np.asarray(_states(model, batch.inputs, at))
        for row, number in there:
            prompt, one = batch.sequence[row, number]
            states[part][prompt, one] = read[row, number]
    candidates = search(model, sampled.prompts.inputs, sampled.visuals).candidates
    valid = np.array([[len(found) for found in mine] for mine in places])[..., None] > np.arange(capacity)
    guess = locate(
        model,
        sampled.visuals,
        np.repeat(candidates, group, axis=0),
        sampled.read_frames,
        states=states.reshape(count * group, capacity, -1),
        valid=valid.reshape(count * group, capacity),
    )
    evidence: list[list[list[Grounding]]] = []
    for row, mine in enumerate(responses):
        evidence.append([])
        for number, ids in enumerate(mine):
            text, at = processor.decode(ids), row * group + number
            claims = grammar.parse(text).claims
            numbers = claim_numbers(text, [claim.span for claim in claims])
            evidence[-1].append(
                [
                    Grounding(c.object, float(guess.time_s[at, m]), boxes=(tuple(guess.box[at, m].tolist()),))
                    for c, m in zip(claims, numbers, strict=True)
                ]
            )
    return evidence


@jax.jit
def _states(model: Qwen3VL, batch: Batch, at: Int[Array, "B N M"]) -> Float[Array, "B N M D"]:
    """Returns the final-norm hidden states at positions of the rows."""
    hidden = model.hidden(batch.text, model.encode_visuals(batch))
    states = jnp.take_along_axis(hidden, rearrange(at, "b n m -> b (n m) 1"), axis=1)
    return rearrange(states, "b (n m) d -> b n m d", n=at.shape[1])


class Stopwatch:
    """Seconds of the phases of an iteration."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"], self._last = now - self._last, now
