"""Greedy generation, on the device from the prompt's last token to the last end-of-text."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from o3jax.generate.cache import extend, prefill
from o3jax.generate.loop import repeat_steps
from o3jax.models.batch import Batch, TextRow
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """What was generated; slots after a row's end hold the pad token and a log-probability of 0."""

    tokens: Int[Array, "B new"]
    logprobs: Float[Array, "B new"]  # float32, of each token under the model
    length: Int[Array, " B"]  # tokens of each row, its end-of-text included
    states: Float[Array, "B new D"]  # final-norm hidden state at each token; zero at the last one


@dataclasses.dataclass(frozen=True)
class Ending:
    """Where a text ends, and what it should not repeat; static, so that each makes programs of its own."""

    max_new_tokens: int  # at the latest
    eos_ids: tuple[int, ...]  # the tokens that end it
    pad_id: int  # stands behind the end
    # Other than 1: the logits of tokens that stand before, in the prompt too, are divided by it where
    # positive and multiplied where negative, as transformers does (Keskar et al. 2019); `logprobs` stay the
    # model's own.
    repetition_penalty: float = 1.0


def greedy(model: Qwen3VL, batch: Batch, ending: Ending, visuals: VisualFeatures | None = None) -> Generated:
    """Returns the most probable continuation of each row, token by token, until every row has ended.

    The model's layers must be separate (`for_decoding`); prompts may be padded on either side. `visuals`
    saves computing again what `model.encode_visuals` returned for the batch.
    """
    if visuals is not None:  # what the evidence modules read has no part in the program
        batch, visuals = Batch(batch.text), dataclasses.replace(visuals, dense=None, visual=None)
    return _generate(model, batch, visuals, ending)


def most_probable(
    logits: Float[Array, "*rows V"], there: Bool[Array, "*rows V"] | None, penalty: float
) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"]]:
    """Returns the most probable token, and its log-probability without the penalty.

    Args:
        there: which tokens stand before, and are penalised; None: none.
    """
    logits = logits.astype(jnp.float32)
    logp = jax.nn.log_softmax(logits)
    token = jnp.argmax(logp if there is None else penalised(logits, there, penalty), -1).astype(jnp.int32)
    return token, jnp.take_along_axis(logp, token[..., None], -1)[..., 0]


def penalised(
    logits: Float[Array, "*rows V"], there: Bool[Array, "*rows V"], penalty: float
) -> Float[Array, "*rows V"]:
    """Returns the logits with a penalty on the tokens that stand before, see `Ending`."""
    return jnp.where(there, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


@functools.partial(jax.jit, static_argnames="ending")
def _generate(model: Qwen3VL, batch: Batch, visuals: VisualFeatures | None, ending: Ending) -> Generated:
    limit, pad_id, penalty = ending.max_new_tokens, ending.pad_id, ending.repetition_penalty
    hidden, cache = prefill(model, batch, limit, visuals)
    rows = hidden.shape[0]
    there = None if penalty == 1 else said(batch.text, model.config.text.vocab_size)
    ends = jnp.asarray(ending.eos_ids, jnp.int32)
    out = Generated(
        jnp.full((rows, limit), pad_id, jnp.int32),
        jnp.zeros((rows, limit), jnp.float32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, limit, hidden.shape[-1]), hidden.dtype),
    )

    def choose(
        step: Array, hidden: Array, done: Array, there: Array | None, out: Generated
    ) -> tuple[Array, Array, Array | None, Generated]:
        token, chosen = most_probable(model.logits(hidden), there, penalty)
        token = jnp.where(done, pad_id, token)
        if there is not None:
            there = there.at[jnp.arange(rows), token].set(True)
        out = Generated(
            out.tokens.at[:, step].set(token),
            out.logprobs.at[:, step].set(jnp.where(done, 0.0, chosen)),
            out.length + ~done,
            out.states,
        )
        return token, done | jnp.isin(token, ends), there, out

    def going(carry: tuple) -> Array:
        step, _, done = carry[:3]
        return (step < limit) & ~done.all()

    def body(carry: tuple) -> tuple:
        step, token, done, there, cache, out = carry
        hidden, cache = extend(model, token, cache)
        out = dataclasses.replace(out, states=out.states.at[:, step - 1].set(hidden))
        token, done, there, out = choose(step, hidden, done, there, out)
        return step + 1, token, done, there, cache, out

    token, done, there, out = choose(jnp.int32(0), hidden, jnp.zeros(rows, bool), there, out)
    return repeat_steps(going, body, (jnp.int32(1), token, done, there, cache, out))[-1]


def said(text: TextRow, vocabulary: int) -> Bool[Array, "B V"]:
    """Returns which tokens the prompt of each row holds."""
    ids = jnp.where(text.segment_ids > 0, text.input_ids, vocabulary)
    nothing = jnp.zeros((len(ids), vocabulary), bool)
    return nothing.at[jnp.arange(len(ids))[:, None], ids].set(True, mode="drop")
