"""Attention along time: every strategy is the same attention, and sends what is documented."""

from __future__ import annotations

import contextlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from o3jax.models.config import EvidenceConfig
from o3jax.models.temporal_attention import STRATEGIES, halo_pairs, temporal_attention
from o3jax.sharding import make_mesh, use_mesh
from tests.support.wire import wire_bytes

RATE = 10.0
CONFIG = EvidenceConfig(hidden_size=16, num_heads=2, temporal_layers=2, window_s=0.5, max_rate=RATE)


def uneven_times(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns increasing times, 0.1 to 0.12 s apart."""
    return np.cumsum(rng.uniform(0.1, 0.12, shape), axis=-1).astype(np.float32)


def on(**axes: int):
    """Returns a context with eight devices on these mesh axes, or with none."""
    return use_mesh(make_mesh(**axes)) if axes else contextlib.nullcontext()


def reference(q, k, v, times, valid, window_s, d_out):
    """Returns attention and its gradients for q, k and v, from full T x T matrices."""
    q, k, v, times, d_out = (np.asarray(x, np.float64) for x in (q, k, v, times, d_out))
    d_out = d_out * valid[:, :, None, None, None]
    scale = q.shape[-1] ** -0.5
    distance = np.abs(times[:, :, None] - times[:, None, :])
    hann = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance, window_s) / window_s)
    hann = np.where(valid[:, None, :] & valid[:, :, None], hann, 0)[:, None, None]
    weights = np.exp(scale * np.einsum("bipnh,bjpnh->bpnij", q, k)) * hann
    weights /= np.where(valid[:, None, None, :, None], weights.sum(-1, keepdims=True), 1)
    out = np.einsum("bpnij,bjpnh->bipnh", weights, v)
    d_weights = np.einsum("bipnh,bjpnh->bpnij", d_out, v)
    d_scores = scale * weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    return (
        out,
        np.einsum("bpnij,bjpnh->bipnh", d_scores, k),
        np.einsum("bpnij,bipnh->bjpnh", d_scores, q),
        np.einsum("bpnij,bipnh->bjpnh", weights, d_out),
    )


def attention_and_gradients(window_s: float, groups: int, strategy: str):
    """Returns a jitted function of (q, k, v, times, valid, d_out): the output and three gradients."""
    c = EvidenceConfig(16, 2, window_s=window_s, max_rate=RATE)
    options = {"window_s": window_s, "halo": halo_pairs(c, groups), "strategy": strategy}

    def both(q, k, v, times, valid, d_out):
        out, back = jax.vjp(lambda *x: temporal_attention(*x, times, valid, **options), q, k, v)
        return out, *back(d_out)

    return jax.jit(both)


def random_case(groups: int, seed: int = 0, *, cells: int = 3):
    rng = np.random.default_rng(seed)
    shape = (2, groups, cells, 2, 4)
    q, k, v, d_out = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
    valid = np.ones((2, groups), bool)
    valid[0, -groups // 5 :] = False
    valid[1, groups // 3] = False
    return 2 * q, k, v, uneven_times(rng, 2, groups), valid, d_out


def assert_same(case, window_s: float, ours) -> None:
    out, *grads = reference(*case[:5], window_s, case[5])
    assert np.abs(out - ours[0]).max() <= 1e-5
    for name, grad, our in zip("qkv", grads, ours[1:], strict=True):
        # Where all keys are at the window's edge, a gradient is as small as what float32 leaves of it.
        assert np.abs(grad - our).max() <= 1e-4 * np.abs(grad).max() + 1e-6, name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("groups", "window_s"),
    [
        pytest.param(77, 0.25, id="window within a shard"),
        pytest.param(37, 1.3, id="window over three shards, the last in part"),
        pytest.param(37, math.inf, id="global window"),
    ],
)
def test_every_strategy_is_the_unsharded_attention(strategy, groups, window_s):
    case = random_case(groups)
    with on(context=8):
        assert_same(case, window_s, attention_and_gradients(window_s, groups, strategy)(*case))


@pytest.mark.parametrize(("groups", "window_s"), [(50, 0.35), (260, math.inf)])
def test_attention_on_one_device(groups, window_s):
    case = random_case(groups, cells=1)
    assert_same(case, window_s, attention_and_gradients(window_s, groups, "halo")(*case))


def test_any_mask_and_any_gaps():
    groups, window_s = 21, 0.45
    attention = attention_and_gradients(window_s, groups, "halo")

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.floats(0.1, 1.0), st.booleans()), min_size=groups, max_size=groups))
    def check(steps):
        gaps, valid = (np.array(x) for x in zip(*steps, strict=True))
        case = list(random_case(groups, cells=1))
        case[3] = np.broadcast_to(np.cumsum(gaps), (2, groups)).astype(np.float32)
        case[4] = np.broadcast_to(valid, (2, groups))
        assert_same(case, window_s, attention(*case))

    check()


def test_unknown_strategy():
    q, k, v, times, valid, _ = random_case(5)
    with pytest.raises(
        ValueError, match="unknown strategy 'rings'; available: halo, allgather, alltoall, ring"
    ):
        temporal_attention(q, k, v, times, valid, window_s=1.0, halo=4, strategy="rings")


OPERATIONS = {
    "halo": "collective-permute",
    "allgather": "all-gather",
    "alltoall": "all-to-all",
    "ring": "collective-permute",
}


def received(program: str, repeats: int) -> dict[str, int]:
    """Returns the bytes that a device gets from others, by kind of collective, from a program's text.

    What stands in the body of a loop runs `repeats` times.
    """
    kinds = "collective-permute|all-gather|all-to-all|all-reduce|reduce-scatter"
    totals: dict[str, int] = {}
    for shapes, kind, where in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(.*?op_name=\"(.*?)\"", program):
        for dims in re.findall(r"f32\[([\d,]*)\]", shapes):
            size = 4 * math.prod(int(d) for d in dims.split(",") if d)
            # An eighth of what is gathered or exchanged was here already.
            size = size if kind == "collective-permute" else size * 7 // 8
            totals[kind] = totals.get(kind, 0) + size * (repeats if "while/body" in where else 1)
    return totals


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_compiled_program_sends_what_is_documented(strategy):
    rows, cells, window_s, halo, counted = 2, 3, 1.5, 15, []
    with on(context=8):
        mesh = jax.sharding.get_mesh()
        split = NamedSharding(mesh, PartitionSpec(None, "context"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        for groups in (40, 160):
            x = jax.ShapeDtypeStruct((rows, groups, cells, 2, 4), jnp.float32, sharding=split)
            times = jax.ShapeDtypeStruct((rows, groups), jnp.float32, sharding=everywhere)
            valid = jax.ShapeDtypeStruct((rows, groups), bool, sharding=everywhere)
            attention = jax.jit(
                lambda *xs: temporal_attention(*xs, window_s=window_s, halo=halo, strategy=strategy),
                out_shardings=split,
            )
            program = attention.lower(x, x, x, times, valid).compile().as_text()
            documented = wire_bytes(strategy, pairs=groups, cells=cells, width=8, halo=halo, ways=8)
            assert received(program, repeats=7) == {OPERATIONS[strategy]: rows * documented}
            counted.append(documented)
    assert (counted[0] == counted[1]) == (strategy == "halo")
