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

    def dense(self) -> Bool[Array, "B S T"]:
        """Returns the mask as booleans; True may be read."""
        allowed = self.q_segments[:, :, None] == self.kv_segments[:, None, :]
        if self.q_continuations is not None:
            continuations = self.kv_continuations[:, None, :]
            allowed &= (continuations == 0) | (continuations == self.q_continuations[:, :, None])
        if self.causal:
            size = self.q_segments.shape[1]
            allowed &= jnp.arange(size)[:, None] >= jnp.arange(self.kv_segments.shape[1])[None, :]
        return allowed
