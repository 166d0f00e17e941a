"""A loop of steps changes its caches where they lie, with one row too, and gives what a plain loop gives."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3jax.generate.loop import put, repeat_steps

_STEPS, _SIZE = 5, 40


def _attend(loop, update):
    """Returns a loop of steps, each of which writes a column of a cache and reads all of it."""

    def run(cache, x):
        def body(carry):
            at, x, cache = carry
            cache = update(cache, x, at)
            weights = jax.nn.softmax(jnp.einsum("bkgh,bkht->bkgt", x[:, :, None], cache))
            return at + 1, jnp.einsum("bkgt,bkht->bkgh", weights, cache)[:, :, 0] + 1, cache

        return loop(lambda carry: carry[0] < _STEPS, body, (jnp.int32(0), x, cache))

    return run


def _plain(cache, x, at):
    return jax.lax.dynamic_update_index_in_dim(cache, x, at, axis=3)


def _copied(run, cache, x) -> int:
    """Returns how many copies as large as the cache stand outside the program's entry."""
    text = jax.jit(run).lower(cache, x).compile().as_text()
    inner = text[: text.index("\nENTRY")]
    sizes = [
        np.prod([int(n) for n in dims.split(",")])
        for dims in re.findall(r"= f32\[([\d,]+)\]\S* copy\(", inner)
    ]
    return sum(size == cache.size for size in sizes)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
def test_caches_stay_where_they_are(rows, heads):
    cache = jnp.asarray(np.random.default_rng(0).normal(size=(rows, heads, 8, _SIZE)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, heads, 8)), jnp.float32)
    run = _attend(repeat_steps, lambda cache, x, at: put(cache, x, at, axis=3))
    plain = _attend(jax.lax.while_loop, _plain)
    for ours, theirs in zip(jax.jit(run)(cache, x), jax.jit(plain)(cache, x), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert _copied(run, cache, x) == 0


def test_a_plain_loop_copies_the_cache_of_one_row():
    """Where this fails, XLA has learned it, and `o3jax/generate/loop.py` may go."""
    cache, x = jnp.zeros((1, 2, 8, _SIZE)), jnp.zeros((1, 2, 8))
    assert _copied(_attend(jax.lax.while_loop, _plain), cache, x) > 0


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_put_writes_one_slice(axis):
    whole = np.arange(12.0).reshape(1, 3, 1, 4)
    new, at = -np.ones(np.delete(whole.shape, axis)), whole.shape[axis] - 1
    expected = whole.copy()
    expected[tuple(at if a == axis % 4 else slice(None) for a in range(4))] = new
    np.testing.assert_array_equal(put(jnp.asarray(whole), jnp.asarray(new), at, axis), expected)
