"""Token losses that never hold [S, V] logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from o3jax.models.qwen3_vl import Batch, Qwen3VL
from o3jax.sft.state import Metrics

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
    batch, size, width = hidden.shape
    front = jnp.argsort(labels == IGNORE, axis=1, stable=True)
    hidden = jnp.take_along_axis(hidden, front[..., None], axis=1)
    labels = jnp.take_along_axis(labels, front, axis=1)
    pad = -size % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, pad)), constant_values=IGNORE)
    hidden = hidden.reshape(batch, -1, chunk, width).swapaxes(0, 1)
    labels = labels.reshape(batch, -1, chunk).swapaxes(0, 1)

    return _sums(hidden, head, labels, soft_targets)


@jax.custom_vjp
def _sums(hidden: Array, head: Array, labels: Array, soft_targets: Array | None) -> dict[str, Array]:
    return _over_chunks(hidden, head, labels, soft_targets, with_gradients=False)[0]


def _sums_fwd(hidden: Array, head: Array, labels: Array, soft_targets: Array | None) -> tuple:
    # The gradients of the loss are made where its logits are at hand; later they are only scaled.
    sums, (dhidden, dhead) = _over_chunks(hidden, head, labels, soft_targets, with_gradients=True)
    return sums, (dhidden, dhead.astype(head.dtype))


def _sums_bwd(gradients: tuple[Array, Array], cotangents: dict[str, Array]) -> tuple:
    return *((cotangents["loss"] * gradient).astype(gradient.dtype) for gradient in gradients), None, None


_sums.defvjp(_sums_fwd, _sums_bwd)


def _over_chunks(
    hidden: Float[Array, "chunks B chunk D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "chunks B chunk"],
    soft_targets: Float[Array, "V V"] | None,
    *,
    with_gradients: bool,
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """Returns the sums and, if wanted, the gradients of `loss` by hidden (its dtype) and head (float32)."""

    def step(index: Array, carry: tuple) -> tuple:
        sums, gradients = carry
        x, y = hidden[index], labels[index]
        mask, target = y != IGNORE, jnp.maximum(y, 0)
        logits = (x @ head).astype(jnp.float32)
        logits -= logits.max(-1, keepdims=True)
        exp = jnp.exp(logits)
        total = exp.sum(-1)
        if soft_targets is None:
            wanted, weight = target[..., None] == jnp.arange(head.shape[1]), 1.0
            nll = jnp.log(total) - jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        else:
            wanted = jnp.asarray(soft_targets)[target]
            weight = wanted.sum(-1)
            nll = jnp.log(total) * weight - jnp.einsum("bsv,bsv->bs", wanted, logits)
        new = {
            "loss": jnp.sum(nll * mask),
            "correct": jnp.sum((jnp.argmax(logits, -1) == target) & mask).astype(jnp.float32),
            "tokens": jnp.sum(mask).astype(jnp.float32),
        }
        if with_gradients:
            dlogits = exp * (mask * weight / total)[..., None] - wanted * mask[..., None]
            dlogits = dlogits.astype(x.dtype)
            dx = jax.lax.dot_general(dlogits, head, (((2,), (1,)), ((), ())))
            dw = jnp.einsum("bsd,bsv->dv", x, dlogits, preferred_element_type=jnp.float32)
            gradients = (gradients[0].at[index].set(dx), gradients[1] + dw)
        return jax.tree.map(jnp.add, sums, new), gradients

    zero = dict.fromkeys(("loss", "correct", "tokens"), jnp.float32(0))
    gradients = (jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)) if with_gradients else ()
    used = (labels != IGNORE).any((1, 2)).sum()  # the chunks with labels are in front
    return jax.lax.fori_loop(0, used, step, (zero, gradients))


def text_loss(
    model: Qwen3VL,
    batch: Batch,
    counts: Metrics,
    *,
    soft_targets: Float[Array, "V V"] | None = None,
    kernel: str = "xla",
    remat: str = "none",
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the token loss of a batch with `labels`, per token of `token_counts`, and sums to log."""
    seen = model.see(batch, kernel=kernel, remat=remat)
    hidden = model.hidden(batch, seen, kernel=kernel, remat=remat)
    sums = cross_entropy(hidden, model.text.head(), batch["labels"], soft_targets=soft_targets)
    return sums["loss"] / counts["text"], {"text": sums["loss"], "accuracy": sums["correct"]}


def token_counts(batch: Batch) -> Metrics:
    """Returns how many tokens each of `text_loss`'s sums counts."""
    tokens = (jnp.asarray(batch["labels"]) != IGNORE).sum().astype(jnp.float32)
    return {"text": tokens, "accuracy": tokens, "tokens": tokens}


def number_targets(
    vocab_size: int, kinds: Sequence[tuple[Mapping[int, float], float]]
) -> Float[np.ndarray, "V V"]:
    """Returns target distributions per token: one-hot, but for numbers a bell over their neighbours.

    Args:
        vocab_size: V.
        kinds: for each kind of number its tokens (id -> value) and the bell's standard deviation in
            the same unit; a deviation of 0 leaves that kind one-hot.
    """
    table = np.eye(vocab_size, dtype=np.float32)
    for values_of, deviation in kinds:
        if not deviation or not values_of:
            continue
        ids, values = np.array(list(values_of)), np.array(list(values_of.values()))
        bell = np.exp(-0.5 * np.square((values[:, None] - values[None]) / deviation))
        table[np.ix_(ids, ids)] = bell / bell.sum(1, keepdims=True)
    return table
