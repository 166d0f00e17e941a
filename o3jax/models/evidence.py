"""When and where, estimated beside the text: question matching and the evidence decoder.

    QuestionEncoder   question tokens -> one vector; with F -> relevance over time
    EvidenceDecoder   one query per mention, or learned slots with the question -> `Estimate`

Both read the dense stream's feature matrix F; the decoder also reads the full-resolution visual
tokens of the language stream. Everything that differs from row to row is data: padded mentions,
pairs, cells and tokens are masked, so shapes are static.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from o3jax.models.attention import Mask, attention
from o3jax.models.config import EvidenceConfig
from o3jax.models.layers import Initializer, linear, rms_norm, run_layers
from o3jax.models.rope import rotate
from o3jax.models.runtime import Runtime
from o3jax.sharding import shard

_EPS = 1e-6  # of the RMS norms
NEVER = -1e9  # a logit that softmax makes zero; finite, so that a row of nothing else is even, not NaN
_QUESTION_THETA = 10_000.0

# Periods of the features of a time, from half a second (finer comes from the pairs themselves) to
# hours, and wave numbers of a position, half a wave per frame and finer.
_TIME_PERIODS = np.geomspace(0.5, 8192.0, 16)
_CELL_WAVES = 0.5 * 2.0 ** np.arange(6)
_TIME_FEATURES = 2 * len(_TIME_PERIODS)
_CELL_FEATURES = 4 * len(_CELL_WAVES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseFeatures:
    """F, what the temporal encoder returned, and where its values stand in time and in the frame."""

    features: Float[Array, "B T P D"]
    times: Float[Array, "B T"]  # seconds; mean time of each frame pair
    valid: Bool[Array, "R T"]  # which pairs may be read, by each video or by each of its questions
    cells: Float[Array, "B P 2"]  # centre (x, y) of each cell, in [0, 1] of the frame
    cell_valid: Bool[Array, "B P"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """The language stream's visual tokens, per frame pair."""

    tokens: Float[Array, "B Tv Pv D"]
    times: Float[Array, "B Tv"]  # seconds; mean time of each frame pair
    centres: Float[Array, "B Tv Pv 2"]  # centre (x, y) of each token, in [0, 1] of the frame
    valid: Bool[Array, "R Tv Pv"]  # as in `DenseFeatures`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the decoder says of each mention; all float32."""

    time_logits: Float[Array, "B M T"]  # over dense frame pairs
    interval_logits: Float[Array, "B M 2 T"]  # of the start and of the end of the visible interval
    time_s: Float[Array, "B M"]  # expected time, seconds
    spread_s: Float[Array, "B M"]  # standard deviation of the time, seconds
    interval: Float[Array, "B M 2"]  # expected start <= time <= expected end, seconds
    box: Float[Array, "B M 4"]  # x1, y1, x2, y2 in [0, 1], ordered
    confidence: Float[Array, "B M"]  # logit of being right


def time_features(seconds: Float[Array, "*dims"]) -> Float[Array, "*dims features"]:
    """Returns sine and cosine of a time at periods from 0.5 s to 8192 s, float32 [..., 32]."""
    return _waves(seconds[..., None] * (2 * np.pi / _TIME_PERIODS).astype(np.float32))


def cell_features(centres: Float[Array, "*dims 2"]) -> Float[Array, "*dims features"]:
    """Returns sine and cosine of a position at 0.5 to 16 waves per frame, float32 [..., 24]."""
    angles = centres[..., None] * (2 * np.pi * _CELL_WAVES).astype(np.float32)
    return _waves(angles.reshape(*centres.shape[:-1], -1))


def repeated(x: Array, rows: int) -> Array:
    """Returns what belongs to each video [B, ...] for each question [rows, ...], B dividing the rows.

    Questions about one video are consecutive. What is computed from the video alone is computed once
    per video and repeated as late as possible.
    """
    return repeat(x, "b ... -> (b questions) ...", questions=rows // len(x))


def _by_pair(x: Array) -> Array:
    """Returns what frame pairs, or their cells, have on each row [B, X, ...], on the devices of these pairs.

    The weights are spread by what they give. Left alone, so would be what they make of the pairs, for which
    all rows are gathered on every device.
    """
    return shard(x, "batch", "frame_pairs", *[None] * (x.ndim - 2))


def _waves(angles: Array) -> Array:
    angles = angles.astype(jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Block(nnx.Module):
    """Pre-norm attention and MLP; `leading` stacks several blocks."""

    def __init__(self, c: EvidenceConfig, init: Initializer, leading: tuple[int, ...] = ()):
        D, F, N = c.hidden_size, c.mlp_size, c.num_heads
        H, none = D // N, (None,) * len(leading)
        self.norm = init.scale((*leading, D), (*none, None))
        self.q = init.weight((*leading, D, N, H), (*none, "embed", "heads", None))
        self.k = init.weight((*leading, D, N, H), (*none, "embed", "heads", None))
        self.v = init.weight((*leading, D, N, H), (*none, "embed", "heads", None))
        self.o = init.weight((*leading, N, H, D), (*none, "heads", None, "embed"))
        self.mlp_norm = init.scale((*leading, D), (*none, None))
        self.up = init.weight((*leading, D, F), (*none, "embed", "mlp"))
        self.down = init.weight((*leading, F, D), (*none, "mlp", "embed"))

    def __call__(
        self,
        x: Float[Array, "R S D"],
        memory: Float[Array, "B X D"] | None,
        mask: Mask,
        rope: tuple[Array, Array] | None,
        runtime: Runtime,
    ) -> Float[Array, "R S D"]:
        """Returns x after attention to `memory` (None: to x itself) and the MLP.

        `x` may have several rows, one after the other, for each row of the memory: see `repeated`.
        """
        h = rms_norm(x, self.norm[...], _EPS)
        source = h if memory is None else memory
        q, k, v = linear(h, self.q[...]), linear(source, self.k[...]), linear(source, self.v[...])
        if memory is not None:
            k, v = (shard(x, "batch", "frame_pairs", "heads", None) for x in (k, v))
        k, v = repeated(k, len(x)), repeated(v, len(x))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        h = attention(q, k, v, mask)  # few queries, other keys: for no kernel but the plain one
        x = x + linear(h.reshape(*h.shape[:2], -1), self.o[...].reshape(-1, x.shape[-1]))
        h = jax.nn.gelu(linear(rms_norm(x, self.mlp_norm[...], _EPS), self.up[...]))
        return x + linear(h, self.down[...])


class Pointer(nnx.Module):
    """Scores of places for each query, `ways` questions at once: a product of projections."""

    def __init__(self, c: EvidenceConfig, init: Initializer, ways: int):
        D = c.hidden_size
        self.norm = init.scale((D,), (None,))
        self.q = init.weight((D, ways, D), ("embed", None, None))
        self.k = init.weight((D, 1, D), ("embed", None, None))

    def __call__(
        self, x: Float[Array, "R M D"], places: Float[Array, "B X D"], allowed: Bool[Array, " R #M X"]
    ) -> Float[Array, "R M ways X"]:
        """Returns float32 logits, never chosen where not `allowed`."""
        q = linear(rms_norm(x, self.norm[...], _EPS), self.q[...])
        k = repeated(_by_pair(linear(places, self.k[...])[:, :, 0]), len(x))
        scores = jnp.einsum("bmwd,bxd->bmwx", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        return jnp.where(allowed[:, :, None], scores, NEVER)


class QuestionEncoder(nnx.Module):
    """The question as one vector, and the relevance of every moment to it."""

    def __init__(self, c: EvidenceConfig, embed_size: int, init: Initializer):
        self.config = c
        D = c.hidden_size
        self.embed_in = init.weight((embed_size, D), (None, "embed"))
        self.layers = Block(c, init, (c.question_layers,))
        self.norm = init.scale((D,), (None,))
        self.feature_norm = init.scale((D,), (None,))
        self.time_in = init.weight((_TIME_FEATURES, D), (None, "embed"))
        self.relevance_bias = init.bias((), ())

    def __call__(
        self, embeddings: Float[Array, "B Sq E"], valid: Bool[Array, "B Sq"], runtime: Runtime = Runtime()
    ) -> Float[Array, "B D"]:
        """Returns the question's vector: the mean of its tokens after bidirectional layers.

        Args:
            embeddings: the language model's input embeddings of the question's tokens.
            valid: which of them are real; a row without any gives a finite vector.
        """
        c, dtype = self.config, self.norm.dtype
        half = c.hidden_size // c.num_heads // 2
        inv_freq = _QUESTION_THETA ** (-np.arange(half, dtype=np.float32) / half)
        angles = jnp.arange(embeddings.shape[1], dtype=jnp.float32)[None, :, None] * inv_freq
        rope = jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
        segments = valid.astype(jnp.int32)
        mask = Mask(segments, segments)

        def body(x: Array, layer: Block, index: Array) -> Array:
            return layer(x, None, mask, rope, runtime)

        x = run_layers(body, linear(embeddings.astype(dtype), self.embed_in[...]), self.layers)
        weights = valid[..., None].astype(jnp.float32)
        mean = (x.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
        return rms_norm(mean.astype(dtype), self.norm[...], _EPS)

    def relevance(self, question: Float[Array, "R D"], dense: DenseFeatures) -> Float[Array, "R T"]:
        """Returns float32 logits of each pair being evidence: the product with F, pooled over cells.

        Pooled by the logarithm of the mean exponential: close to the maximum where one cell stands
        out, with a gradient to every cell, and the same for any number of cells that shows the same
        frame. The product with the time itself lets a question that names a time find it. Padded
        pairs get a logit that is never relevant.
        """
        features = rms_norm(dense.features.astype(question.dtype), self.feature_norm[...], _EPS)
        scaled = question * question.shape[-1] ** -0.5
        scaled = scaled.reshape(len(features), -1, scaled.shape[-1])  # [B, questions, D]
        scores = jnp.einsum("bqd,btpd->bqtp", scaled, features, preferred_element_type=jnp.float32)
        pooled = jax.nn.logsumexp(jnp.where(dense.cell_valid[:, None, None], scores, NEVER), axis=-1)
        cells = jnp.maximum(dense.cell_valid.sum(-1), 1)[:, None, None]
        pooled -= jnp.log(cells.astype(jnp.float32))
        at = _by_pair(linear(time_features(dense.times).astype(question.dtype), self.time_in[...]))
        named = jnp.einsum("bqd,btd->bqt", scaled, at, preferred_element_type=jnp.float32)
        logits = pooled + named + self.relevance_bias[...].astype(jnp.float32)
        logits = logits.reshape(len(question), -1)
        return jnp.where(repeated(dense.valid, len(question)), logits, NEVER)


class DecoderLayers(nnx.Module):
    """Layers of the decoder, stacked: each reads F, then the row's other mentions."""

    def __init__(self, c: EvidenceConfig, init: Initializer):
        self.cross = Block(c, init, (c.decoder_layers,))
        self.own = Block(c, init, (c.decoder_layers,))


class EvidenceDecoder(nnx.Module):
    """Points at a time in F, then reads the box from full-resolution tokens near that time."""

    def __init__(self, c: EvidenceConfig, embed_size: int, init: Initializer):
        D = c.hidden_size
        # What asks: a mention's hidden state, or the question in one of several learned roles.
        self.query_in = init.weight((embed_size, D), (None, "embed"))
        self.question_in = init.weight((D, D), ("embed", None))
        self.slot_bias = init.weight((c.proposals, D), (None, None))
        # F as tokens, and time from them.
        self.feature_norm = init.scale((D,), (None,))
        self.time_in = init.weight((_TIME_FEATURES, D), (None, "embed"))
        self.cell_in = init.weight((_CELL_FEATURES, D), (None, "embed"))
        self.layers = DecoderLayers(c, init)
        self.when = Pointer(c, init, 3)  # the time, and start and end of the visible interval
        self.read_in = init.weight((D, D), ("embed", None))
        # The box.
        self.visual_in = init.weight((embed_size, D), (None, "embed"))
        self.visual_norm = init.scale((D,), (None,))
        self.visual_cell_in = init.weight((_CELL_FEATURES, D), (None, "embed"))
        self.offset_in = init.weight((_TIME_FEATURES, D), (None, "embed"))
        self.reader = Block(c, init)
        self.where = Pointer(c, init, 1)
        self.out_norm = init.scale((D,), (None,))
        self.box_out = init.weight((D, 4), ("embed", None))
        self.box_bias = init.bias((4,), (None,))
        self.confidence_out = init.weight((D + 1, 1), ("embed", None))
        self.confidence_bias = init.bias((), ())

    def naming(self, states: Float[Array, "R M E"]) -> Float[Array, "R M D"]:
        """Returns the queries of mentions, from the language model's states: linear, without a bias."""
        return linear(states.astype(self.query_in.dtype), self.query_in[...])

    def asking(self, question: Float[Array, "R D"]) -> Float[Array, "R P D"]:
        """Returns the queries of the proposals, before any text: the question's vector in each of its roles.

        The confidence of their estimates is the score by which to rank them.
        """
        x = linear(question.astype(self.query_in.dtype), self.question_in[...])
        return x[:, None] + self.slot_bias[...]

    def __call__(
        self,
        queries: Float[Array, "R M D"],
        valid: Bool[Array, "R M"],
        dense: DenseFeatures,
        visual: VisualTokens,
        candidates: Bool[Array, "R T"],
        runtime: Runtime = Runtime(),
    ) -> Estimate:
        """Returns an estimate for each query.

        Args:
            queries: of `naming` or of `asking`.
            valid: which queries are real; the others have no influence on them.
            dense: F; only its valid pairs and cells are read.
            visual: the tokens that boxes are read from.
            candidates: the pairs that may be searched; a row without any searches all valid ones.
        """
        rows = len(queries)
        times, there = repeated(dense.times, rows), repeated(dense.valid, rows)
        candidates = candidates & there
        searched = jnp.where(candidates.any(-1, keepdims=True), candidates, there)
        cells = repeated(dense.cell_valid, rows)
        allowed = rearrange(searched[:, :, None] & cells[:, None], "b t p -> b (t p)")
        places = self._places(dense)
        mentions = valid.astype(jnp.int32)
        cross, own = Mask(mentions, allowed.astype(jnp.int32)), Mask(mentions, mentions)

        def body(x: Array, layer: DecoderLayers, index: Array) -> Array:
            x = layer.cross(x, places, cross, None, runtime)
            return layer.own(x, None, own, None, runtime)

        x = run_layers(body, queries, self.layers)

        # One distribution over all cells of all pairs; over time it is its sum over the cells.
        scores = self.when(x, places, allowed[:, None])
        by_pair = rearrange(scores, "b m w (t p) -> b m w t p", t=times.shape[1])
        logits = jnp.where(searched[:, None, None], jax.nn.logsumexp(by_pair, axis=-1), NEVER)
        weights = jax.nn.softmax(logits)
        expected = jnp.einsum("bmwt,bt->bmw", weights, times)
        time = expected[..., 0]
        deviation = times[:, None] - time[..., None]
        spread = jnp.sqrt(jnp.einsum("bmt,bmt->bm", weights[:, :, 0], jnp.square(deviation)) + _EPS)
        # Clipped to hold the time, which the interval's own error must not move.
        fixed = jax.lax.stop_gradient(time)
        interval = jnp.stack(
            [jnp.minimum(expected[..., 1], fixed), jnp.maximum(expected[..., 2], fixed)], axis=-1
        )
        pointed = jax.nn.softmax(scores[:, :, 0]).astype(x.dtype)
        visuals = shard(jnp.einsum("bmx,bxd->bmd", pointed, repeated(places, rows)), "batch", None, None)
        x = x + linear(visuals, self.read_in[...])

        x, box = self._box(x, fixed, valid, visual, runtime)
        sure = jnp.concatenate([x, jnp.log(spread)[..., None].astype(x.dtype)], axis=-1)
        confidence = linear(sure, self.confidence_out[...])[..., 0] + self.confidence_bias[...]
        return Estimate(
            time_logits=logits[:, :, 0],
            interval_logits=logits[:, :, 1:],
            time_s=time,
            spread_s=spread,
            interval=interval,
            box=box,
            confidence=confidence.astype(jnp.float32),
        )

    def _places(self, dense: DenseFeatures) -> Float[Array, "B X D"]:
        """Returns F as one row of tokens that know when and where they are."""
        dtype = self.feature_norm.dtype
        x = rms_norm(dense.features.astype(dtype), self.feature_norm[...], _EPS)
        x = x + _by_pair(linear(time_features(dense.times).astype(dtype), self.time_in[...])[:, :, None])
        x = x + linear(cell_features(dense.cells).astype(dtype), self.cell_in[...])[:, None]
        return rearrange(_by_pair(x), "b t p d -> b (t p) d")

    def _box(
        self,
        x: Float[Array, "R M D"],
        time: Float[Array, "R M"],
        valid: Bool[Array, "R M"],
        visual: VisualTokens,
        runtime: Runtime,
    ) -> tuple[Float[Array, "R M D"], Float[Array, "R M 4"]]:
        """Returns the normed queries after they read the pair nearest to `time`, and their boxes."""
        dtype = x.dtype
        pair = nearest_pair(time, visual)
        offset = time - jnp.take_along_axis(repeated(visual.times, len(x)), pair, axis=1)
        x = x + linear(time_features(offset).astype(dtype), self.offset_in[...])

        tokens = _by_pair(linear(visual.tokens.astype(dtype), self.visual_in[...]))
        where = _by_pair(linear(cell_features(visual.centres).astype(dtype), self.visual_cell_in[...]))
        tokens = rms_norm(tokens, self.visual_norm[...], _EPS) + where
        tokens, centres = (rearrange(a, "b t p d -> b (t p) d") for a in (tokens, visual.centres))
        # Pairs as segments: each mention reads its own pair, and nothing is gathered.
        numbers = jnp.arange(1, visual.times.shape[1] + 1, dtype=jnp.int32)[None, :, None] * visual.valid
        numbers = repeated(rearrange(numbers, "b t p -> b (t p)"), len(x))
        mask = Mask(jnp.where(valid, pair + 1, 0), numbers)
        x = self.reader(x, tokens, mask, None, runtime)

        pointed = jax.nn.softmax(self.where(x, tokens, mask.dense())[:, :, 0])
        start = jnp.clip(jnp.einsum("bmx,bxc->bmc", pointed, repeated(centres, len(x))), 1e-3, 1 - 1e-3)
        x = rms_norm(x, self.out_norm[...], _EPS)
        raw = (linear(x, self.box_out[...]) + self.box_bias[...]).astype(jnp.float32)
        centre = jax.nn.sigmoid(jnp.log(start) - jnp.log1p(-start) + raw[..., :2])
        half = jax.nn.sigmoid(raw[..., 2:]) / 2
        box = jnp.concatenate([centre - half, centre + half], axis=-1)
        # The gradient passes the clip: a side that left the frame still learns where to be.
        return x, box + jax.lax.stop_gradient(jnp.clip(box, 0, 1) - box)


def nearest_pair(time: Float[Array, "R M"], visual: VisualTokens) -> Int[Array, "R M"]:
    """Returns the frame pair of the language stream nearest to each time; a constant for gradients."""
    distance = jnp.abs(jax.lax.stop_gradient(time)[..., None] - repeated(visual.times, len(time))[:, None])
    there = repeated(visual.valid.any(-1), len(time))[:, None]
    return jnp.where(there, distance, -NEVER).argmin(-1)
