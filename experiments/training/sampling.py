"""Prompts -> completions: the first part of an iteration of GSPO."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.prompts import with_text
from o3jax.errors import UserError
from o3jax.generate.group import sample_groups
from o3jax.generate.sampling import Sampling, StopStrings
from o3jax.generate.spread import Spread
from o3jax.inference.locate import ReadFrames, frames_nearest, proposals
from o3jax.inference.matching import match
from o3jax.inference.respond import encode_visuals
from o3jax.inputs.dense import SingleFrames
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, Features, PromptBatch
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures, visual_features
from o3jax.models.text import for_decoding
from o3jax.prompts import grammar, templates
from o3jax.prompts.feedback import with_proposals
from o3jax.sharding import own_rows, place_rows
from o3jax.train.lora import merged


@dataclasses.dataclass(frozen=True)
class Sampled:
    """G completions of each of B prompts, and the prompts as the model read them."""

    prompts: PromptBatch  # where the tower is frozen `with_features`
    # What `encode_visuals` made of their pixels, and what boxes are read from beside them; in no file.
    visuals: VisualFeatures | None
    read_frames: ReadFrames | None
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
    """Returns the model as generation wants it: its layers separate, adapters merged."""
    model = merged(model)
    model.text.layers = for_decoding(model.text.layers)
    return model


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How prompts are continued."""

    processor: Processor
    sampling: Sampling
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()  # strings that end a completion too
    slots: int | None = None  # prompts that are sampled at a time; None is all
    box_step: int = 1  # of proposals in the prompt
    frozen_tower: bool = False
    spread: Spread | None = None  # over several devices

    def sample(
        self,
        policy: Qwen3VL,
        prompts: PromptBatch,
        samples: Sequence[Sample | None],
        sources: Sequence[SingleFrames | None],
        key: jax.Array,
        group_size: int,
    ) -> Sampled:
        """Returns completions of prompt rows; each video is encoded once, whatever the size of the group.

        Args:
            policy: layers stacked.
            samples: what the prompts ask, None where the clip could not be read.
            sources: what boxes are read from, of `MakePrompt.single_frames`.
        """
        model = merged(policy) if self.spread else decoder(policy)
        visuals = encode_visuals(model, self._placed(prompts.inputs))
        if self.frozen_tower:
            prompts = with_features(prompts, visuals, self.spread)  # the tower need not run again
        read_frames = None
        if any(sources):
            patches = prompts.inputs.places.centres.shape[2] * model.config.vision.merge_unit
            read_frames = functools.partial(frames_nearest, self.processor, model, sources, patches)
        if model.config.evidence is not None and model.config.evidence.feedback == "prompt":
            inputs = prompts.inputs
            found = proposals(model, match(model, inputs, visuals), visuals, read_frames)
            prompts = with_text(prompts, self._asked(prompts, samples, found))
        read = prompts
        if self.spread and not self.frozen_tower:
            read = with_features(prompts, visuals, self.spread)
        out = sample_groups(
            model,
            read.inputs,
            key,
            group_size=group_size,
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.eos_ids,
            pad_id=self.processor.tokenizer.pad_token_id,
            sampling=self.sampling,
            visuals=None if self.spread else visuals,
            slots=self.slots,
            spread=self.spread,
            stop=StopStrings(self.stop, self.processor.decode) if self.stop else None,
        )
        return Sampled(prompts, visuals, read_frames, out.tokens, out.logprobs, out.length, out.finished)

    def read_again(self, policy: Qwen3VL, prompts: PromptBatch) -> PromptBatch:
        """Returns the prompts as `sample` reads them, but for the text."""
        if not self.frozen_tower:
            return prompts
        model = merged(policy) if self.spread else decoder(policy)
        return with_features(prompts, encode_visuals(model, self._placed(prompts.inputs)), self.spread)

    def _placed(self, inputs: Batch) -> Batch:
        """Returns prompts where their devices are; those that these cannot share evenly stay on the host."""
        if self.spread is None or len(inputs.text.input_ids) * jax.process_count() % self.spread.rows:
            return inputs
        pixels = dataclasses.replace(inputs, text=None, questions=None)
        return place_rows(pixels, self.spread.prefill.mesh)

    def texts(self, sampled: Sampled) -> list[list[str]]:
        """Returns what each completion says, whole: with what its prompt had begun of it."""
        text, tokenizer = sampled.prompts.inputs.text, self.processor.tokenizer
        begun = [
            templates.begun_by(tokenizer, ids[there > 0])
            for ids, there in zip(text.input_ids, text.segment_ids, strict=True)
        ]
        return [
            [grammar.whole(self.processor.decode(tokens), begins) for tokens in group]
            for group, begins in zip(sampled.responses(), begun, strict=True)
        ]

    def _asked(
        self, prompts: PromptBatch, samples: Sequence[Sample | None], found: Sequence[Sequence[Any]]
    ) -> list[list[int]]:
        """Returns the tokens behind each prompt's last frame, with the proposals after the question."""
        text, texts, tokenizer = prompts.inputs.text, [], self.processor.tokenizer
        for row, (one, mine) in enumerate(zip(samples, found, strict=True)):
            start, end = int(prompts.start[row]), int((text.segment_ids[row] > 0).sum())
            ids = text.input_ids[row, start:end].tolist()
            if one is not None:
                asked = tokenizer.quoted_decode(ids)
                # As its tokens say it: a tokenizer may write a character in another way (NFC).
                question = tokenizer.quoted_decode(tokenizer(tokenizer.quoted(one.question))["input_ids"])
                before, found_it, after = asked.rpartition(question)
                if not found_it:
                    raise UserError(f"{one.id}: its question is not in its prompt as the tokenizer writes it")
                ids = tokenizer(before + with_proposals(question, mine, self.box_step) + after)["input_ids"]
            texts.append(ids)
        return texts


def with_features(prompts: PromptBatch, visuals: VisualFeatures, spread: Spread | None = None) -> PromptBatch:
    """Returns prompt rows that carry what a frozen tower made of them, in place of their patches."""
    length = prompts.inputs.patches.length
    values = visual_features(visuals.tokens, visuals.taps, length.shape[1])
    values = own_rows(values, spread.prefill.mesh) if spread else np.asarray(values)
    inputs = dataclasses.replace(prompts.inputs, patches=None, features=Features(values, length))
    return dataclasses.replace(prompts, inputs=inputs)
