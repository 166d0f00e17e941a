"""Several sampled responses to one question: the video is encoded once, its prompt is prefilled and stored
once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from o3jax.generate.group import sample_groups
from o3jax.generate.sampler import Ending, Generated
from o3jax.generate.sampling import Sampling
from o3jax.inference.respond import Steps, encode_visuals
from o3jax.models.batch import Batch, TextRow, take
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures


def sampling_steps(count: int, sampling: Sampling, seed: int) -> Steps:
    """Returns the steps that make of `count` requests that are the same as many samples, with which
    `o3jax.inference.respond.respond` returns responses with the evidence decoder's estimates.

    The decoder's queries are the hidden states of one more pass over the texts, which are those that
    generation would have recorded.
    """

    def encode(model: Qwen3VL, batch: Batch) -> VisualFeatures:
        one = encode_visuals(model, take(batch, slice(0, 1)))
        return _repeated(one, count)

    def generate(
        model: Qwen3VL,
        batch: Batch,
        ending: Ending,
        visuals: VisualFeatures,
    ) -> Generated:
        row = take(batch.text, slice(0, 1))
        alone = VisualFeatures(visuals.tokens[:1], visuals.taps[:, :1], None, None)
        out = sample_groups(
            model,
            Batch(row),
            jax.random.key(seed),
            group_size=count,
            max_new_tokens=ending.max_new_tokens,
            eos_ids=ending.eos_ids,
            pad_id=ending.pad_id,
            sampling=sampling,
            visuals=alone,
        )
        tokens = out.tokens[0]
        states = text_states(model, row, alone, tokens)
        return Generated(tokens, out.logprobs[0], out.length[0], np.asarray(states))

    return Steps(encode=encode, generate=generate)


def _repeated(visuals: VisualFeatures, count: int) -> VisualFeatures:
    def repeat(x: Array, axis: int = 0) -> Array:
        return jnp.repeat(x, count, axis)

    parts = {name: jax.tree.map(repeat, getattr(visuals, name)) for name in ("tokens", "dense", "visual")}
    return dataclasses.replace(visuals, taps=repeat(visuals.taps, 1), **parts)


@jax.jit
def text_states(
    model: Qwen3VL, row: TextRow, visuals: VisualFeatures, tokens: Int[Array, "G T"]
) -> Float[Array, "G T D"]:
    """Returns the final-norm hidden state at each token of texts that follow one prompt.

    Args:
        row: the prompt, one row, padded on either side.
        visuals: of its video.
    """
    count, new = tokens.shape
    filled = row.segment_ids > 0

    def rows(x: Array, more: Array) -> Array:
        return jnp.concatenate([jnp.repeat(x, count, 0), more], axis=-1)

    after = row.next_position[:, None] + jnp.arange(new)
    positions = jnp.broadcast_to(after[:, None], (count, 3, new))
    whole = TextRow(
        input_ids=rows(row.input_ids, jnp.asarray(tokens, row.input_ids.dtype)),
        segment_ids=rows(filled.astype(jnp.int32), jnp.ones((count, new), jnp.int32)),
        positions=rows(row.positions, positions.astype(row.positions.dtype)),
        visual_index=rows(row.visual_index, jnp.full((count, new), -1, row.visual_index.dtype)),
    )
    return model.hidden(whole, _repeated(visuals, count))[:, -new:]
