"""The train state, the optimizer that a config names, and the step that both training stages share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
# (model, batch) -> (the sum of losses, sums to log); `tokens` among the sums is the denominator.
LossFn = Callable[[nnx.Module, Batch], tuple[Float[Array, ""], Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    model: nnx.Module
    opt_state: optax.OptState


def learning_rate(
    kind: str, peak: float, steps: int, warmup_steps: int = 0, final_fraction: float = 0.0
) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up, then `constant`, `linear` or `cosine` decay.

    Raises:
        UserError: if `kind` is none of them.
    """
    decay_steps = max(steps - warmup_steps, 1)
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final_fraction, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, final_fraction),
    }
    if kind not in decays:
        raise UserError(f"config.lr_scheduler_type is '{kind}'; choose one of {', '.join(decays)}")
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
) -> optax.GradientTransformation:
    """Returns the optimizer `kind` with gradient clipping; matrices decay, norms and biases do not.

    `muon` (Jordan et al. 2024) orthogonalises the momentum of every projection, scaled so that AdamW's
    learning rates fit. Embeddings, the head, norms and biases stay with AdamW (Nesterov's, in optax),
    which here decays nothing.

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
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), rule)


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


def init_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, dtype: jnp.dtype = jnp.float32
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a jitted step; the given state is donated.

    Batches have a leading axis of micro-batches. Gradients of the summed loss are accumulated over
    it and divided once by all tokens, so accumulation equals the large batch whatever the micro-
    batches hold. Parameters stay float32; the forward pass runs in `dtype`.
    """

    def cast(model: nnx.Module) -> nnx.Module:
        return jax.tree.map(lambda a: a.astype(dtype), model)

    grad_fn = jax.value_and_grad(lambda model, batch: loss_fn(cast(model), batch), has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def micro(total, one):
            (_, sums), grads = grad_fn(state.model, one)
            return jax.tree.map(jnp.add, total, (grads, sums)), None

        first = jax.tree.map(lambda a: a[0], batch)
        shapes = jax.eval_shape(lambda: grad_fn(state.model, first))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[1], shapes[0][1]))
        (grads, sums), _ = jax.lax.scan(micro, zero, batch)
        tokens = jnp.maximum(sums.pop("tokens"), 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        metrics = {name: value / tokens for name, value in sums.items()}
        metrics |= {"tokens": tokens, "grad_norm": optax.global_norm(grads)}
        model = optax.apply_updates(state.model, updates)
        return TrainState(state.step + 1, model, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
