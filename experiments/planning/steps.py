"""The steps that a config runs, on abstract arrays: what is compiled for a machine that is not there."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from experiments.planning.machines import GIB
from experiments.planning.shapes import supervised_rows, update_rows
from experiments.training import build_gspo, build_sft
from experiments.training.trainer import Trainer, optimizer_of
from o3jax.errors import UserError
from o3jax.hf.config import config_from_hf
from o3jax.models.config import Config, TextConfig
from o3jax.models.presets import PRESETS
from o3jax.models.qwen3_vl import abstract_model
from o3jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class Step:
    """A program before it is compiled."""

    run: Callable[..., Any]  # jitted
    arguments: tuple[Any, ...]  # trees of shapes with their shardings
    plain: Callable[..., Any]  # the same, computing nothing twice: what a model needs
    loops: int  # how often a loop runs whose length depends on the data: over labelled positions, over tokens
    tokens: int  # of all rows
    placement: Placement  # where it is traced
    # What arithmetic says: GiB of a chip, GB that it sends.
    analytic: Mapping[str, float]
    beside_gib: float = 0.0  # what a chip holds all the while, and the program does not read
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # static arguments


def training_figures(
    trainer: Trainer, state: Any, text: TextConfig, micro_batches: int, tokens: int, at: Placement
) -> dict[str, float]:
    """Returns what arithmetic says of a training step: GiB of a chip, GB that it sends.

    For each micro-batch weights are gathered twice, for the two passes, and gradients of what is trained
    reduced once. Of a row over several devices, so are the keys and values (splash reduces in float32).

    Args:
        tokens: of the rows that a chip reads, or has a part of.
    """
    model, mesh = sizes(state.model), at.mesh.shape
    leaves = jax.tree_util.tree_leaves_with_path(state.model)
    trained = sum(a.size for path, a in leaves if path[0].name not in trainer.frozen)
    weights = (2 * sum(a.size for _, a in leaves) + trained) * 2 / mesh["tensor"] / mesh["expert"]
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * 2 / mesh["tensor"]
    times, split = (
        4 if trainer.runtime.kernel == "splash" else 3,
        math.prod(map(mesh.get, ("fsdp", "context"))),
    )
    return {
        "parameters_gib": model / GIB,
        "moments_gib": (sizes(state) - model) / GIB,
        "weights_gb": micro_batches * weights * (1 - 1 / split) / 1e9,
        "keys_gb": times * keys * (1 - 1 / mesh["context"]) / 1e9,
    }


def sizes(tree: Any) -> float:
    """Returns the bytes that a chip holds of a tree of shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)


def sft_step(config: ConfigDict, at: Placement) -> Step:
    """Returns the step of `experiments.sft`."""
    architecture = build_sft.architecture_of(config, shapes_of(config.model_name_or_path))
    trainer = build_sft.make_sft_trainer(config, None, architecture, steps=1000)
    state = abstract_state(trainer, architecture, at)
    rows = config.per_device_train_batch_size * at.ways("batch")
    rows_of = supervised_rows(architecture, config)
    labels = config.row_length if config.full_text_loss else min(1024, config.row_length)
    batch = _spread(rows_of, (config.gradient_accumulation_steps, rows), at)
    tokens = rows * config.gradient_accumulation_steps * config.row_length
    return _trained(trainer, architecture, state, batch, labels, tokens, at)


def update_step(config: ConfigDict, at: Placement) -> Step:
    """Returns an optimizer step of `experiments.gspo`."""
    architecture = build_gspo.architecture_of(config, shapes_of(config.sft_model_path))
    trainer = build_gspo.make_gspo_trainer(config, optimizer_of(config, 1000))
    state = abstract_state(trainer, architecture, at)
    shape = build_gspo.update_shape(config)
    steps = config.gradient_accumulation_steps
    groups = config.prompts_per_iteration // config.minibatches_per_rollout // config.groups_per_row
    ways = at.ways("batch")
    rows = -(-max(groups // steps, 1) // ways) * ways
    rows_of = update_rows(architecture, config, shape)
    batch = _spread(rows_of, (steps, rows), at)
    labels = shape.sequences * shape.response
    return _trained(trainer, architecture, state, batch, labels, rows * steps * shape.length, at)


def _trained(
    trainer: Trainer, architecture: Config, state: Any, batch: Any, labels: int, tokens: int, at: Placement
) -> Step:
    runtime = trainer.runtime
    plain = dataclasses.replace(trainer, runtime=dataclasses.replace(runtime, remat="none"))
    run = trainer.make_step(jax.tree.map(lambda a: a.sharding, state))
    loops = -(-labels // runtime.loss_chunk)
    micro_batches, own = jax.tree.leaves(batch)[0].shape[0], tokens // at.ways("batch")
    figures = training_figures(trainer, state, architecture.text, micro_batches, own, at)
    return Step(run, (state, batch), plain.make_step(), loops, tokens, at, figures)


def shapes_of(name: str) -> Config:
    """Returns the architecture of a model folder, or of a published checkpoint that the name tells.

    Raises:
        UserError: if it is neither.
    """
    if (Path(name) / "config.json").exists():
        return config_from_hf(Path(name))
    found = [preset for preset in PRESETS if re.search(rf"(^|[-/_]){preset}($|[-/_])", name)]
    if len(found) != 1:
        raise UserError(
            f"the config names the model '{name}', which is no folder: name one, or a published one such as "
            f"Qwen3-VL-8B ({', '.join(PRESETS)})"
        )
    return PRESETS[found[0]]


def abstract_state(trainer: Trainer, architecture: Config, at: Placement) -> Any:
    """Returns the state before the first step as shapes, each with where it lives."""
    model = abstract_model(architecture)
    if trainer.lora:  # the base is held as the step computes
        model = jax.tree_util.tree_map_with_path(
            lambda path, a: a if path[0].name == "evidence" else a.update(dtype=trainer.runtime.dtype), model
        )
    state = jax.eval_shape(lambda m: trainer.init(trainer.adapted(m)), model)
    return placed(state, at)


def placed(tree: Any, at: Placement) -> Any:
    """Returns shapes with where each lives: what has logical axes by the rules, all else on every device."""

    def sharding(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return at.of(())
        if leaf.get_value() is None:  # a moment of what is frozen
            return leaf
        shape, axes = leaf.get_value().shape, leaf.get_metadata()["axes"]
        return leaf.replace(at.of(shape, *axes))

    where = jax.tree.map(sharding, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)


def _spread(rows: Any, leading: tuple[int, int], at: Placement) -> Any:
    """Returns the shapes of micro-batches of rows, over the data axes."""
    where = at.of(leading, None, "batch")
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*leading, *a.shape), a.dtype, sharding=where), rows)
