"""The temporal encoder: seconds rule, nothing leaks, and every strategy trains it alike."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from o3jax.inputs.dense import dense_rate
from o3jax.models.config import EvidenceConfig
from o3jax.models.layers import Initializer
from o3jax.models.runtime import Runtime
from o3jax.models.temporal import TemporalEncoder
from o3jax.models.temporal_attention import STRATEGIES, halo_pairs
from o3jax.sharding import make_mesh, use_mesh
from tests.o3jax.models.test_temporal_attention import received, reference

RATE = 10.0
CONFIG = EvidenceConfig(hidden_size=16, num_heads=2, temporal_layers=2, window_s=0.5, max_rate=RATE)
TOWER = 6


def uneven_times(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns increasing times, 0.1 to 0.12 s apart."""
    return np.cumsum(rng.uniform(0.1, 0.12, shape), axis=-1).astype(np.float32)


def on(**axes: int):
    """Returns a context with eight devices on these mesh axes, or with none."""
    return use_mesh(make_mesh(**axes)) if axes else contextlib.nullcontext()


# --- the encoder ---


def make_encoder(c: EvidenceConfig = CONFIG) -> TemporalEncoder:
    """Returns an encoder with weights large enough to matter."""
    rng = np.random.default_rng(1)

    def fill(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.3 * rng.standard_normal(x.shape) + (x.ndim < 3)).astype(np.float32)

    shapes = jax.eval_shape(lambda: TemporalEncoder(c, TOWER, Initializer(jax.random.key(0))))
    return jax.tree.map(fill, shapes)


def encode(encoder, tokens, times, valid, **options) -> np.ndarray:
    run = jax.jit(lambda *xs: xs[0](*xs[1:], **options))
    return np.asarray(run(encoder, tokens, times, valid))


def reference_encoder(encoder: TemporalEncoder, tokens, times) -> np.ndarray:
    """Returns F of one video without padding, in float64; a rotation is a product of complex numbers."""
    c = encoder.config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), encoder)
    layers, heads, half = p.layers, c.num_heads, c.hidden_size // c.num_heads // 2

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale[...]

    periods = 0.5 * 128 ** (np.arange(half) / (half - 1))
    turn = np.exp(2j * np.pi * np.asarray(times, np.float64)[:, None, None, None] / periods)

    def turned(x):
        x = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([x.real, x.imag], -1)

    x = norm(np.asarray(tokens, np.float64), p.input_norm) @ p.input[...]
    for i in range(c.temporal_layers):
        h = norm(x, layers.attention_norm[i])
        q, k, v = np.einsum("tpd,dcnh->ctpnh", h, layers.qkv[i])
        every = np.ones((1, len(times)), bool)
        h = reference(turned(q)[None], turned(k)[None], v[None], times[None], every, c.window_s, v[None])[0][
            0
        ]
        x = x + h.reshape(*x.shape) @ layers.out[i].reshape(heads * 2 * half, -1)
        h = norm(x, layers.mlp_norm[i]) @ layers.up[i]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ layers.down[i]
    return norm(x, p.norm)


def padded_video(lengths: tuple[int, ...], groups: int, cells: int = 2):
    """Returns tokens, times and validity of videos; what stands in the padding is not even a number."""
    rng = np.random.default_rng(2)
    tokens = rng.standard_normal((len(lengths), groups, cells, TOWER)).astype(np.float32)
    times = uneven_times(rng, len(lengths), groups) + np.float32(7.0)
    valid = np.arange(groups) < np.asarray(lengths)[:, None]
    tokens[~valid], times[~valid] = np.nan, np.nan
    return tokens, times, valid


def test_an_encoder_without_layers_has_no_empty_arrays():
    """The ablation's cell without temporal attention; checkpoints refuse arrays of no layers."""
    encoder = make_encoder(dataclasses.replace(CONFIG, temporal_layers=0))
    assert all(leaf.size for leaf in jax.tree.leaves(encoder))
    tokens, times, valid = padded_video((9,), 9)
    np.testing.assert_allclose(
        encode(encoder, tokens, times, valid)[0], reference_encoder(encoder, tokens[0], times[0]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("axes", "chunk"),
    [
        pytest.param({}, None, id="whole"),
        pytest.param({}, 8, id="chunked"),
        pytest.param({"data": 2, "context": 4}, None, id="sharded"),
        pytest.param({"context": 8}, 2, id="sharded and chunked"),
    ],
)
def test_encoder(axes, chunk):
    encoder, (tokens, times, valid) = make_encoder(), padded_video((37, 30), 37)
    with on(**axes):
        ours = encode(encoder, tokens, times, valid.astype(np.int32), chunk=chunk)
    assert ours.shape == (2, 37, 2, 16) and np.isfinite(ours).all()
    for row, length in enumerate((37, 30)):
        expected = reference_encoder(encoder, tokens[row, :length], times[row, :length])
        assert np.abs(expected - ours[row, :length]).max() <= 1e-5 * np.abs(expected).max()


def features_and_gradients(encoder, tokens, times, valid, **options):
    """Returns F where valid, and the gradients of a weighted sum of it for the encoder and the tokens."""
    weight = np.random.default_rng(3).standard_normal((*tokens.shape[:3], 16)) * valid[:, :, None, None]

    def loss(encoder, tokens):
        features = encoder(tokens, times, valid, **options)
        return (features * weight).sum(), features

    gradients, features = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(encoder, tokens)
    return np.asarray(features)[valid], gradients


@pytest.fixture(scope="module")
def on_one_device():
    """An input whose frame pairs no number of devices divides, and what one device makes of it."""
    inputs = padded_video((77, 61), 77)
    return inputs, features_and_gradients(make_encoder(), *inputs)


@pytest.mark.parametrize(
    ("strategy", "chunk"),
    [*((strategy, None) for strategy in STRATEGIES), pytest.param("halo", 4, id="halo-chunked")],
)
def test_every_strategy_trains_the_encoder_as_one_device_does(on_one_device, strategy, chunk):
    inputs, (expected, slopes) = on_one_device
    encoder = make_encoder(dataclasses.replace(CONFIG, strategy=strategy))
    with on(context=8):
        features, gradients = features_and_gradients(encoder, *inputs, chunk=chunk)
    assert np.abs(expected - features).max() <= 1e-5 * np.abs(expected).max()
    for (path, slope), our in zip(jax.tree.leaves_with_path(slopes), jax.tree.leaves(gradients), strict=True):
        scale, error = np.abs(slope).max(), np.abs(slope - our).max()
        assert scale > 0 and error <= 1e-4 * scale, (path, error, scale)


def test_chunks_bound_the_memory_of_the_gradient():
    """Four times the frame pairs: in chunks about the same memory, F and its gradient apart."""
    encoder = make_encoder()

    def held(groups: int, chunk: int | None) -> int:
        shapes = ((1, groups, 2, TOWER), jnp.float32), ((1, groups), jnp.float32), ((1, groups), bool)
        inputs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        slope = jax.grad(lambda encoder, *xs: (encoder(*xs, chunk=chunk) ** 2).sum())
        return jax.jit(slope).lower(encoder, *inputs).compile().memory_analysis().temp_size_in_bytes

    chunked, whole = ([held(groups, chunk) for groups in (512, 2048)] for chunk in (128, None))
    assert 0 < chunked[1] <= 1.5 * chunked[0]
    assert whole[1] >= 3 * whole[0] and whole[1] >= 5 * chunked[1]


@pytest.mark.parametrize("axes", [{}, {"context": 8}])
def test_video_of_one_frame_pair(axes):
    encoder, (tokens, times, valid) = make_encoder(), padded_video((1,), 1)
    with on(**axes):
        ours = encode(encoder, tokens, times, valid)
    np.testing.assert_allclose(ours[0], reference_encoder(encoder, tokens[0], times[0]), atol=2e-5)


def test_video_of_no_frame_pair_is_finite():
    tokens, times, valid = padded_video((0,), 3)
    assert np.isfinite(encode(make_encoder(), tokens, times, valid)).all()


def test_gradients_do_not_depend_on_chunks_or_remat_and_ignore_padding():
    encoder, (tokens, times, valid) = make_encoder(), padded_video((20, 12), 20)
    weight = np.random.default_rng(3).standard_normal((2, 20, 2, 16)) * valid[:, :, None, None]

    def gradients(**options):
        def loss(encoder, tokens):
            return (encoder(tokens, times, valid, **options) * weight).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(encoder, tokens)

    plain, chunked = gradients(), gradients(chunk=6, runtime=Runtime(remat="names"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(chunked), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
        assert np.abs(a).max() > 0
    assert not np.asarray(plain[1])[~valid].any()


def test_only_differences_of_times_count():
    encoder, (tokens, times, valid) = make_encoder(), padded_video((24, 20), 24)
    run = jax.jit(lambda times: encoder(tokens, times, valid))
    here, hour_later, slower = run(times), run(times + 3600), run(times * 1.1)
    # A float32 of an hour is exact to 0.2 ms only.
    np.testing.assert_allclose(here, hour_later, atol=2e-2)
    np.testing.assert_allclose(here, run(times + 8), atol=3e-4)
    assert np.abs(here - slower)[valid].max() > 0.1


def test_one_signal_at_three_rates_is_one_result():
    """F of a smooth signal at 10, 25 and 30 frames per second differs by under 1 % of its spread (rms);
    with a hard edge of the window in place of the Hann window it would be almost 3 %."""
    c = EvidenceConfig(hidden_size=16, num_heads=2, temporal_layers=2, window_s=1.0, max_rate=15.0)
    encoder = jax.tree.map(lambda x: x / 2 if x.ndim > 2 else x, make_encoder(c))
    seconds, rates = 5.0, np.array([5.0, 12.5, 15.0])  # frame pairs per second
    groups = round(seconds * rates.max())
    times = ((np.arange(groups) + 0.5) / rates[:, None]).astype(np.float32)
    valid = times < seconds
    phase = 2 * np.pi * np.array([0.09, 0.15, 0.21, 0.12, 0.18, 0.06]) * times[..., None, None] + np.arange(6)
    ours = encode(encoder, np.sin(phase).astype(np.float32), times, valid)[:, :, 0]

    at = times[0, 3:22]  # half a second from both ends
    slow, middle, fast = (
        np.stack([np.interp(at, t[m], f[m][:, d]) for d in range(16)], -1)
        for t, m, f in zip(times, valid, ours, strict=True)
    )
    assert middle.std(0).min() > 0.1
    for other in (slow, fast):
        assert np.sqrt(((other - middle) ** 2).mean()) <= 0.01 * middle.std()


def test_cells_do_not_mix():
    encoder, (tokens, times, valid) = make_encoder(), padded_video((12,), 12, cells=3)
    changed = tokens.copy()
    changed[:, :, 1] += 1
    run = jax.jit(lambda tokens: encoder(tokens, times, valid))
    moved = np.abs(run(tokens) - run(changed)).max((0, 1, 3))
    assert moved[1] > 0.1 and moved[0] == moved[2] == 0


def test_chunks_of_a_global_window_are_refused():
    encoder, (tokens, times, valid) = (
        make_encoder(EvidenceConfig(16, 2, window_s=math.inf)),
        padded_video((9,), 9),
    )
    with pytest.raises(ValueError, match="chunks of 4 pairs with a window of inf s"):
        encoder(tokens, times, valid, chunk=4)


# --- the precondition ---


@settings(max_examples=200, deadline=None)
@given(st.floats(0.5, 240), st.floats(2, 30), st.floats(0.1, 1), st.floats(0.05, 1.5), st.integers(1, 60))
def test_no_window_over_a_dense_stream_loses_a_pair(native, rate, share, window_s, frames):
    c = EvidenceConfig(16, 2, dense_fps=share * 2 * rate, window_s=window_s, max_rate=rate)
    shown = np.arange(frames) / dense_rate(native, c)
    times = np.append(shown, shown[-1:].repeat(frames % 2)).reshape(-1, 2).mean(1)
    near = np.abs(times[:, None] - times) < window_s
    assert max(j - i for i, j in zip(*np.nonzero(near), strict=True)) <= halo_pairs(c, len(times))


@pytest.mark.parametrize(
    ("window_s", "rate", "groups", "halo"),
    [
        (2.0, 12.5, 100, 25),
        (0.28, 12.5, 100, 4),
        (0.56, 12.5, 100, 7),
        (2.0, 12.5, 10, 9),
        (math.inf, 12.5, 10, 9),
    ],
)
def test_groups_of_a_window(window_s, rate, groups, halo):
    assert halo_pairs(EvidenceConfig(16, 2, window_s=window_s, max_rate=rate), groups) == halo


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan])
def test_a_window_is_positive(window_s):
    with pytest.raises(ValueError, match="positive number of seconds"):
        halo_pairs(EvidenceConfig(16, 2, window_s=window_s), 10)


def test_frames_within_a_chunk_on_each_device_add_nothing_to_what_is_sent():
    """Of the encoder: F, which is as long as the video, stays where it is."""
    encoder, sent = make_encoder(), []
    with on(context=8):
        split = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(None, "context"))
        run = jax.jit(lambda *xs: xs[0](*xs[1:], chunk=40), out_shardings=split)
        for groups in (80, 320):
            tokens = jax.ShapeDtypeStruct((1, groups, 3, TOWER), jnp.float32, sharding=split)
            times = jax.ShapeDtypeStruct((1, groups), jnp.float32)
            valid = jax.ShapeDtypeStruct((1, groups), bool)
            program = run.lower(encoder, tokens, times, valid).compile().as_text()
            sent.append(received(program, repeats=1))
    assert sent[0]["collective-permute"] == sent[1]["collective-permute"] > 0
    for groups, kinds in zip((80, 320), sent, strict=True):
        others = sum(size for kind, size in kinds.items() if kind != "collective-permute")
        assert others <= 4 * groups * 4  # times and their like
