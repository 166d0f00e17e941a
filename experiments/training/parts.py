"""How `ground` and `match` train a part of a tiny model, by a loss of its own."""

from __future__ import annotations

import functools

from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from experiments.training.hosts import micro_batches, open_mesh
from experiments.training.loop import Feed, RunLength, train
from experiments.training.trainer import Trainer, optimizer_of
from experiments.training.workdir import Workdir
from o3jax.models.runtime import Runtime
from o3jax.sharding import ShardingRules, use_mesh
from o3jax.train.state import CountFn, LossFn, TrainState


def train_part(
    config: ConfigDict,
    workdir: Workdir,
    part: nnx.Module,
    pipeline: Pipeline,
    loss: LossFn,
    count: CountFn,
    frozen: tuple[str, ...] = (),
) -> TrainState:
    """Returns the state after `config.max_steps` steps on whole batches; see `configs.common.part`."""
    mesh = open_mesh(config.mesh)
    trainer = Trainer(loss, count, optimizer_of(config, config.max_steps), frozen, Runtime())
    with use_mesh(mesh):
        state, step = trainer.start(part, mesh, ShardingRules())
        feed = Feed(pipeline, functools.partial(micro_batches, steps=1, mesh=mesh))
        return train(state, step, feed, workdir, RunLength.of(config, config.max_steps))
