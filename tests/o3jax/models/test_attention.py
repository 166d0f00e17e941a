"""Attention and the layers that bring their own gradient, against plain formulas and JAX's derivatives."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from o3jax.models.attention import Mask, attention
from o3jax.models.layers import layer_norm, linear
from o3jax.sharding import make_mesh, use_mesh

B, S, T, N, K, H = 2, 300, 40, 4, 2, 8  # queries of three blocks, the last one not full


def packed() -> Mask:
    """Two segments with padding behind; in the first a prefix that two branches continue."""
    segments, continuations = np.ones((B, S), np.int32), np.zeros((B, S), np.int32)
    segments[:, 200:], segments[0, 280:] = 2, 0
    continuations[:, 60:110], continuations[:, 110:170] = 1, 2
    return Mask(segments, segments, continuations, continuations, causal=True)


def across() -> Mask:
    """Queries of one thing to keys of another; some have nothing to read."""
    queries, keys = np.ones((B, S), np.int32), np.ones((B, T), np.int32)
    queries[1, 250:], keys[:, 30:] = 2, 0
    return Mask(queries, keys)


def plain(q, k, v, allowed):
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    scores = jnp.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(H)
    scores = jnp.where(allowed[:, None], scores, -1e30)
    return jnp.einsum("bnst,btnh->bsnh", jax.nn.softmax(scores, -1), v)


def results(fn, arguments, weights):
    """Returns what `fn` gives and the gradients of its weighted sum."""

    def run(*arguments):
        out, back = jax.vjp(fn, *arguments)
        return out, *back(weights.astype(out.dtype))

    return jax.jit(run)(*arguments)


def assert_close(got, expected, tolerance):
    for mine, theirs in zip(got, expected, strict=True):
        mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=tolerance * np.abs(theirs).max())


def long(causal: bool) -> Mask:
    """So many queries that several blocks share their keys; no block divides their number."""
    segments, continuations = np.ones((B, 2400), np.int32), np.zeros((B, 2400), np.int32)
    segments[1, 1500:], segments[:, 2390:] = 2, 0
    continuations[0, 1000:1700], continuations[0, 1700:] = 1, 2
    return Mask(segments, segments, continuations, continuations, causal=causal)


@pytest.mark.parametrize(
    "mask",
    [packed(), across(), long(True), long(False)],
    ids=["packed", "across", "long", "long and not causal"],
)
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attention_and_its_gradients(mask, dtype, tolerance):
    rng, queries, keys = np.random.default_rng(0), mask.q_segments.shape[1], mask.kv_segments.shape[1]
    shapes = (B, queries, N, H), (B, keys, K, H), (B, keys, K, H)
    arguments = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    allowed = np.asarray(mask.dense())
    # Where a query has nothing to read, nobody reads its result.
    weights = rng.standard_normal((B, queries, N, H)) * allowed.any(-1)[..., None, None]
    got = results(lambda *x: attention(*x, mask), arguments, weights)
    exact = [np.asarray(x, np.float32) for x in arguments]
    out, *gradients = results(lambda *x: plain(*x, allowed), exact, weights)
    assert all(x.dtype == dtype for x in got) and np.isfinite(np.asarray(got[0], np.float32)).all()
    there = allowed.any(-1)
    assert_close([got[0][there]], [out[there]], tolerance)
    assert_close(got[1:], gradients, tolerance)


def test_no_scores_are_kept_for_the_backward_pass():
    q, k = (jax.ShapeDtypeStruct((B, S, heads, H), jnp.float32) for heads in (N, K))
    kept = jax.eval_shape(lambda *x: jax.vjp(lambda *y: attention(*y, packed()), *x)[1], q, k, k)
    sizes = [leaf.size for leaf in jax.tree.leaves(kept)]
    assert sum(sizes) < 6 * q.size and max(sizes) <= q.size


def float64(q, k, v, allowed, weights):
    """Returns the attention and the gradients of its weighted sum, by hand in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    scores = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(allowed[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e300))
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
    dp = np.einsum("bsnh,btnh->bnst", weights, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    summed = [
        x.reshape(*x.shape[:2], K, N // K, -1).sum(3)
        for x in (np.einsum("bnst,bsnh->btnh", ds, q), np.einsum("bnst,bsnh->btnh", p, weights))
    ]
    return np.einsum("bnst,btnh->bsnh", p, v), np.einsum("bnst,btnh->bsnh", ds, k), *summed


EIGHT = {"fsdp": 2, "tensor": 2, "context": 2}


@pytest.mark.parametrize(
    ("kind", "mesh", "more"),
    [
        *((kind, mesh, 0) for kind in ("causal", "continuations", "all") for mesh in ({}, EIGHT)),
        # So long that the queries of a row are dealt out.
        ("continuations", EIGHT, 255),
        ("causal", {"fsdp": 2, "context": 4}, 760),
    ],
)
def test_splash_has_the_numbers_of_a_float64_reference(monkeypatch, kind, mesh, more):
    monkeypatch.setattr("o3jax.models.attention.splash._INTERPRET", True)
    rng, size = np.random.default_rng(0), 250 + more  # no block divides it
    segments, continuations = np.ones((B, size), np.int32), np.zeros((B, size), np.int32)
    segments[1, 130:], segments[:, size - 10 :] = 2, 0
    continuations[0, 90:160], continuations[0, 160 : size - 10] = 1, 2
    told = (continuations, continuations) if kind == "continuations" else ()
    mask = Mask(segments, segments, *told, causal=kind != "all")
    q, k, v = (jnp.asarray(rng.standard_normal((B, size, n, H)), jnp.float32) for n in (N, K, K))
    there = segments > 0
    weights = rng.standard_normal(q.shape) * there[..., None, None]
    expected = float64(q, k, v, np.asarray(mask.dense()), weights)
    with use_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
        got = results(lambda *x: attention(*x, mask, "splash"), (q, k, v), weights)
    assert_close([got[0][there]], [expected[0][there]], 1e-5)
    assert_close(got[1:], expected[1:], 1e-5)


@pytest.mark.parametrize("mask", [long(True), long(False)], ids=["causal", "all"])
def test_the_plain_kernel_gathers_the_keys_of_a_row_once(mask):
    """A row over four devices has the numbers of one; its loops over blocks hold no transfer."""
    rng = np.random.default_rng(0)
    shapes = (B, 2400, N, H), (B, 2400, K, H), (B, 2400, K, H)
    arguments = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    allowed = np.asarray(mask.dense())
    weights = jnp.asarray(rng.standard_normal(shapes[0]) * allowed.any(-1)[..., None, None], jnp.float32)

    def gradients(*arguments):
        out, back = jax.vjp(lambda *x: attention(*x, mask), *arguments)
        return out, *back(weights)

    expected = jax.jit(gradients)(*arguments)
    with use_mesh(make_mesh(fsdp=2, context=4)):
        where = NamedSharding(make_mesh(fsdp=2, context=4), PartitionSpec("fsdp", "context"))
        compiled = jax.jit(gradients).lower(*[jax.device_put(x, where) for x in arguments]).compile()
        got = compiled(*[jax.device_put(x, where) for x in arguments])
    assert_close(got, expected, 1e-5)
    gathers = re.findall(r"= \S+ (all-gather|all-reduce|reduce-scatter)(?:-start)?\(", compiled.as_text())
    assert 0 < len(gathers) <= 12, gathers


def test_kernels_of_gpus_refuse_what_they_cannot_read():
    q, k = (jnp.zeros((B, S, heads, H)) for heads in (N, K))
    for kernel in ("cudnn", "triton"):
        with pytest.raises(ValueError, match=f"{kernel} reads no prefix with continuations"):
            attention(q, k, k, packed(), kernel)
    with pytest.raises(ValueError, match="one length"):
        attention(q, k[:, :40], k[:, :40], across(), "triton")
    with pytest.raises(
        ValueError, match="unknown attention kernel 'flash'; available: cudnn, splash, triton, xla"
    ):
        attention(q, k, k, packed(), "flash")


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "made again"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_program_does_not_grow_with_the_sequence_nor_hold_its_scores(causal, remat):
    def program(size):
        def loss(q, k, v, segments):
            def layer(q, _):
                return attention(q, k, v, Mask(segments, segments, causal=causal)), None

            return jax.lax.scan(jax.checkpoint(layer) if remat else layer, q, None, 2)[0].sum()

        q, k = (jax.ShapeDtypeStruct((1, size, heads, H), jnp.float32) for heads in (N, K))
        ids = jax.ShapeDtypeStruct((1, size), jnp.int32)
        return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k, ids)

    short, long = program(4096), program(65536)
    assert str(long).count("dot_general") == str(short).count("dot_general")
    shapes = re.findall(r"(?:f32|bool|i32)\[([\d,]+)\]", str(long))
    assert max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes) <= 128 * 65536 * N


@pytest.mark.parametrize("width", [6, 30], ids=["narrower", "wider"])
def test_linear_and_layer_norm_have_the_gradients_of_their_formulas(width):
    rng = np.random.default_rng(1)
    x, w = jnp.asarray(rng.standard_normal((3, 7, 12)) + 2), jnp.asarray(rng.standard_normal((12, 2, width)))
    weights = rng.standard_normal((3, 7, 2, width))
    got = results(linear, (x, w), weights)
    assert_close(got, results(lambda x, w: jnp.einsum("abd,dnh->abnh", x, w), (x, w), weights), 1e-6)
    scale, bias = jnp.asarray(rng.standard_normal((2, 12)))

    def formula(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias

    weights = rng.standard_normal(x.shape)
    got = results(layer_norm, (x, scale, bias), weights)
    assert_close(got, results(formula, (x, scale, bias), weights), 3e-6)
