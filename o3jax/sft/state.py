"""The train state, the optimizer that a config names, and the step that both training stages share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers

from o3jax.errors import UserError
from o3jax.models.qwen3_vl import Batch

Metrics = dict[str, Float[Array, ""]]
# What each sum of a loss counts, from the data alone.
CountFn = Callable[[Batch], Metrics]
# (model, batch, counts of the large batch) -> (loss, sums to log). Losses and sums of micro-batches add up
# to those of the large batch, because they are divided by its counts.
LossFn = Callable[[nnx.Module, Batch, Metrics], tuple[Float[Array, ""], Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    model: nnx.Module
    opt_state: optax.OptState


SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(
    kind: str, peak: float, steps: int, warmup_steps: int = 0, final_fraction: float = 0.0
) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up, then `constant`, `linear` or `cosine` decay.

    Raises:
        UserError: if `kind` is none of `SCHEDULES`.
    """
    decay_steps = max(steps - warmup_steps, 1)
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final_fraction, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, final_fraction),
    }
    if kind not in decays:
        raise UserError(f"config.lr_scheduler_type is '{kind}'; choose one of {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return decays[kind]
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), decays[kind]], [warmup_steps]
    )


OPTIMIZERS = ("adamw", "muon")
_MUON_RMS = (
    0.4  # of an update at learning rate 1; 0.2 is AdamW's usual one, a small model learns faster with more
)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    max_grad_norm: float,
    b2: float = 0.999,
    kind: str = "adamw",
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer `kind` with gradient clipping; matrices decay, norms and biases do not.

    `muon` (Jordan et al. 2024) orthogonalises the momentum of every projection, scaled so that AdamW's
    learning rates fit. Embeddings, the head, norms and biases stay with AdamW (Nesterov's, in optax),
    which here decays nothing.

    Args:
        rates: for parts of the model ("vision", "text", "evidence") a factor on the learning rate.

    Raises:
        UserError: if `kind` is none of `OPTIMIZERS`.
    """

    def matrices(model: nnx.Module) -> Any:
        def decays(path: tuple, _: Array) -> bool:
            name = jax.tree_util.keystr(path)
            return not any(part in name for part in ("norm", "bias"))

        return jax.tree_util.tree_map_with_path(decays, model)

    if kind == "adamw":
        rule = optax.adamw(schedule, b1=0.9, b2=b2, weight_decay=weight_decay, mask=matrices)
    elif kind == "muon":
        rule = optax.contrib.muon(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=matrices,
            adam_b2=b2,
            consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=functools.partial(jax.tree_util.tree_map_with_path, _projection),
        )
    else:
        raise UserError(f"config.optimizer is '{kind}'; choose one of {', '.join(OPTIMIZERS)}")

    def scaled(path: tuple, update: Array) -> Array:
        return update * (rates or {}).get(path[0].name, 1.0)

    by_part = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), rule, by_part)


def _projection(path: tuple, weight: Array) -> MuonDimensionNumbers | None:
    """Returns which axes of a weight are its inputs and outputs, None for what is no projection.

    Axes in front stack layers, experts, or q, k and v: each of them is orthogonalised on its own.
    """
    name = next(key.name for key in reversed(path) if getattr(key, "name", "value") != "value")
    if name in ("embed", "pos_embed", "lm_head", "head") or name.endswith(("norm", "scale", "bias")):
        return None
    last = weight.ndim - 1
    if name in ("q", "k", "v", "qkv"):  # [..., D, heads, H], [..., D, 3, heads, H]
        return MuonDimensionNumbers(last - (3 if name == "qkv" else 2), (last - 1, last))
    if name in ("o", "out"):  # [..., heads, H, D]
        return MuonDimensionNumbers((last - 2, last - 1), last)
    return MuonDimensionNumbers(last - 1, last)


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
    *,
    frozen: Sequence[str] = (),
    dtype: jnp.dtype = jnp.float32,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a jitted step; the given state is donated.

    Batches have a leading axis of micro-batches. What each term of the loss counts is summed over it
    first and the gradients are then only added, so accumulation equals the large batch whatever the
    micro-batches hold. Parameters stay float32; the forward pass runs in `dtype`. Metrics are the means
    of the loss's sums, the loss, the norm of its gradient, and counts that no sum has the name of.

    Args:
        frozen: parts of the model ("vision", "text", "evidence") that stay as they are, without
            gradients or optimizer state.
        shardings: of the state, on a mesh. Without them the compiler chooses where the new state lives, and
            compiles the step once more for a state that lives there.
    """

    def loss_of(trained: nnx.Module, fixed: nnx.Module, batch: Batch, counts: Metrics) -> Any:
        model = jax.tree.map(lambda a: a.astype(dtype), _join(trained, fixed))
        return loss_fn(model, batch, counts)

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
