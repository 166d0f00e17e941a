"""Token losses that never hold [S, V] logits."""

from __future__ import annotations

import functools
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

    zero = dict.fromkeys(("loss", "correct", "tokens"), jnp.float32(0))

    def sums(x: Array, y: Array) -> dict:
        mask, target = y != IGNORE, jnp.maximum(y, 0)
        logp = jax.nn.log_softmax((x @ head).astype(jnp.float32))
        if soft_targets is None:
            nll = -jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
        else:
            nll = -jnp.einsum("bsv,bsv->bs", jnp.asarray(soft_targets)[target], logp)
        return {
            "loss": jnp.sum(nll * mask),
            "correct": jnp.sum((jnp.argmax(logp, -1) == target) & mask).astype(jnp.float32),
            "tokens": jnp.sum(mask).astype(jnp.float32),
        }

    # Around the condition, not inside of it: what a branch keeps for its gradient, the head among it,
    # would be copied once for every chunk.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(total: dict, xs: tuple[Array, Array]) -> tuple[dict, None]:
        new = jax.lax.cond((xs[1] != IGNORE).any(), sums, lambda x, y: zero, *xs)
        return jax.tree.map(jnp.add, total, new), None

    return jax.lax.scan(one, zero, (hidden, labels))[0]


def text_loss(
    model: Qwen3VL,
    batch: Batch,
    *,
    soft_targets: Float[Array, "V V"] | None = None,
    kernel: str = "xla",
    remat: str = "none",
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the summed token loss of a batch with `labels`, and sums to log: loss, accuracy, tokens."""
    hidden = model.hidden(batch, kernel=kernel, remat=remat)
    sums = cross_entropy(hidden, model.text.head(), batch["labels"], soft_targets=soft_targets)
    sums = {"loss": sums["loss"], "accuracy": sums["correct"], "tokens": sums["tokens"]}
    return sums["loss"], sums


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
