"""`python -m experiments.gradient_noise --workdir=runs/noise`: how much of a GSPO gradient is signal.

Takes the gradients of many minibatches of a GSPO config at one and the same model, and compares them: what
two independent ones have in common is signal, the rest is noise that only more completions average out.
All gradients are kept in memory: for small models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import optax
from absl import flags

from configs.checks import check_gspo
from experiments.cli import shell
from experiments.studies.runs import signal_share
from experiments.training.build_gspo import build_gspo
from experiments.training.hosts import check_one_host
from experiments.training.iteration import train_gspo
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.gspo.rows import UpdateBatch
from o3jax.train.state import Metrics, TrainState

_CONFIG = shell.define_config("configs/gspo_tiny.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this study; the same folder resumes.", required=True
)


def main(argv: Sequence[str]) -> None:
    del argv
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_one_host()
    check_gspo(config)
    if config.lora.rank:
        raise UserError("gradients are taken at the whole model: set config.lora.rank=0")
    gradients: list[np.ndarray] = []
    # Changes nothing and keeps the gradient.
    optimizer = optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
    run = build_gspo(config, Workdir(_WORKDIR.value, config), optimizer)

    def step(state: TrainState, batch: UpdateBatch) -> tuple[TrainState, Metrics]:
        state, metrics = run.step(state, batch)
        leaves = jax.tree.leaves(state.opt_state[0].trace)
        gradients.append(np.concatenate([np.asarray(leaf).ravel() for leaf in leaves]))
        return state, metrics

    train_gspo(dataclasses.replace(run, step=step))
    if len(gradients) < 3:
        raise UserError("fewer than 3 gradients were taken: raise config.max_steps, or use a new --workdir")
    share, error = signal_share(gradients)
    completions = config.prompts_per_iteration // config.minibatches_per_rollout * config.group_size
    print(f"{len(gradients)} gradients of {gradients[0].size:,} numbers, {completions} completions each")
    print(f"signal: {share:.2%} of a squared gradient (standard error {error:.2%})")


if __name__ == "__main__":
    shell.run(main)
