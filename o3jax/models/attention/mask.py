"""Which key each query may read, as structure."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which key each query may read, kept as structure so that a kernel need not build [S, S].

    A query reads a key of its own segment; segment 0 is padding. Within a segment, continuation 0 is a
    prefix, and every other one reads the prefix and itself: several continuations of one video share its
    tokens. `causal` hides keys that stand after the query.
    """

    q_segments: Int[Array, "B S"]
    kv_segments: Int[Array, "B T"]
    q_continuations: Int[Array, "B S"] | None = None
    kv_continuations: Int[Array, "B T"] | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    offset: Int[Array, ""] | None = None  # the key at which the first query stands; None: the first

    def dense(self) -> Bool[Array, "B S T"]:
        """Returns the mask as booleans; True may be read."""
        return self.block(0, self.q_segments.shape[1], self.kv_segments.shape[1])

    def block(self, start: Int[Array, ""] | int, size: int, keys: int) -> Bool[Array, "B size keys"]:
        """Returns the mask of `size` queries from `start` on, to the first `keys` keys."""

        def queries(ids: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(ids), start, size, 1)[:, :, None]

        allowed = queries(self.q_segments) == self.kv_segments[:, None, :keys]
        if self.q_continuations is not None:
            continuations = self.kv_continuations[:, None, :keys]
            allowed &= (continuations == 0) | (continuations == queries(self.q_continuations))
        if self.causal:
            first = start if self.offset is None else start + self.offset
            allowed &= first + jnp.arange(size)[:, None] >= jnp.arange(keys)[None, :]
        return allowed
