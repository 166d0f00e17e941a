"""`python -m experiments.gradient_noise --workdir=runs/noise`: how much of a GSPO gradient is signal.

Takes the gradients of many minibatches of a GSPO config at one and the same model, and compares them: what
two independent ones have in common is signal, the rest is noise that only more completions average out.
All gradients are kept in memory: for small models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import gspo
from experiments.cli import shell
from experiments.studies.runs import signal_share
from experiments.training.loop import StepFn
from o3jax.errors import UserError
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sharding import replicate_scalars
from o3jax.train.state import CountFn, LossFn, Metrics, TrainState, init_state, make_train_step


def main(argv: Sequence[str]) -> None:
    del argv
    config = flags.FLAGS.config
    gradients: list[np.ndarray] = []

    def trainer(
        config: ConfigDict, model: Qwen3VL, mesh: Mesh, loss: LossFn, count: CountFn, *, evidence: bool
    ) -> tuple[TrainState, StepFn]:
        """Returns a step that changes nothing and keeps the gradient."""
        if config.lora.rank:
            raise UserError("gradients are taken at the whole model: set config.lora.rank=0")
        frozen = [part for part, rate in config.lr_multipliers.items() if not rate or part == "evidence"]
        optimizer = optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
        runtime = Runtime(remat=config.remat, dtype=config.compute_dtype)
        step = make_train_step(loss, optimizer, count, runtime, frozen=frozen)

        def keep(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            state, metrics = step(state, batch)
            leaves = jax.tree.leaves(state.opt_state[0].trace)
            gradients.append(np.concatenate([np.asarray(leaf).ravel() for leaf in leaves]))
            return state, metrics

        return replicate_scalars(init_state(model, optimizer, frozen), mesh), keep

    gspo.run(config, flags.FLAGS.workdir, trainer)
    if len(gradients) < 3:
        raise UserError("fewer than 3 gradients were taken: raise config.max_steps, or use a new --workdir")
    share, error = signal_share(gradients)
    completions = config.prompts_per_iteration // config.minibatches_per_rollout * config.group_size
    print(f"{len(gradients)} gradients of {gradients[0].size:,} numbers, {completions} completions each")
    print(f"signal: {share:.2%} of a squared gradient (standard error {error:.2%})")


if __name__ == "__main__":
    shell.run(main)
