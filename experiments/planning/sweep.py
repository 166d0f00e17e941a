"""One plan of a config with some fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.checks import check_fields, check_kernel
from configs.common import with_whole_frames
from experiments.planning.compiled import Plan, compile_step
from experiments.planning.kinds import STEPS, make_step
from experiments.planning.machines import Machine
from o3jax.errors import UserError
from o3jax.sharding import ShardingRules, make_mesh


def plan_of(config: ConfigDict, changes: Mapping[str, str], kind: str, machine: Machine) -> Plan:
    """Returns what a config's step takes of a machine.

    Args:
        changes: fields of the config and their values, as on the command line.
        kind: one of `STEPS`.

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
    sizes, count = dict(config.mesh), len(machine.devices)
    if (product := _product(sizes)) != count:
        sizes |= {"fsdp": count * sizes["fsdp"] // product if count * sizes["fsdp"] % product == 0 else 0}
        raise UserError(
            f"config.mesh has {product} devices, {machine.name} has {count}: "
            + (f"write --config.mesh.fsdp={sizes['fsdp']}" if sizes["fsdp"] else "change its axes")
        )
    mesh = make_mesh(machine.devices, **sizes)
    step = make_step(config, kind, mesh, ShardingRules.of(config.sharding), machine.per_node)
    return compile_step(step, machine)


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
    if isinstance(like, bool):
        return text.lower() in ("1", "true")
    try:
        return text if like is None or isinstance(like, str) else type(like)(text)
    except ValueError as error:
        raise UserError(f"--sweep: {name}={text} is no {type(like).__name__}") from error


def _product(sizes: Mapping[str, int]) -> int:
    product = 1
    for size in sizes.values():
        product *= size
    return product
