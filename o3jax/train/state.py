"""The train state, the optimizer that a config names, and the step that both training stages share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float, Int

from o3jax.models.runtime import Runtime

Batch = Any  # arrays of micro-batches: one of the types of `o3jax.models.batch`, or `o3jax.gspo.rows`
Metrics = dict[str, Float[Array, ""]]
# What each sum of a loss counts, from the data alone.
CountFn = Callable[[Batch], Metrics]
# (model, batch, counts of the large batch, runtime) -> (loss, sums to log). Losses and sums of micro-batches
# add up to those of the large batch, because they are divided by its counts.
LossFn = Callable[[nnx.Module, Batch, Metrics, Runtime], tuple[Float[Array, ""], Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    model: nnx.Module
    opt_state: optax.OptState


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, frozen: Sequence[str] = ()
) -> TrainState:
    """Returns the state before the first step; `frozen` as in `make_train_step`."""
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(_split(model, frozen)[0]))


def _split(model: nnx.Module, frozen: Sequence[str]) -> tuple[nnx.Module, nnx.Module]:
    """Returns the model twice, with None in place of what is frozen and of what is not."""

    def part(keep_frozen: bool) -> nnx.Module:
        def choose(path: tuple, leaf: Array) -> Array | None:
            return leaf if (path[0].name in frozen) == keep_frozen else None

        return jax.tree_util.tree_map_with_path(choose, model)

    return part(False), part(True)


def _join(trained: nnx.Module, frozen: nnx.Module) -> nnx.Module:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    count_fn: CountFn,
    runtime: Runtime = Runtime(),
    *,
    frozen: Sequence[str] = (),
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a jitted step; the given state is donated.

    Batches have a leading axis of micro-batches. What each term of the loss counts is summed over it
    first and the gradients are then only added, so accumulation equals the large batch whatever the
    micro-batches hold. Parameters stay float32; the forward pass runs in the runtime's dtype. Metrics are the
    means of the loss's sums, the loss, the norm of its gradient, and counts that no sum has the name of.

    Args:
        frozen: parts of the model ("vision", "text", "evidence") that stay as they are, without
            gradients or optimizer state.
        shardings: of the state, on a mesh. Without them the compiler chooses where the new state lives, and
            compiles the step once more for a state that lives there.
    """

    def loss_of(trained: nnx.Module, fixed: nnx.Module, batch: Batch, counts: Metrics) -> Any:
        model = jax.tree.map(lambda a: a.astype(runtime.dtype), _join(trained, fixed))
        return loss_fn(model, batch, counts, runtime)

    grad_fn = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, fixed = _split(state.model, frozen)
        counted = jax.tree.map(lambda a: a.sum(0), jax.vmap(count_fn)(batch))
        counts = jax.tree.map(lambda a: jnp.maximum(a, 1.0), counted)  # what divides

        def micro(total: Any, one: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad_fn(trained, fixed, one, counts)), None

        first = jax.tree.map(lambda a: a[0], batch)
        shapes = jax.eval_shape(lambda: grad_fn(trained, fixed, first, counts))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        # A loop of one step costs XLA:CPU copies of all that the backward pass keeps.
        alone = len(jax.tree.leaves(batch)[0]) == 1
        ((loss, sums), grads), _ = jax.lax.scan(micro, zero, batch, unroll=alone)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics = {"loss": loss} | {name: value / counts[name] for name, value in sums.items()}
        metrics |= {name: count for name, count in counted.items() if name not in sums}
        metrics["grad_norm"] = optax.tree.norm(grads)
        model = _join(optax.apply_updates(trained, updates), fixed)
        return TrainState(state.step + 1, model, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
