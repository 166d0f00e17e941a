"""Question matching on its own: relevance at all rates, while what the decoder says stays about as it was.

The tower and the decoder are frozen. What is trained is the question encoder, which the proposals start from
as well, and the temporal encoder, whose features the decoder reads as well. The proposals' queries, and the
features of dense streams, are held where they were, by penalties on how far they move.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from o3jax.models.batch import DenseStream, Features, MatchingBatch
from o3jax.models.layers import linear
from o3jax.models.qwen3_vl import Qwen3VL, dense_tokens
from o3jax.models.runtime import Runtime
from o3jax.sft.evidence import relevance_loss
from o3jax.sft.joint import by_question
from o3jax.train.state import Metrics


class Matching(nnx.Module):
    """The parts of a model's evidence modules that are trained, beside the model as it was (`FROZEN`)."""

    def __init__(self, model: Qwen3VL):
        self.model = model
        modules = model.evidence
        copied = (modules.temporal, modules.question, modules.decoder.question_in)
        self.temporal, self.question, self.question_in = jax.tree.map(jnp.copy, copied)

    def trained(self) -> Qwen3VL:
        """Returns the model with the trained parts in place."""
        self.model.evidence.temporal = self.temporal
        self.model.evidence.question = self.question
        self.model.evidence.decoder.question_in = self.question_in
        return self.model


FROZEN = ("model",)
_DENSE_S = 0.2  # between frame pairs of a dense stream, at most


def matching_counts(batch: MatchingBatch) -> Metrics:
    """Returns what each of `matching_loss`'s sums counts."""
    known = jnp.asarray(batch.known)
    relevant, other = (known & batch.inside).sum(), (known & ~batch.inside).sum()
    asked, held = known.any(-1).sum(), _held(batch.dense).sum()
    counts = {"relevance": asked, "moved": asked, "features": held, "missed": relevant, "false": other}
    return {name: count.astype(jnp.float32) for name, count in counts.items()}


def _held(dense: DenseStream) -> Bool[Array, "B T"]:
    """Returns the frame pairs whose features the decoder may read: those of dense streams."""
    steps = jnp.asarray(dense.times)[:, 1] - jnp.asarray(dense.times)[:, 0]
    return (jnp.asarray(dense.length) > 0) & (steps < _DENSE_S)[:, None]


def matching_loss(
    matching: Matching, batch: MatchingBatch, counts: Metrics, runtime: Runtime = Runtime(), *, keep: float
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of relevance and of what is held, and sums to log.

    Logged are, beside these, the shares of relevant pairs below and of others above a probability of 0.5.

    Args:
        keep: weight of either movement: squared, relative to the mean square of what moved.
    """
    model = matching.model
    ids = by_question(batch.questions.ids)
    embeddings, valid = model.text.embedded(jnp.maximum(ids, 0)), ids >= 0
    stream, held = batch.dense, _held(batch.dense)
    if stream.features is None:
        features = Features(dense_tokens(model.vision, stream.patches, runtime), stream.length)
        stream = dataclasses.replace(stream, patches=None, features=features)
    old = model.encode_dense(stream, runtime).features
    before = model.evidence.question(embeddings, valid, runtime)
    before = linear(before, model.evidence.decoder.question_in[...])
    model.evidence.temporal = matching.temporal
    dense = model.encode_dense(stream, runtime)
    there = held[:, :, None] & dense.cell_valid[:, None]
    norms = jnp.where(there, jnp.square(old).mean(-1), 1.0)  # what is padding may be zeros
    features = jnp.where(there, jnp.square(dense.features - old).mean(-1) / norms, 0.0).sum(-1)
    features = (features / jnp.maximum(there.sum(-1), 1)).sum()

    question = matching.question(embeddings, valid, runtime)
    relevance = matching.question.relevance(question, dense)
    inside, known = by_question(batch.inside), by_question(batch.known)
    relevance_sum, _ = relevance_loss(relevance, inside, known)

    moved = jnp.square(linear(question, matching.question_in[...]) - before).sum(-1)
    moved = moved / jnp.square(before).sum(-1).mean()
    moved = jnp.where(known.any(-1), moved, 0.0).sum()

    loss = relevance_sum / counts["relevance"]
    loss += keep * (moved / counts["moved"] + features / counts["features"])
    high = relevance > 0
    sums = {
        "relevance": relevance_sum,
        "moved": moved,
        "features": features,
        "missed": (known & inside & ~high).sum().astype(jnp.float32),
        "false": (known & ~inside & high).sum().astype(jnp.float32),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)
