"""What one host of several does: its part of the mesh, of a batch and of what all must know."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.rows.pipeline import Pipeline
from o3jax.errors import UserError
from o3jax.models.batch import Tree
from o3jax.sharding import batch_sharding, make_mesh


class EverywhereError(UserError):
    """A mistake that every host meets at the same place, so that they can save together."""


def is_first_host() -> bool:
    """Returns whether this process is the one of several that writes what all of them know."""
    return jax.process_index() == 0


def check_one_host() -> None:
    """Raises a UserError where several processes are to work together, which a study cannot."""
    if jax.process_count() > 1 or os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise UserError("this command runs on one host and all its devices: unset JAX_COORDINATOR_ADDRESS")


def gathered(part: Tree) -> Tree:
    """Returns the arrays of all hosts, one behind the other, of the same shapes on each; all must ask."""
    return multihost_utils.process_allgather(part, tiled=True) if jax.process_count() > 1 else part


def gathered_lists(mine: Sequence[Any]) -> list[list[Any]]:
    """Returns the lists of all hosts, of things that JSON can write; all hosts must ask."""
    if jax.process_count() == 1:
        return [list(mine)]
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = gathered(np.array([len(text)], np.int32))
    texts = gathered(np.pad(text, (0, int(lengths.max()) - len(text)))[None])
    return [json.loads(row[:n].tobytes()) for row, n in zip(texts, lengths.tolist(), strict=True)]


def interleaved(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns rows in their order, of which each host had every n-th (see `Pipeline`)."""
    nothing = object()
    rows = itertools.zip_longest(*lists, fillvalue=nothing)
    return [one for row in rows for one in row if one is not nothing]


def open_pipeline(
    config: ConfigDict,
    rows: Sequence[Any],
    transforms: Sequence[Any],
    batch_size: int,
    data_fingerprint: Mapping[str, str | int] | None = None,
) -> Pipeline:
    """Returns this host's part of the batches of planned rows, of `batch_size` over all hosts."""
    return Pipeline(
        rows,
        transforms,
        batch_size=batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        data_fingerprint=data_fingerprint or {},
    )


def open_mesh(axes: Mapping[str, int]) -> Mesh:
    """Returns the mesh of `config.mesh`, over the first devices if it needs fewer than there are."""
    needed, found = math.prod(axes.values()), jax.device_count()
    if needed > found:
        raise UserError(f"config.mesh needs {needed} devices, but there are {found}: make its axes smaller")
    hosts = jax.process_count()
    if hosts > 1 and (needed < found or axes["data"] * axes["fsdp"] % hosts):
        raise UserError(
            f"config.mesh must use all {found} devices of {hosts} hosts, and data x fsdp must be a multiple "
            f"of {hosts}, or their parts of a batch would overlap: change its axes"
        )
    if needed < found:
        print(f"config.mesh uses {needed} of {found} devices", flush=True)
    return make_mesh(jax.devices()[:needed] if needed < found else None, **axes)


def micro_batches(batch: Tree, steps: int, mesh: Mesh) -> Tree:
    """Returns the batch with a leading axis of micro-batches, each spread over the mesh's data axes.

    Of several hosts each gives its own rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    def place(array: np.ndarray) -> jax.Array:
        split = einops.rearrange(array, "(a b) ... -> a b ...", a=steps)
        return jax.make_array_from_process_local_data(sharding, split)

    return jax.tree.map(place, batch)
