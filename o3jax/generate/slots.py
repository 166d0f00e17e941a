"""What the devices hold of the groups of samples that are being written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from o3jax.generate.cache import KEYS, VALUES, Cache
from o3jax.sharding import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What the device holds of the running groups.

    All slots write to the same column at a step, so that it updates a slice; after the last column comes
    the first again. A group never runs for longer than there are columns, so it never meets its own start.
    The W columns of the caches become more when a group needs them: to read empty ones takes as long.
    """

    prefix: Cache  # of the prompts, a row per slot
    keys: tuple[Float[Array, "B G K H W"], ...]  # of the responses, one per layer
    values: tuple[Float[Array, "B G K W H"], ...]
    tokens: Int[Array, "B G T"]
    logprobs: Float[Array, "B G T"]
    length: Int[Array, "B G"]
    finished: Bool[Array, "B G"]
    prompt: Int[Array, " B"]  # the number that random numbers are made from
    start: Int[Array, " B"]  # the clock when the group's first token was drawn
    clock: Int[Array, ""]  # steps so far; the newest tokens are in column clock % T, and go to clock % W

    def done(self) -> Bool[Array, "B G"]:
        """Returns which samples have ended or are full."""
        return self.finished | (self.length >= self.tokens.shape[-1])


def placed(slots: Slots, place: Callable[..., Any] = shard) -> Slots:
    """Returns the slots where they live on several devices: caches by their axes, the rest on each device.

    Args:
        place: an array and its logical axes -> what stands in its place.
    """
    own = ("batch", None, "kv_heads", None, None)
    prefix, rest = slots.prefix, dataclasses.replace(slots, prefix=None, keys=(), values=())
    rest, filled, length, position = jax.tree.map(
        lambda a: place(a, *[None] * a.ndim), (rest, prefix.filled, prefix.length, prefix.position)
    )
    keys, values = (
        tuple(place(a, *axes) for a in some) for some, axes in ((prefix.keys, KEYS), (prefix.values, VALUES))
    )
    return dataclasses.replace(
        rest,
        prefix=Cache(keys, values, filled, length, position),
        keys=tuple(place(k, *own) for k in slots.keys),
        values=tuple(place(v, *own) for v in slots.values),
    )
