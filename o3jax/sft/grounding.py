"""Grounding warm-up of the vision tower: what stands where, read from each language token alone.

From scratch, a decoder learns to ground text late, because it must learn to see first. This stage
teaches the tower to see on its own: a linear head on each merged token names the object that covers
it. The head is thrown away afterwards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from o3jax.models.batch import GroundingBatch
from o3jax.models.layers import Initializer
from o3jax.models.runtime import Runtime
from o3jax.models.vision import VisionTower
from o3jax.train.state import Metrics


class GroundedTower(nnx.Module):
    """A vision tower with the linear head that the warm-up trains it through."""

    def __init__(self, tower: VisionTower, colors: int, shapes: int, init: Initializer):
        self.tower = tower
        self.colors, self.shapes = colors, shapes
        # objectness, two frames of presence, box, colour, shape; one head per DeepStack tap too, so
        # that what the decoder adds later is as informative as the tokens themselves.
        taps = 1 + len(tower.config.deepstack_visual_indexes)
        outputs = 1 + 2 + 4 + colors + shapes
        self.head = init.weight((taps, tower.config.out_hidden_size, outputs), (None, "embed", None))
        self.head_bias = init.bias((taps, outputs), (None, None))


def known_counts(batch: GroundingBatch) -> Metrics:
    """Returns how many tokens each of `grounding_loss`'s sums counts: those that are clearly something."""
    known = (jnp.asarray(batch.object) >= 0).sum().astype(jnp.float32)
    names = ("color_error", "shape_error", "box_error", "present_loss", "object_error", "tokens")
    return dict.fromkeys(names, known)


def grounding_loss(
    model: GroundedTower, batch: GroundingBatch, counts: Metrics, runtime: Runtime = Runtime()
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss per language token of `known_counts`, and the sums to log.

    Attributes count only where a token is covered.
    """
    tokens, taps = model.tower(batch.patches, runtime)
    features = jnp.concatenate([tokens[None], taps])
    logits = jnp.einsum("xbtd,xdo->xbto", features, model.head[...]) + model.head_bias[...][:, None, None]
    borders = (1, 3, 7, 7 + model.colors)
    objectness, present, box, color, shape = jnp.split(logits, borders, axis=-1)

    known = (batch.object >= 0).astype(jnp.float32)
    covered = (batch.object == 1).astype(jnp.float32)
    bce = optax.sigmoid_binary_cross_entropy

    def ce(logits: Array, labels: Array) -> Array:
        labels = jnp.broadcast_to(labels, logits.shape[:-1])  # one row of logits per tap
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    terms = {
        "object": known * bce(objectness[..., 0], covered),
        "present": covered * bce(present, batch.present).mean(-1),
        "box": covered * jnp.abs(box - batch.box).mean(-1),
        "color": covered * ce(color, batch.color),
        "shape": covered * ce(shape, batch.shape),
    }
    scale = known.sum() / jnp.maximum(covered.sum(), 1.0)  # so that rare attributes weigh as objectness
    weights = {"object": 1.0, "present": scale, "box": 20 * scale, "color": scale, "shape": scale}
    loss = sum((weights[name] * term).mean(0).sum() for name, term in terms.items())
    hits = {"color": color, "shape": shape}
    sums = {
        f"{k}_error": scale * (covered * (v[0].argmax(-1) != getattr(batch, k))).sum()
        for k, v in hits.items()
    }
    sums |= {"box_error": scale * terms["box"][0].sum(), "present_loss": scale * terms["present"][0].sum()}
    sums["object_error"] = (known * ((objectness[0, ..., 0] > 0) != covered)).sum()
    return loss / counts["object_error"], jax.tree.map(jax.lax.stop_gradient, sums)
