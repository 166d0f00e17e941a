"""Where a run's arrays live on its devices, as its config says."""

from __future__ import annotations

import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from o3jax.errors import UserError
from o3jax.generate.spread import Spread
from o3jax.models.config import TextConfig
from o3jax.sharding import Placement, ShardingRules, reshaped


def open_spread(
    config: ConfigDict, mesh: Mesh, rules: ShardingRules, text: TextConfig, per_node: int | None = None
) -> Spread | None:
    """Returns how the devices of a run of GSPO share its rollouts; None for a single one.

    Prompts are read as in training. Tokens are decoded on the same devices by `config.decode_sharding`, each
    weight spread over as many devices of a node as share the key heads, where `config.decode_mesh` has a 0.

    Args:
        per_node: devices that fast links connect; by default those of this host, of a TPU all.

    Raises:
        UserError: if `config.decode_mesh` is not of as many devices.
    """
    count = mesh.size
    if count == 1:
        return None
    if per_node is None:
        per_node = count if jax.default_backend() == "tpu" else jax.local_device_count()
    sizes = dict(config.decode_mesh)
    given = math.prod(size for size in sizes.values() if size)
    if not sizes["tensor"]:
        sizes["tensor"] = math.gcd(text.num_key_value_heads, per_node, max(count // given, 1))
        given *= sizes["tensor"]
    sizes["data"] = sizes["data"] or max(count // given, 1)
    if math.prod(sizes.values()) != count:
        said = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(
            f"config.decode_mesh ({said}) has {math.prod(sizes.values())} devices, config.mesh {count}: "
            "write 0 for data and for tensor"
        )
    # A weight that was spread over rows or their parts would be gathered for each token.
    decode = ShardingRules.of(config.decode_sharding, embed=(), sequence=())
    return Spread(Placement(mesh, rules), Placement(reshaped(mesh, **sizes), decode), config.kernel)
