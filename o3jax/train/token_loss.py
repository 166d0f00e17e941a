"""Token losses that never hold [S, V] logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

IGNORE = -100


def cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "B S"],
    *,
    soft_targets: Float[Array, "V V"] | None = None,
    chunk: int = 64,
) -> dict[str, Float[Array, ""]]:
    """Returns float32 sums over the labelled positions: `loss` (nats), `correct` and `tokens`.

    `labels[b, s]` is the token that position s predicts (already shifted), `IGNORE` elsewhere. The
    logits exist for `chunk` positions at a time, forward and backward, and only where there are
    labels: each row's labelled positions are gathered in front, and chunks without any are skipped.

    Args:
        soft_targets: row v replaces the one-hot target of token v. The tiny model uses it to tell
            neighbouring numbers apart from wrong ones (see `number_targets`).
    """
    chunks = _Chunks.of(labels, chunk)
    return _sums(chunks.split(hidden), head, chunks.split(labels, IGNORE), soft_targets)


def token_logprobs(
    hidden: Float[Array, "B S D"], head: Float[Array, "D V"], labels: Int[Array, "B S"], *, chunk: int = 64
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Returns each label's log-probability and the entropy (nats) of what it was chosen from, float32.

    0 where the label is `IGNORE`. Logits exist as in `cross_entropy`, but the backward pass makes them
    again: what a log-probability weighs is known only then. The entropy has no gradient.
    """
    chunks = _Chunks.of(labels, chunk)
    logp, entropy = _logprobs(chunks.split(hidden), head, chunks.split(labels, IGNORE))
    return chunks.join(logp), chunks.join(jax.lax.stop_gradient(entropy))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """An order in which each row's labelled positions are in front, cut into equal parts."""

    order: Int[Array, "B S"]
    size: int

    @classmethod
    def of(cls, labels: Int[Array, "B S"], size: int) -> _Chunks:
        return cls(jnp.argsort(labels == IGNORE, axis=1, stable=True), size)

    def split(self, x: Array, fill: int = 0) -> Array:
        """Returns [B, S, ...] as [chunks, B, chunk, ...]."""
        x = jnp.take_along_axis(x, self.order.reshape(*self.order.shape, *[1] * (x.ndim - 2)), axis=1)
        pad = [(0, 0), (0, -x.shape[1] % self.size)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=fill)
        return rearrange(x, "b (n c) ... -> n b c ...", c=self.size)

    def join(self, x: Float[Array, "chunks B chunk"]) -> Float[Array, "B S"]:
        """Returns what `split` was given."""
        x = rearrange(x, "n b c -> b (n c)")[:, : self.order.shape[1]]
        return jnp.take_along_axis(x, jnp.argsort(self.order, axis=1), axis=1)


@jax.custom_vjp
def _sums(hidden: Array, head: Array, labels: Array, soft_targets: Array | None) -> dict[str, Array]:
    return _summed(labels, _over_chunks(hidden, head, labels, soft_targets)[0])


def _summed(labels: Array, tokens: dict[str, Array]) -> dict[str, Array]:
    count = (labels != IGNORE).sum().astype(jnp.float32)
    return {"loss": tokens["nll"].sum(), "correct": tokens["correct"].sum(), "tokens": count}


def _sums_fwd(hidden: Array, head: Array, labels: Array, soft_targets: Array | None) -> tuple:
    # The gradients of the loss are made where its logits are at hand; later they are only scaled.
    weights = (labels != IGNORE).astype(jnp.float32)
    tokens, gradients = _over_chunks(hidden, head, labels, soft_targets, weights)
    return _summed(labels, tokens), gradients


def _sums_bwd(gradients: tuple[Array, Array], cotangents: dict[str, Array]) -> tuple:
    return *((cotangents["loss"] * gradient).astype(gradient.dtype) for gradient in gradients), None, None


_sums.defvjp(_sums_fwd, _sums_bwd)


@jax.custom_vjp
def _logprobs(hidden: Array, head: Array, labels: Array) -> tuple[Array, Array]:
    tokens, _ = _over_chunks(hidden, head, labels)
    return -tokens["nll"], tokens["entropy"]


def _logprobs_fwd(hidden: Array, head: Array, labels: Array) -> tuple:
    return _logprobs(hidden, head, labels), (hidden, head, labels)


def _logprobs_bwd(inputs: tuple[Array, Array, Array], cotangents: tuple[Array, Array]) -> tuple:
    hidden, head, labels = inputs
    weights = jnp.where(labels != IGNORE, -cotangents[0], 0)
    return *_over_chunks(hidden, head, labels, None, weights)[1], None


_logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


def _over_chunks(
    hidden: Float[Array, "chunks B chunk D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "chunks B chunk"],
    soft_targets: Float[Array, "V V"] | None = None,
    weights: Float[Array, "chunks B chunk"] | None = None,
) -> tuple[dict[str, Float[Array, "chunks B chunk"]], tuple[Array, ...]]:
    """Returns each token's negative log-likelihood `nll` and whether it is the most probable, `correct`.

    Without `weights` also its `entropy`; with them the gradients, by hidden and by head in their dtypes,
    of the sum of nll times weights. All is 0 where there is no label.
    """

    def step(index: Array, carry: tuple) -> tuple:
        tokens, gradients = carry
        x, y = hidden[index], labels[index]
        mask, target = y != IGNORE, jnp.maximum(y, 0)
        logits = jnp.matmul(x, head, preferred_element_type=jnp.float32)
        logits -= logits.max(-1, keepdims=True)
        exp = jnp.exp(logits)
        total = exp.sum(-1)
        if soft_targets is None:
            wanted, mass = target[..., None] == jnp.arange(head.shape[1]), 1.0
            nll = jnp.log(total) - jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        else:
            wanted = jnp.asarray(soft_targets)[target]
            mass = wanted.sum(-1)
            nll = jnp.log(total) * mass - jnp.einsum("bsv,bsv->bs", wanted, logits)
        new = {"nll": nll, "correct": jnp.argmax(logits, -1) == target}
        if weights is None:
            new["entropy"] = jnp.log(total) - jnp.sum(exp * logits, -1) / total
        else:
            weight = weights[index]
            dlogits = exp * (weight * mass / total)[..., None] - wanted * weight[..., None]
            dlogits = dlogits.astype(x.dtype)
            dx = jax.lax.dot_general(dlogits, head, (((2,), (1,)), ((), ())))
            dw = jnp.einsum("bsd,bsv->dv", x, dlogits, preferred_element_type=jnp.float32)
            gradients = (gradients[0].at[index].set(dx), gradients[1] + dw)
        put = {name: tokens[name].at[index].set(jnp.where(mask, value, 0)) for name, value in new.items()}
        return put, gradients

    names = ("nll", "correct") + (("entropy",) if weights is None else ())
    zero = {name: jnp.zeros(labels.shape, jnp.float32) for name in names}
    gradients = () if weights is None else (jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32))
    used = (labels != IGNORE).any((1, 2)).sum()  # the chunks with labels are in front
    tokens, gradients = jax.lax.fori_loop(0, used, step, (zero, gradients))
    return tokens, (gradients[0], gradients[1].astype(head.dtype)) if gradients else ()
