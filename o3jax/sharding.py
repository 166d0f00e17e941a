"""Mesh axes, the rules that map logical axes to them, and `shard()`.

A parallelism strategy is a set of rules: model code names what an axis means ("batch", "heads"), and
only this module knows where it lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from o3jax.choices import MESH_AXES
from o3jax.errors import UserError

# Axes that an array has together, so that they cannot lie on one mesh axis.
_TOGETHER = (
    *(("batch", "sequence", axis) for axis in ("heads", "kv_heads", "mlp")),
    ("batch", "kv_heads", "prefix"),
    *(("embed", axis) for axis in ("heads", "kv_heads", "vocab")),
    *(("expert", "embed", "mlp"), ("batch", "frame_pairs"), ("frames", "mlp")),
)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Where each logical axis lives on the mesh; nothing replicates it.

    Raises:
        UserError: if a name is no mesh axis, or two axes of one array would lie on the same.
    """

    # Activations.
    batch: tuple[str, ...] = ("data", "fsdp")
    sequence: str | None = "context"
    prefix: str | None = "context"  # of cached keys and values
    frame_pairs: str | None = "context"
    frames: tuple[str, ...] = ("data", "fsdp", "context")  # of all rows together, in the tower
    # Parameters and, where they share the name, activations. The state is spread over `context` too: devices
    # that share a row need not each hold all of it.
    embed: tuple[str, ...] = ("fsdp", "context")
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"
    expert: str | None = "expert"

    def __post_init__(self):
        where = {field.name: _mesh_axes(self, field.name) for field in dataclasses.fields(self)}
        for name, axes in where.items():
            if unknown := set(axes) - set(MESH_AXES):
                raise UserError(
                    f"config.sharding.{name} names {', '.join(sorted(unknown))}; the axes of a mesh are "
                    f"{', '.join(MESH_AXES)}"
                )
        for one, other in (pair for names in _TOGETHER for pair in itertools.combinations(names, 2)):
            if both := set(where[one]) & set(where[other]):
                raise UserError(
                    f"config.sharding puts {one} and {other}, axes of one array, both on {both.pop()}: "
                    "move one of them"
                )

    @classmethod
    def of(cls, fields: Mapping[str, str | None], **others: Any) -> ShardingRules:
        """Returns the rules of a config: mesh axes with commas between them; None leaves the default.

        Args:
            others: other defaults.
        """
        said = {name: text for name, text in fields.items() if text is not None}
        return cls(**others | {name: tuple(filter(None, text.split(","))) for name, text in said.items()})


# A part of the key of what `jax.jit` keeps: other rules, another program.
_rules = jax.make_user_context(None)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices, and where on them each logical axis lives."""

    mesh: Mesh | AbstractMesh
    rules: ShardingRules

    def use(self) -> contextlib.AbstractContextManager[None]:
        """Returns `use_mesh` of both."""
        return use_mesh(self.mesh, self.rules)

    def ways(self, name: str) -> int:
        """Returns over how many devices a logical axis lies."""
        return math.prod(self.mesh.shape[axis] for axis in _mesh_axes(self.rules, name))

    def of(self, shape: Sequence[int], *axes: str | None) -> NamedSharding:
        """Returns where an array of this shape lives."""
        return NamedSharding(self.mesh, partition_spec(shape, axes, self.mesh, self.rules))


def make_mesh(devices: Sequence[jax.Device] | None = None, **sizes: int) -> Mesh:
    """Returns a mesh with all of `MESH_AXES`; axes that are not named have size 1.

    Args:
        devices: in their order; all of the machine by default, so that neighbours are neighbours on it.

    Raises:
        ValueError: if a name is no mesh axis, or the sizes do not multiply to the number of devices.
    """
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"unknown mesh axes {sorted(unknown)}; the axes are {', '.join(MESH_AXES)}")
    shape, given = [sizes.get(axis, 1) for axis in MESH_AXES], devices is not None
    devices = list(devices) if given else jax.devices()
    if np.prod(shape) != len(devices):
        raise ValueError(f"mesh {sizes} needs {np.prod(shape)} devices, but there are {len(devices)}")
    devices = np.reshape(devices, shape) if given else _ordered(shape, devices)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _ordered(shape: Sequence[int], devices: list[jax.Device]) -> np.ndarray:
    """Returns the devices in a mesh's shape, so that neighbours on it are neighbours in the machine.

    What `jax.make_mesh` does, but an axis of the machine may be shared by two of the mesh.
    """
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, AssertionError, ValueError) as error:  # such as of a part of a TPU slice
        logging.getLogger(__name__).warning("the mesh takes devices as they are numbered: %s", error)
        return np.asarray(devices).reshape(shape)


def abstract_mesh(**sizes: int) -> AbstractMesh:
    """Returns a mesh without devices: shapes can be placed on it."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def reshaped(mesh: Mesh | AbstractMesh, **sizes: int) -> Mesh | AbstractMesh:
    """Returns the devices of a mesh, in the same order, with axes of other sizes; 1 where none is named."""
    if isinstance(mesh, AbstractMesh):
        return abstract_mesh(**sizes)
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    return Mesh(mesh.devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: ShardingRules | None = None) -> Iterator[None]:
    """Makes `shard()` place activations on `mesh` by `rules` (inside jitted functions traced within)."""
    with _rules(rules or ShardingRules()), jax.set_mesh(mesh):
        yield


def partition_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh, rules: ShardingRules
) -> PartitionSpec:
    """Returns where an array of this shape lives.

    An axis whose size its mesh axes do not divide lies on as many of them as do, from the first one on; that
    is said once, as a warning.
    """
    spec = []
    for size, name in zip(shape, axes, strict=True):
        asked = names = _mesh_axes(rules, name)
        while size % math.prod(mesh.shape[axis] for axis in names):
            names = names[:-1]
        if names != asked:
            wanted, got = (math.prod(mesh.shape[axis] for axis in some) for some in (asked, names))
            _say_undivided(name, size, "+".join(asked), wanted, got)
        spec.append(names[0] if len(names) == 1 else (names or None))
    return PartitionSpec(*spec)


@functools.cache
def _say_undivided(name: str, size: int, asked: str, wanted: int, got: int) -> None:
    where = f"lies over {got} of them" if got > 1 else "is whole on each"
    said = "%d devices (%s) do not divide the axis %s of size %d, which %s"
    logging.getLogger(__name__).warning(said, wanted, asked, name, size, where)


def _mesh_axes(rules: ShardingRules, name: str | None) -> tuple[str, ...]:
    target = getattr(rules, name, None) if name else None
    return (target,) if isinstance(target, str) else tuple(target or ())


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes of several devices that a logical axis lies on; none outside of `use_mesh`."""
    rules = _rules.value
    if rules is None:
        return ()
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in _mesh_axes(rules, name) if mesh.shape[axis] > 1)


def divides(sizes: Sequence[int], axes: Sequence[Sequence[str]]) -> bool:
    """Returns whether each size is a multiple of the devices along its mesh axes."""
    if not any(axes):
        return True
    shape = jax.sharding.get_abstract_mesh().shape
    ways = [int(np.prod([shape[axis] for axis in some])) for some in axes]
    return all(size % n == 0 for size, n in zip(sizes, ways, strict=True))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x` constrained to where its logical axes live; `x` itself outside of `use_mesh`."""
    rules, mesh = _rules.value, jax.sharding.get_abstract_mesh()
    if rules is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, mesh, rules))


def parameter_shardings(model: nnx.Module, mesh: Mesh, rules: ShardingRules | None = None) -> nnx.Module:
    """Returns the model's tree with a NamedSharding in place of every array, from the parameters' axes."""
    rules = rules or ShardingRules()

    def sharding(variable: nnx.Variable) -> nnx.Variable:
        axes = variable.get_metadata()["axes"]
        spec = partition_spec(variable.get_value().shape, axes, mesh, rules)
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree.map(sharding, model, is_leaf=lambda x: isinstance(x, nnx.Variable))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over the data axes, the others replicated.

    The rules are those of `use_mesh`, outside of it the default ones.
    """
    return NamedSharding(mesh, PartitionSpec(_mesh_axes(_rules.value or ShardingRules(), "batch")))


def place_rows(rows: Any, mesh: Mesh) -> Any:
    """Returns rows of a batch, in numpy, on the devices of a mesh; of several hosts each gives its own."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(where, np.asarray(a)), rows)


def own_rows(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns the rows of this host of an array that has a batch's rows in front."""
    if jax.process_count() == 1:
        return np.asarray(x)
    where = batch_sharding(mesh)
    x = jax.device_put(x, where)
    return np.asarray(multihost_utils.global_array_to_host_local_array(x, mesh, where.spec))


def replicate_scalars(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with what is on no mesh yet (counters) on every device of this one."""

    def place(x: jax.Array) -> jax.Array:
        everywhere = NamedSharding(mesh, PartitionSpec())
        return x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere)

    return jax.tree.map(place, tree)


def everywhere(x: jax.Array | np.ndarray) -> np.ndarray:
    """Returns the whole of an array on this host; of several hosts all must ask."""
    apart = isinstance(x, jax.Array) and not x.is_fully_addressable
    return np.asarray(multihost_utils.process_allgather(x, tiled=True) if apart else x)
