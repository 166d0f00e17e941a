"""The backbone against transformers' Qwen3-VL in torch: logits, gradients, and mistakes that must show."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.names import TRANSPOSED_EXPERTS, model_leaves, tensor_table
from o3jax.inputs import collate as collate_module
from o3jax.inputs.collate import collate
from o3jax.models import rope, text, vision
from o3jax.models.batch import map_arrays
from o3jax.models.layers import rms_norm
from o3jax.models.qwen3_vl import Qwen3VL
from tests.support.tiny import KINDS, make_inputs, our_logits, to_release_dialect

TOLERANCE = 1e-4
MIXED = [[3, (4, 6), 5, (2, 6, 4), 2], [4, (4, 4), (1, 10, 12), 4]]
TWO_VIDEOS = [[3, (3, 4, 6), 4], [2, (2, 8, 6), 6]]
CASES = {
    "text": ([[9], [14]], {"left": True}, {}),
    "images": ([[2, (4, 6), (8, 4), 5, (2, 2), 3], [4, (6, 6), 2]], {}, {}),
    "two_videos_right": (TWO_VIDEOS, {}, {}),
    "two_videos_left": (TWO_VIDEOS, {"left": True}, {}),
    "mixed": (MIXED, {}, {}),
    "bucket": (MIXED, {"left": True}, {"length": 96, "frame_pairs": 5, "patches": 128}),
}


def logit_error(expected, got, mask) -> float:
    valid = mask.astype(bool)
    return float(np.abs(expected - got[:, : mask.shape[1]])[valid].max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tiny, case):
    rows, how, sizes = CASES[case]
    reference, inputs = tiny("dense"), make_inputs(rows, **how)
    expected = reference.logits(inputs)
    assert 2 < expected.std() < 5  # spread wide enough for the tolerance to mean something
    got = our_logits(reference.ours, collate(inputs, reference.config, **sizes))
    assert logit_error(expected, got, inputs["attention_mask"]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["tied", "moe"])
def test_other_kinds_equal_transformers(tiny, kind):
    reference, inputs = tiny(kind), make_inputs(MIXED, left=True)
    got = our_logits(reference.ours, collate(inputs, reference.config))
    assert logit_error(reference.logits(inputs), got, inputs["attention_mask"]) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_release_dialect_is_the_same_model(tiny, kind, tmp_path):
    reference = tiny(kind)
    to_release_dialect(reference.folder, tmp_path)
    config = config_from_hf(tmp_path)
    assert config == reference.config
    released, saved = model_leaves(load_weights(tmp_path, config)), model_leaves(reference.ours)
    for path, leaf in saved.items():
        np.testing.assert_array_equal(leaf, released[path], err_msg=path)


# --- deliberate mistakes ---


def erf_in_blocks(monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: gelu(x, approximate=False))


def tanh_in_mergers(monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: gelu(x, approximate=True))


def deepstack_one_layer_late(monkeypatch):
    embed = Qwen3VL.embed

    def late(self, *args, **kwargs):
        x, taps = embed(self, *args, **kwargs)
        return x, jnp.concatenate([jnp.zeros_like(taps[:1]), taps])

    monkeypatch.setattr(Qwen3VL, "embed", late)


def deepstack_reversed(monkeypatch):
    embed = Qwen3VL.embed

    def backwards(self, *args, **kwargs):
        x, taps = embed(self, *args, **kwargs)
        return x, taps[::-1]

    monkeypatch.setattr(Qwen3VL, "embed", backwards)


def text_rope_axes_swapped(monkeypatch):
    angles = text.text_angles
    monkeypatch.setattr(text, "text_angles", lambda p, *rest: angles(p[:, jnp.array([0, 2, 1])], *rest))


def vision_rope_axes_swapped(monkeypatch):
    angles = vision.vision_angles
    monkeypatch.setattr(vision, "vision_angles", lambda coords, dim: angles(coords[..., ::-1], dim))


def chunked_mrope(monkeypatch):
    monkeypatch.setattr(rope, "mrope_axes", lambda dim, section: np.repeat([0, 1, 2], section))


def layer_norm_eps(monkeypatch):
    def layer_norm(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias

    monkeypatch.setattr(vision, "layer_norm", layer_norm)


def rms_norm_eps(monkeypatch):
    rms_norm = text.rms_norm
    monkeypatch.setattr(text, "rms_norm", lambda x, scale, eps: rms_norm(x, scale, 1e-5))


def raster_patches(monkeypatch):
    layout = collate_module.frame_layout

    def raster(*args):
        coords, index, weight = layout(*args)
        order = np.lexsort((coords[:, 1], coords[:, 0]))
        return coords[order], index[order], weight[order]

    monkeypatch.setattr(collate_module, "frame_layout", raster)


def half_pixel_table(monkeypatch):
    layout = collate_module.frame_layout

    def half_pixel(height, width, side, merge):
        coords, _, _ = layout(height, width, side, merge)
        at = np.clip((coords + 0.5) * side / np.array([height, width]) - 0.5, 0, side - 1)
        low = np.floor(at).astype(np.int32)
        high, part = np.minimum(low + 1, side - 1), at - low
        rows, cols = np.stack([low, high], -1).swapaxes(0, 1)
        a, b = np.stack([1 - part, part], -1).swapaxes(0, 1)
        index = (rows[:, :, None] * side + cols[:, None]).reshape(-1, 4)
        return coords, index, (a[:, :, None] * b[:, None]).reshape(-1, 4).astype(np.float32)

    monkeypatch.setattr(collate_module, "frame_layout", half_pixel)


MUTANTS = (
    erf_in_blocks,
    tanh_in_mergers,
    deepstack_one_layer_late,
    deepstack_reversed,
    text_rope_axes_swapped,
    vision_rope_axes_swapped,
    chunked_mrope,
    layer_norm_eps,
    rms_norm_eps,
    raster_patches,
    half_pixel_table,
)


def test_rms_norm_gradients_equal_torch():
    rng = np.random.default_rng(0)
    x, scale, cotangent = (rng.standard_normal(size).astype(np.float32) for size in ((2, 3, 8), 8, (2, 3, 8)))
    x *= 0.1  # of the size where eps counts
    eps = 1e-2
    wanted = [torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (x, scale)]
    out = torch.nn.functional.rms_norm(wanted[0], (8,), wanted[1], eps)
    out.backward(torch.from_numpy(cotangent.astype(np.float64)))
    got, pullback = jax.vjp(lambda x, scale: rms_norm(x, scale, eps), jnp.asarray(x), jnp.asarray(scale))
    np.testing.assert_allclose(got, out.detach(), atol=1e-6)
    for mine, theirs in zip(pullback(jnp.asarray(cotangent)), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, atol=1e-6 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("mutant", [None, *MUTANTS], ids=lambda m: m.__name__ if m else "none")
def test_mistakes_show(tiny, mutant, monkeypatch):
    """Each mistake moves the logits beyond the tolerance; the same program without one does not."""
    reference, inputs = tiny("dense"), make_inputs(MIXED)
    if mutant:
        mutant(monkeypatch)
    batch = collate(inputs, reference.config)
    got = our_logits(reference.ours, batch)
    error = logit_error(reference.logits(inputs), got, inputs["attention_mask"])
    assert error > 5 * TOLERANCE if mutant else error <= TOLERANCE


# --- gradients ---


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_transformers(tiny, kind):
    reference, inputs = tiny(kind), make_inputs(MIXED, left=True)
    labels = np.where(inputs["attention_mask"], inputs["input_ids"], -100)
    labels[np.arange(len(labels)), inputs["attention_mask"].argmax(1)] = -100  # what padding predicts
    reference.torch.zero_grad()
    theirs_loss = reference.run_torch(inputs | {"labels": labels}).loss
    theirs_loss.backward()
    theirs = {name: p.grad.numpy() for name, p in reference.torch.named_parameters()}

    def loss(model, batch):
        logits, targets = model(batch)[:, :-1], jnp.asarray(labels[:, 1:])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
        return jnp.sum(losses, where=targets >= 0) / jnp.sum(targets >= 0)

    batch = collate(inputs, reference.config)
    ours_loss, grads = jax.jit(jax.value_and_grad(loss))(reference.ours, batch)
    np.testing.assert_allclose(ours_loss, theirs_loss.item(), rtol=1e-5)

    ours, visuals = model_leaves(grads), set()
    for entry in tensor_table(reference.config):
        if ".experts." in entry.name:  # transformers 5 holds the experts transposed
            entry = dataclasses.replace(entry, pattern=TRANSPOSED_EXPERTS[entry.pattern])
        layers = [entry.to_leaf(theirs[name]) for name in entry.names]
        expected = layers[0] if entry.count is None else np.stack(layers)
        scale = np.abs(expected).max()
        assert scale > 0, entry.leaf
        assert np.abs(ours[entry.leaf] - expected).max() <= 1e-4 * scale, entry.leaf
        visuals.add(entry.leaf)
    assert visuals == set(ours)
    assert len(theirs) == sum(len(entry.names) for entry in tensor_table(reference.config))


# --- frames do not see each other ---


def test_a_frame_group_is_the_same_alone_and_inside_a_long_video(tiny):
    reference = tiny("dense")
    groups, size = 12, 6 * 8
    whole = collate(make_inputs([[2, (groups, 6, 8), 2]]), reference.config)
    video = whole.patches
    alone = map_arrays(lambda a: a[:, 5:6], video)
    padded = map_arrays(lambda a, b: np.concatenate([a, np.zeros_like(b[:, 1:])], 1), alone, video)
    tower = jax.jit(lambda model, patches: model.vision(patches))
    part = slice(5 * size // 4, 6 * size // 4)
    expected = [x[..., part, :] for x in tower(reference.ours, video)]
    for mine, in_bucket, by_itself in zip(
        expected, tower(reference.ours, padded), tower(reference.ours, alone), strict=True
    ):
        np.testing.assert_array_equal(in_bucket[..., : size // 4, :], mine)
        # Another shape lets the matrix library add in another order.
        np.testing.assert_allclose(by_itself, mine, atol=1e-6 * np.abs(mine).max(), rtol=0)
        assert np.abs(mine).max() > 1
