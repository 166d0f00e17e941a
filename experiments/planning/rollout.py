"""The steps of a rollout on abstract arrays: the very functions that `experiments.gspo` runs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.planning.machines import GIB
from experiments.planning.shapes import prompt_rows
from experiments.planning.steps import Step, abstract_state, shapes_of, sizes
from experiments.training import build_gspo
from experiments.training.placement import open_spread
from experiments.training.trainer import optimizer_of
from o3jax.errors import UserError
from o3jax.generate import group
from o3jax.generate.cache import prefill
from o3jax.generate.sampling import Sampling
from o3jax.generate.slots import placed
from o3jax.generate.spread import Spread
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.sharding import Placement

_EOS = (151645, 151643)  # of the published checkpoints


def rollout_step(config: ConfigDict, kind: str, at: Placement, per_node: int | None) -> Step:
    """Returns a step of the rollouts of a config of `experiments.gspo`.

    Args:
        kind: "prefill" reads as many prompts as are read at a time, "decode" writes a token of each
            completion, "rollout" as many as a completion may have.

    Raises:
        UserError: if there is one device alone.
    """
    architecture = build_gspo.architecture_of(config, shapes_of(config.sft_model_path))
    trainer = build_gspo.make_gspo_trainer(config, optimizer_of(config, 1000))
    state = abstract_state(trainer, architecture, at)
    spread = open_spread(config, at.mesh, at.rules, architecture.text, per_node)
    if spread is None:
        raise UserError(f"--step={kind} is for several devices: set config.mesh")
    policy = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(config.compute_dtype), sharding=a.sharding),
        state.model,
    )
    if config.lora.rank:
        raise UserError(f"--step={kind} knows no adapters: leave out config.lora")
    if kind == "prefill":
        return _prefill(config, policy, spread, sizes(state) / GIB)
    return _decode(config, kind, policy, spread, (sizes(state) + sizes(policy)) / GIB)


def _prefill(config: ConfigDict, policy: Qwen3VL, spread: Spread, beside: float) -> Step:
    at, rows = spread.prefill, spread.rows
    where = at.of((rows,), "batch")
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape), a.dtype, sharding=where),
        prompt_rows(policy.config, config),
    )
    text = policy.config.text
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2  # bytes of a token
    weights, ways = sizes(policy.text.layers) * at.mesh.size, at.ways("embed")
    figures = {
        "parameters_gib": sizes(policy) / GIB,
        "caches_gib": rows * config.row_length * kept / at.mesh.size / GIB,
        "gather_gb": weights * (ways - 1) / ways / at.ways("heads") / 1e9,
    }
    options = {"new_tokens": 0, "kernel": spread.kernel}
    run = functools.partial(prefill, **options)
    return Step(prefill, (policy, batch), run, 1, rows * config.row_length, at, figures, beside, options)


def _decode(config: ConfigDict, kind: str, policy: Qwen3VL, spread: Spread, beside: float) -> Step:
    at, text = spread.decode, policy.config.text
    decoder = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        spread.resident_shapes(policy),
        spread.resident_shardings(policy),
    )
    prompts, samples, limit = config.prompts_per_iteration, config.group_size, config.max_completion_length
    count = min(config.rollout_slots or prompts, prompts)
    count += -count % at.ways("batch")

    def place(a: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at.of(a.shape, *axes))

    slots = jax.eval_shape(
        lambda: group.with_columns(group.empty_slots(policy, count, samples, config.row_length, limit), limit)
    )
    slots = placed(slots, place)
    caches = (slots.prefix.keys, slots.prefix.values, slots.keys, slots.values)
    total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(caches))
    tokens = 1 if kind == "decode" else limit
    # Two sums over the devices that share the heads, in each layer, of all completions' states.
    ways = at.ways("heads")
    states = count // at.ways("batch") * samples * text.hidden_size * 2
    figures = {
        "parameters_gib": sizes(decoder) / GIB,
        "caches_gib": total / at.mesh.size / GIB,
        "caches_of_all_gib": total / GIB,
        "reduce_gb": tokens * 2 * text.num_hidden_layers * 2 * states * (ways - 1) / ways / 1e9,
    }
    options = {"sampling": Sampling(**config.sampling), "eos_ids": _EOS}
    run = functools.partial(group.decode_window, **options)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (decoder, place(key), slots, tokens, count)
    return Step(
        group.decode_window,
        arguments,
        run,
        tokens,
        count * samples * tokens,
        at,
        figures,
        beside,
        options,
    )
