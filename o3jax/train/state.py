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

    Where the loss or the norm is no finite number, the state stays as it was, its step too.

    Args:
        frozen: parts of the model ("vision", "text", "evidence") that stay as they are, without
            gradients or optimizer state.
        shardings: of the state, on a mesh. Without them the compiler chooses where the new state lives, and
            compiles the step once more for a state that lives there.
    """

    def loss_of(trained: nnx.Module, fixed: nnx.Module, batch: Batch, counts: Metrics) -> Any:
        model = jax.tree.map(lambda a: a.astype(runtime.dtype), _join(trained, fixed))
        return loss_fn(model, batch, counts, runtime)

    grad_fn = jax.jit(jax.value_and_grad(loss_of, has_aux=True), inline=True)  # traced once, see `_summed`

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, fixed = _split(state.model, frozen)
        counted, counts = _counted(count_fn, batch)
        (loss, sums), grads = _summed(lambda one: grad_fn(trained, fixed, one, counts), batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics = _means(loss, sums, counted, counts) | {"grad_norm": optax.tree.norm(grads)}
        new = state.step + 1, optax.apply_updates(trained, updates), opt_state
        old = state.step, trained, state.opt_state
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        number, trained, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return TrainState(number, _join(trained, fixed), opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_evaluation(
    loss_fn: LossFn, count_fn: CountFn, runtime: Runtime = Runtime()
) -> Callable[[nnx.Module, Batch], tuple[Metrics, Metrics]]:
    """Returns a jitted function of a model and micro-batches: what a train step logs of them but for the norm
    of the gradient, and what each mean is of. Nothing is changed."""

    def evaluation(model: nnx.Module, batch: Batch) -> tuple[Metrics, Metrics]:
        model = jax.tree.map(lambda a: a.astype(runtime.dtype), model)
        counted, counts = _counted(count_fn, batch)
        loss, sums = _summed(lambda one: loss_fn(model, one, counts, runtime), batch)
        return _means(loss, sums, counted, counts), counted

    return jax.jit(evaluation)


def _counted(count_fn: CountFn, batch: Batch) -> tuple[Metrics, Metrics]:
    """Returns what micro-batches count together, and the same as it divides: at least 1."""
    counted = jax.tree.map(lambda a: a.sum(0), jax.vmap(count_fn)(batch))
    return counted, jax.tree.map(lambda a: jnp.maximum(a, 1.0), counted)


def _summed(of_micro: Callable[[Batch], Any], batch: Batch) -> Any:
    """Returns the sum of what a function returns for each micro-batch."""

    def add(total: Any, one: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_micro(one)), None

    shapes = jax.eval_shape(of_micro, jax.tree.map(lambda a: a[0], batch))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    # A loop of one step costs XLA:CPU copies of all that the backward pass keeps.
    alone = len(jax.tree.leaves(batch)[0]) == 1
    return jax.lax.scan(add, zero, batch, unroll=alone)[0]


def _means(loss: Array, sums: Metrics, counted: Metrics, counts: Metrics) -> Metrics:
    metrics = {"loss": loss} | {name: value / counts[name] for name, value in sums.items()}
    return metrics | {name: count for name, count in counted.items() if name not in sums}
