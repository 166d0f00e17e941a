"""One attention function, behind which kernels are chosen by name."""

from o3jax.models.attention.cached import cached_attention, group_attention
from o3jax.models.attention.kernels import KERNELS, attention
from o3jax.models.attention.mask import Mask

__all__ = ["KERNELS", "Mask", "attention", "cached_attention", "group_attention"]
