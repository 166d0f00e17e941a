"""The steps that can be planned, by name."""

from __future__ import annotations

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.planning.rollout import rollout_step
from experiments.planning.steps import Step, sft_step, update_step
from o3jax.sharding import Placement, ShardingRules

STEPS = ("sft", "update", "prefill", "decode", "rollout")


def make_step(
    config: ConfigDict, kind: str, mesh: Mesh, rules: ShardingRules, per_node: int | None = None
) -> Step:
    """Returns the step that a command would run with this config.

    Args:
        config: of `experiments.sft` for the kind "sft", of `experiments.gspo` for the others.
        per_node: devices that fast links connect.

    Raises:
        UserError: if the config is not of that stage, or names no model whose shapes are known.
    """
    at = Placement(mesh, rules)
    if kind in ("sft", "update"):
        return (sft_step if kind == "sft" else update_step)(config, at)
    return rollout_step(config, kind, at, per_node)
