"""How the next token is chosen from logits: filters, random numbers, and where a text is to end."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from o3jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What a token is drawn from; the defaults are the model's own distribution.

    Fields have the names, the meaning and the order of transformers' generation settings: temperature,
    top_k, top_p, min_p, each on what the one before has left. Equally probable tokens stay or go together.
    """

    temperature: float = 1.0  # 0 takes the most probable token
    top_p: float = 1.0  # 1 keeps everything
    top_k: int = 0  # 0 keeps everything
    min_p: float = 0.0  # 0 keeps everything

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or a positive number, not {self.temperature}")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or a positive number, not {self.top_k}")


@dataclasses.dataclass(frozen=True)
class StopStrings:
    """Strings that end a sample; `decode` makes text of tokens."""

    strings: tuple[str, ...]
    decode: Callable[[Int[np.ndarray, " n"]], str]

    def __post_init__(self):
        if isinstance(self.strings, str) or not all(self.strings):
            raise UserError(f"stop strings must be a tuple of non-empty strings, not {self.strings!r}")

    def length(self, tokens: Int[np.ndarray, " n"]) -> int | None:
        """Returns how many tokens there are up to the one that completes a string, None without one."""

        def holds(count: int) -> bool:
            text = self.decode(tokens[:count])
            return any(string in text for string in self.strings)

        if not holds(len(tokens)):
            return None
        return bisect.bisect_left(range(len(tokens)), True, key=holds)


def filtered(logits: Float[Array, "*dims V"], sampling: Sampling) -> Float[Array, "*dims V"]:
    """Returns what the tokens are drawn from: logits by temperature, -inf where a filter forbids a token.

    The temperature must not be 0.
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _from(logits, jax.lax.top_k(logits, sampling.top_k)[0][..., -1:])
    if sampling.top_p < 1:
        logits = nucleus(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = _from(logits, logits.max(-1, keepdims=True) + np.log(sampling.min_p))
    return logits


def nucleus(
    logits: Float[Array, "*dims V"], top_p: float | Float[Array, "*dims 1"]
) -> Float[Array, "*dims V"]:
    """Returns the logits, -inf where a token is not among the most probable that together reach `top_p`."""
    ordered = jnp.sort(logits, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
    first = jnp.sum(below[..., :-1] <= 1 - top_p, axis=-1, keepdims=True)
    return _from(logits, jnp.take_along_axis(ordered, first, axis=-1))


def _from(logits: Array, lowest: Array) -> Array:
    return jnp.where(logits < lowest, -jnp.inf, logits)


def sample_keys(key: Key[Array, ""], prompts: Int[Array, " B"], group_size: int) -> Key[Array, "B G"]:
    """Returns the key of each sample, which depends on nothing but `key`, prompt and number of the sample."""
    fold = jax.random.fold_in
    samples = jnp.arange(group_size)
    return jax.vmap(lambda p: jax.vmap(lambda s: fold(fold(key, p), s))(samples))(prompts)


def draw(
    logits: Float[Array, " B #G V"], keys: Key[Array, "B G"], step: Int[Array, " B"], sampling: Sampling
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Returns a token per sample and its log-probability under the model, without temperature and filters.

    Args:
        logits: float32; with a G of 1, all samples of a group draw from the same.
        keys: of the samples, see `sample_keys`.
        step: how many tokens the samples of a group had before.
    """
    if sampling.temperature == 0:
        tokens = jnp.broadcast_to(jnp.argmax(logits, -1), keys.shape)
    else:

        def noise(key: Key[Array, ""], step: Int[Array, ""]) -> Float[Array, " V"]:
            return jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[-1:], jnp.float32)

        gumbel = jax.vmap(jax.vmap(noise, (0, None)))(keys, step)
        tokens = jnp.argmax(filtered(logits, sampling) + gumbel, -1)
    logp = jnp.broadcast_to(jax.nn.log_softmax(logits), (*keys.shape, logits.shape[-1]))
    return tokens.astype(jnp.int32), jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]
