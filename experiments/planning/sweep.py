"""A config with some fields changed -> its step on a machine, and its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.checks import check_fields, check_kernel
from configs.common import with_whole_frames
from experiments.planning.compiled import Plan, compile_step
from experiments.planning.kinds import STEPS, make_step
from experiments.planning.machines import Machine
from experiments.planning.steps import Step
from o3jax.errors import UserError
from o3jax.sharding import ShardingRules, abstract_mesh, make_mesh


def plan_of(config: ConfigDict, changes: Mapping[str, str], kind: str, machine: Machine) -> Plan:
    """Returns what a config's step takes of a machine; raises what `step_of` does."""
    step_of(config, changes, kind, machine)
    return compile_step(step_of(config, changes, kind, machine, machine.devices), machine)


def step_of(
    config: ConfigDict,
    changes: Mapping[str, str],
    kind: str,
    machine: Machine,
    devices: Sequence[jax.Device] = (),
) -> Step:
    """Returns a config's step on a machine.

    Args:
        changes: fields of the config and their values, as on the command line.
        kind: one of `STEPS`.
        devices: of the machine; none, and mistakes are found all the same, without a compiler.

    Raises:
        UserError: if the config has no such field or is of another stage, or its mesh is not the machine's.
    """
    if kind not in STEPS:
        raise UserError(f"--step={kind} is none of {', '.join(STEPS)}")
    wanted = "data_path" if kind == "sft" else "rl_data_path"
    if wanted not in config:
        raise UserError(f"--step={kind} needs a config of the other stage: it has no field {wanted}")
    config = changed(config, changes)
    check_fields(config)
    check_kernel(config)
    config = with_whole_frames(config)
    sizes, count = dict(config.mesh), machine.count
    if (product := math.prod(sizes.values())) != count:
        sizes |= {"fsdp": count * sizes["fsdp"] // product if count * sizes["fsdp"] % product == 0 else 0}
        raise UserError(
            f"config.mesh has {product} devices, {machine.name} has {count}: "
            + (f"write --config.mesh.fsdp={sizes['fsdp']}" if sizes["fsdp"] else "change its axes")
        )
    mesh = make_mesh(devices, **sizes) if devices else abstract_mesh(**sizes)
    return make_step(config, kind, mesh, ShardingRules.of(config.sharding), machine.per_node)


def changed(config: ConfigDict, changes: Mapping[str, str]) -> ConfigDict:
    """Returns a copy of a config with other values, each of the type that the field has."""
    config = config.copy_and_resolve_references()
    for name, text in changes.items():
        at: Any = config
        *path, last = name.split(".")
        for part in path:
            at = at.get(part, {})
        if last not in at:
            raise UserError(f"--sweep names {name}, which is no field of the config")
        at[last] = _typed(text, at[last], name)
    return config


def _typed(text: str, like: Any, name: str) -> Any:
    if isinstance(like, bool) and text.lower() in ("1", "true", "0", "false"):
        return text.lower() in ("1", "true")
    if isinstance(like, bool | tuple | list):
        raise UserError(f"--sweep: {name}={text} is no {type(like).__name__} of one word")
    try:
        return text if like is None or isinstance(like, str) else type(like)(text)
    except ValueError as error:
        raise UserError(f"--sweep: {name}={text} is no {type(like).__name__}") from error
