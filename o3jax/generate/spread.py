"""Rollouts on several devices: prompts are read as in training, tokens are decoded by rules of their own.

A token of a few sequences is little work for much weight. So in decoding each device keeps its part of every
weight, and of the heads' keys and values; what travels are activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from o3jax.models.batch import Tree
from o3jax.models.layers import unstack
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where the two parts of a rollout live: the same devices, in the same order."""

    prefill: Placement  # the trainer's
    decode: Placement
    kernel: str = "xla"  # of attention, in the prefill

    @property
    def rows(self) -> int:
        """Returns how many prompts are read at a time: one on each device that has rows of its own."""
        return self.prefill.ways("batch")

    def empty(self, make: Callable[[], Tree]) -> Tree:
        """Returns what `make` returns of zeros, made where decoding keeps it."""
        with self.decode.use():
            return jax.jit(make)()

    def everywhere(self, tree: Tree) -> Tree:
        """Returns arrays on each device that decodes; a key is the same on all hosts."""
        where = self.decode.of(())

        def place(x: jax.Array) -> jax.Array:
            if jax.process_count() == 1 or not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.device_put(x, where)
            data = np.asarray(jax.random.key_data(x))  # of this process's devices alone
            return jax.random.wrap_key_data(jax.device_put(data, where), impl=jax.random.key_impl(x))

        return jax.tree.map(place, tree)

    def resident(self, model: Qwen3VL) -> Qwen3VL:
        """Returns the trainer's text model as decoding wants it: layers separate, weights where they stay."""
        return jax.jit(_resident, out_shardings=self.resident_shardings(model))(model)

    def resident_shapes(self, model: Qwen3VL) -> Qwen3VL:
        """Returns the shapes of what `resident` returns."""
        return jax.eval_shape(_resident, model)

    def resident_shardings(self, model: Qwen3VL) -> Qwen3VL:
        """Returns where `resident` puts each array."""

        def where(variable: nnx.Variable) -> nnx.Variable:
            shape = variable.get_value().shape
            axes = variable.get_metadata()["axes"][-len(shape) :]  # without that of stacked layers
            return variable.replace(self.decode.of(shape, *axes))

        return jax.tree.map(where, self.resident_shapes(model), is_leaf=lambda x: isinstance(x, nnx.Variable))


def _resident(model: Qwen3VL) -> Qwen3VL:
    model = jax.tree.map(lambda a: a, model)
    # Not `fused`: side by side, the heads of q, k and v would not lie on a mesh axis each.
    model.text.layers = nnx.List(unstack(model.text.layers))
    model.vision = model.evidence = None
    return model
