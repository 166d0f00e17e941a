"""The train step of two micro-batches, by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from o3jax.train.state import init_state, make_train_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slope:
    """A model of one weight vector."""

    text: jax.Array


def test_a_step_by_hand_traces_its_loss_once():
    """Tracing a deep model takes seconds, so micro-batches must not cost it again."""
    traced = []

    def loss(model, batch, counts, runtime):
        traced.append(batch.shape)
        total = (model.text * batch).sum()
        return total / counts["text"], {"text": total}

    optimizer = optax.sgd(0.5)
    state = init_state(Slope(jnp.ones(2)), optimizer)
    step = make_train_step(loss, optimizer, lambda batch: {"text": jnp.float32(batch.size)})
    state, metrics = step(state, jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    assert traced == [(2,)]
    assert metrics["loss"] == metrics["text"] == 10 / 4
    assert state.model.text.tolist() == [1 - 0.5 * 4 / 4, 1 - 0.5 * 6 / 4]
