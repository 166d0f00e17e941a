"""Question matching on its own: relevance at all rates, and proposals that stay as they were.

The tower, the temporal encoder and the decoder are frozen, so F is what it was. What is trained is the
question encoder, which the proposals start from as well: their queries are held where they were, by a penalty
on how far they move. So what the decoder says stays, but for what it may search.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from o3jax.models.batch import MatchingBatch
from o3jax.models.layers import linear
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sft.evidence import relevance_loss
from o3jax.sft.joint import by_question
from o3jax.train.state import Metrics


class Matching(nnx.Module):
    """The parts of a model's evidence modules that are trained, beside the model as it was (`FROZEN`)."""

    def __init__(self, model: Qwen3VL):
        self.model = model
        copied = jax.tree.map(jnp.copy, (model.evidence.question, model.evidence.decoder.question_in))
        self.question, self.question_in = copied

    def trained(self) -> Qwen3VL:
        """Returns the model with the trained parts in place."""
        self.model.evidence.question = self.question
        self.model.evidence.decoder.question_in = self.question_in
        return self.model


FROZEN = ("model",)


def matching_counts(batch: MatchingBatch) -> Metrics:
    """Returns what each of `matching_loss`'s sums counts."""
    known = jnp.asarray(batch.known)
    relevant, other = (known & batch.inside).sum(), (known & ~batch.inside).sum()
    asked = known.any(-1).sum()
    counts = {"relevance": asked, "moved": asked, "missed": relevant, "false": other}
    return {name: count.astype(jnp.float32) for name, count in counts.items()}


def matching_loss(
    matching: Matching,
    batch: MatchingBatch,
    counts: Metrics,
    runtime: Runtime = Runtime(),
    *,
    keep: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of relevance and of how far the queries of proposals moved, and sums to log.

    Logged are, beside the two, the shares of relevant pairs below and of others above a probability of 0.5.

    Args:
        keep: weight of the proposals' moving: squared, relative to their queries' mean square.
    """
    model = matching.model
    ids = by_question(batch.questions.ids)
    embeddings, valid = model.text.embedded(jnp.maximum(ids, 0)), ids >= 0
    dense = model.encode_dense(batch.dense, runtime)
    question = matching.question(embeddings, valid, runtime)
    relevance = matching.question.relevance(question, dense)
    inside, known = by_question(batch.inside), by_question(batch.known)
    relevance_sum, _ = relevance_loss(relevance, inside, known)

    before = model.evidence.question(embeddings, valid, runtime)
    before = linear(before, model.evidence.decoder.question_in[...])
    moved = jnp.square(linear(question, matching.question_in[...]) - before).sum(-1)
    moved = moved / jnp.square(before).sum(-1).mean()
    moved = jnp.where(known.any(-1), moved, 0.0).sum()

    loss = relevance_sum / counts["relevance"] + keep * moved / counts["moved"]
    high = relevance > 0
    sums = {
        "relevance": relevance_sum,
        "moved": moved,
        "missed": (known & inside & ~high).sum().astype(jnp.float32),
        "false": (known & ~inside & high).sum().astype(jnp.float32),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)
