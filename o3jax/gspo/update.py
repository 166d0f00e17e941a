"""One policy update: log-probabilities at the responses of packed rows, and the objective of a train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from o3jax.gspo.loss import sequence_losses
from o3jax.gspo.rows import UpdateBatch
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sharding import shard
from o3jax.train.state import Metrics
from o3jax.train.token_loss import IGNORE, token_logprobs


def response_logprobs(
    model: Qwen3VL, batch: UpdateBatch, runtime: Runtime = Runtime(), *, temperature: float = 1.0
) -> Float[Array, "B N T"]:
    """Returns the log-probability of each response token of `pack_groups`'s rows, float32; 0 outside.

    With the update's `runtime` the graph of the update itself: what `gspo_objective` wants as `logp_old` and
    `logp_ref`.

    Args:
        temperature: that the responses were sampled at: of the distribution that they came from.
    """
    return shard(_response_scores(model, batch, runtime, temperature)[0], "batch", None, None)


def _response_scores(
    model: Qwen3VL, batch: UpdateBatch, runtime: Runtime, temperature: float
) -> tuple[Float[Array, "B N T"], Float[Array, "B N T"]]:
    """Returns the log-probabilities and, without gradient, the entropies of the response tokens."""
    inputs = batch.inputs
    hidden = model.hidden(inputs.text, model.encode_visuals(inputs, runtime), runtime)
    index = rearrange(batch.response_index, "b n t -> b (n t) 1")
    labels = jnp.where(batch.response_mask, batch.response_ids, IGNORE)
    states = jnp.take_along_axis(hidden, index, axis=1)
    if temperature != 1:  # the head has no bias: these are its logits by the temperature
        states = states / temperature
    scores = token_logprobs(
        states, model.text.head(), rearrange(labels, "b n t -> b (n t)"), chunk=runtime.loss_chunk
    )
    return tuple(rearrange(x, "b (n t) -> b n t", n=labels.shape[1]) for x in scores)


def gspo_objective(
    model: Qwen3VL,
    batch: UpdateBatch,
    counts: Metrics,
    runtime: Runtime = Runtime(),
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    ratio: str = "sequence",
    kl_coef: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of update rows, per sequence of `sequence_counts`, and sums to log.

    A `LossFn` of `o3jax.train.state.make_train_step`. Logged are `clip_fraction`, `ratio` and its mean
    distance from 1 `ratio_spread`, `approx_kl`, `entropy`, and `kl` with a reference; see `sequence_losses`.

    Args:
        batch: rows of `pack_groups` with advantages and `logp_old` (not needed for the ratio "one"), and
            `logp_ref` where there is a reference. To mask a truncated response,
            clear its `response_mask`: it contributes 0 and stays in the denominator.
        counts: of `sequence_counts`, over all micro-batches.
        clip_low, clip_high, ratio, kl_coef: see `sequence_losses`.
        temperature: that the responses were sampled at, see `response_logprobs`.

    Raises:
        ValueError: if the ratio needs `logp_old` and there is none.
    """
    if batch.logp_old is None and ratio != "one":
        raise ValueError(f"the ratio '{ratio}' compares with logp_old, which the batch does not have")
    logp, entropy = _response_scores(model, batch, runtime, temperature)

    def flat(x: Array) -> Array:
        return rearrange(x, "b n ... -> (b n) ...")

    mask = flat(jnp.asarray(batch.response_mask))
    losses, aux = sequence_losses(
        flat(logp),
        flat(jax.lax.stop_gradient(logp) if ratio == "one" else jnp.asarray(batch.logp_old)),
        mask,
        flat(jnp.asarray(batch.advantages)),
        clip_low,
        clip_high,
        ratio=ratio,
        logp_ref=None if batch.logp_ref is None else flat(jnp.asarray(batch.logp_ref)),
        kl_coef=kl_coef,
    )
    aux["ratio_spread"] = jnp.abs(aux["ratio"] - 1)
    aux["clip_fraction"] = aux.pop("clipped")
    scored = mask.any(-1)
    sums = {name: jnp.sum(value, where=scored) for name, value in aux.items()}
    return losses.sum() / counts["sequences"], sums | {"entropy": entropy.sum()}


def sequence_counts(batch: UpdateBatch) -> Metrics:
    """Returns what each of `gspo_objective`'s sums counts.

    `sequences` is the loss's denominator, masked responses included; `scored_sequences` have tokens.
    """
    mask = jnp.asarray(batch.response_mask)

    def count(x: Array) -> Array:
        return x.sum().astype(jnp.float32)

    sequences, scored, tokens = count(batch.sequence[..., 0] >= 0), count(mask.any(-1)), count(mask)
    counts = {"sequences": sequences, "scored_sequences": scored, "tokens": tokens, "entropy": tokens}
    counts |= {"clip_fraction": sequences, "ratio": scored, "ratio_spread": scored, "approx_kl": scored}
    return counts | ({} if batch.logp_ref is None else {"kl": scored})
