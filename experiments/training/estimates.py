"""What the evidence modules say of the claims in sampled completions, for rewards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from experiments.training.rollouts import Updates
from experiments.training.sampling import Sampled
from o3jax.grounding import Grounding
from o3jax.inference.locate import locate
from o3jax.inference.matching import match
from o3jax.inputs.collate import bucket
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.prompts import grammar
from o3jax.prompts.mentions import claim_numbers, mention_positions


def estimates_of(
    model: Qwen3VL, processor: Processor, updates: Updates, sampled: Sampled
) -> list[list[list[Grounding]]]:
    """Returns the evidence modules' estimate for each claim of each completion.

    Args:
        model: in the dtype that the update computes in, layers stacked.
    """
    responses = sampled.responses()
    places = [[mention_positions(processor.tokenizer, ids) for ids in group] for group in responses]
    count, group = sampled.tokens.shape[:2]
    capacity = bucket(max(1, *(len(found) for mine in places for found in mine)))
    states = np.zeros((count, group, capacity, model.config.text.hidden_size), np.float32)
    for part in updates.parts(sampled):
        batch = updates.pack(sampled, part)
        at = np.zeros((*batch.sequence.shape[:2], capacity), np.int32)
        here, there = batch.places()
        for row, number, prompt, one in zip(*here, *there, strict=True):
            found = np.array(places[part][prompt][one], np.int32)
            # A completion's first token stands where its second one is predicted.
            at[row, number, : len(found)] = batch.response_index[row, number, 1] + found
        states[part][there] = updates.own(_states(model, *updates.placed((batch.inputs, at))))[here]
    candidates = match(model, sampled.prompts.inputs, sampled.visuals).candidates
    valid = np.array([[len(found) for found in mine] for mine in places])[..., None] > np.arange(capacity)
    guess = locate(
        model,
        sampled.visuals,
        np.repeat(candidates, group, axis=0),
        sampled.read_frames,
        states=states.reshape(count * group, capacity, -1),
        valid=valid.reshape(count * group, capacity),
    )

    def of_completion(at: int, ids: list[int]) -> list[Grounding]:
        text = processor.decode(ids)
        claims = grammar.parse(text).claims
        numbers = claim_numbers(text, [claim.span for claim in claims])
        return [
            Grounding(c.object, float(guess.time_s[at, m]), boxes=(tuple(guess.box[at, m].tolist()),))
            for c, m in zip(claims, numbers, strict=True)
        ]

    return [
        [of_completion(row * group + number, ids) for number, ids in enumerate(mine)]
        for row, mine in enumerate(responses)
    ]


@jax.jit
def _states(model: Qwen3VL, batch: Batch, at: Int[Array, "B N M"]) -> Float[Array, "B N M D"]:
    """Returns the final-norm hidden states at positions of the rows."""
    hidden = model.hidden(batch.text, model.encode_visuals(batch))
    states = jnp.take_along_axis(hidden, rearrange(at, "b n m -> b (n m) 1"), axis=1)
    return rearrange(states, "b (n m) d -> b n m d", n=at.shape[1])
