"""What a run of SFT says of rows that it is not trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.data.clips import open_clips, plan
from experiments.training.hosts import micro_batches, open_pipeline
from experiments.training.loop import HeldOut
from experiments.training.trainer import Trainer
from o3jax.inputs.processor import Processor
from o3jax.train.state import TrainState, make_evaluation


def open_held_out(
    config: ConfigDict,
    processor: Processor,
    transforms: Sequence[Any],
    batch_size: int,
    trainer: Trainer,
    mesh: Mesh,
) -> HeldOut | None:
    """Returns the evaluation that a config asks for, of the same batches every time; None if that is off.

    Args:
        transforms: make a row, see `make_rows`.
        batch_size: rows of a batch, as in training.
    """
    if not config.eval_every:
        return None
    asked = ConfigDict(config.to_dict())
    asked.data_path, asked.split = config.eval_data_path or config.data_path, "val"
    asked.mixture, asked.num_train_epochs, asked.max_steps = ConfigDict(), 0.0, config.eval_batches
    planned = plan(asked, open_clips(asked, processor), transforms[0], batch_size)
    pipeline = open_pipeline(config, planned.rows, transforms, batch_size)
    evaluation = make_evaluation(trainer.loss, trainer.count, trainer.runtime)

    def evaluate(state: TrainState) -> dict[str, float]:
        batches, found = pipeline.open(), []
        try:
            for batch in itertools.islice(batches, config.eval_batches):
                batch = dataclasses.replace(batch, failures=None)
                placed = micro_batches(batch, steps=config.gradient_accumulation_steps, mesh=mesh)
                found.append(evaluation(state.model, placed))
        finally:
            batches.close()
        return _means([jax.device_get(one) for one in found])

    return HeldOut(config.eval_every, evaluate)


def _means(found: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Returns the means over batches, each of what it counts; that of the loss is over the batches."""
    totals: dict[str, float] = {}
    for name in found[0][0]:
        weights = [float(counts.get(name, 1.0)) for _, counts in found]
        values = [float(metrics[name]) for metrics, _ in found]
        if values == weights and name != "loss":  # itself a count
            totals[name] = sum(values)
        else:
            totals[name] = float(np.dot(values, weights) / max(sum(weights), 1.0))
    return totals
