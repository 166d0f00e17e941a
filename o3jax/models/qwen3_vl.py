"""Qwen3-VL, assembled: a batch of token ids and patches -> hidden states, logits and evidence.

What it reads is described in `o3jax.models.batch`; its arrays have the axis B in front. The evidence modules
have rows R, one for each question, B dividing R: questions about one video are consecutive.
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
from o3jax.models.batch import Batch, DenseStream, Patches, PointedFrames, Questions, TextRow, VisualPlaces
from o3jax.models.config import Config, EvidenceConfig
from o3jax.models.evidence import (
    DenseFeatures,
    Estimate,
    EvidenceDecoder,
    QuestionEncoder,
    VisualTokens,
    repeated,
)
from o3jax.models.layers import Abstract, Initializer
from o3jax.models.runtime import Runtime
from o3jax.models.temporal import TemporalEncoder
from o3jax.models.text import TextDecoder, visual_rows
from o3jax.models.vision import VisionTower
from o3jax.sharding import shard

DENSE_CHUNK = 512  # frame pairs of the dense stream that attend to each other at a time, at most
TOWER_CHUNK = (
    65536  # patches of a row's dense stream that the tower reads at a time: each gathers its weights
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualFeatures:
    """All that comes from pixels; computed once, read by the language model and by the evidence modules."""

    tokens: Float[Array, "B tokens D"]  # of the language stream
    taps: Float[Array, "taps B tokens D"]  # DeepStack features
    dense: DenseFeatures | None  # F, where there are evidence modules and a dense stream
    visual: VisualTokens | None  # the tokens again, with their times and places; with F only


class EvidenceModules(nnx.Module):
    """Temporal encoder, question matching and evidence decoder, beside the backbone."""

    def __init__(self, config: Config, init: Initializer):
        c, width = config.evidence, config.text.hidden_size
        self.temporal = TemporalEncoder(c, config.vision.out_hidden_size, init)
        self.question = QuestionEncoder(c, width, init)
        self.decoder = EvidenceDecoder(c, width, init)


class Qwen3VL(nnx.Module):
    """The backbone and its evidence modules; a thin container whose methods are pure functions."""

    def __init__(self, config: Config, init: Initializer):
        self.config = config
        self.vision = VisionTower(config.vision, init)
        self.text = TextDecoder(config.text, config.tie_word_embeddings, init)
        self.evidence = EvidenceModules(config, init) if config.evidence else None

    def encode_visuals(self, batch: Batch, runtime: Runtime = Runtime()) -> VisualFeatures | None:
        """Returns what the towers and the temporal encoder make of the pixels; None where there are none."""
        if batch.features is not None:
            kept = rearrange(jnp.asarray(batch.features.values), "b t p k d -> k b (t p) d")
            tokens, taps = kept[0], kept[1:]
        elif batch.patches is not None:
            tokens, taps = self.vision(batch.patches, runtime)
        else:
            return None
        if self.evidence is None or batch.dense is None:
            return VisualFeatures(tokens, taps, None, None)
        dense = self.encode_dense(batch.dense, runtime)
        visual = self._visual(tokens, batch.places, batch.frames.length)
        if batch.questions is not None and batch.questions.clip is not None:
            asked = batch.questions.clip
            dense = dataclasses.replace(dense, valid=_own(asked, batch.dense.clip, dense.valid))
            visual = dataclasses.replace(visual, valid=_own(asked, batch.places.clip, visual.valid))
        return VisualFeatures(tokens, taps, dense, visual)

    def add_frames(self, visuals: VisualFeatures, frames: PointedFrames) -> VisualFeatures:
        """Returns the features with more frames to read boxes from; without any, the tower does not run."""
        (rows, pairs), c = frames.times.shape, self.config.vision
        shape = (rows, pairs * frames.cells.shape[1], c.out_hidden_size)
        tokens = jax.lax.cond(
            (frames.patches.length > 0).any(),
            lambda: self.vision(frames.patches)[0],
            lambda: jnp.zeros(
                shape, visuals.tokens.dtype
            ),  # weights may be stored narrower than they compute
        )
        centres = repeat(frames.cells, "b p xy -> b x p xy", x=frames.times.shape[1])
        more = self._visual(tokens, VisualPlaces(frames.times, centres), frames.patches.length)
        visual = jax.tree.map(lambda *streams: jnp.concatenate(streams, axis=1), visuals.visual, more)
        return dataclasses.replace(visuals, visual=visual)

    def _visual(
        self, tokens: Float[Array, "B tokens D"], places: VisualPlaces, lengths: Int[Array, "B T"]
    ) -> VisualTokens:
        by_pair = rearrange(tokens, "b (t p) d -> b t p d", t=places.times.shape[1])
        by_pair = shard(by_pair, "batch", "frame_pairs", None, None)
        valid = jnp.arange(places.centres.shape[2]) < lengths[..., None] // self.config.vision.merge_unit
        return VisualTokens(by_pair, places.times, places.centres, valid)

    def encode_dense(self, stream: DenseStream, runtime: Runtime = Runtime()) -> DenseFeatures:
        """Returns F of a dense stream, and where its values stand."""
        valid = stream.length > 0
        if stream.features is not None:
            tokens = stream.features.values
        else:
            tokens = dense_tokens(self.vision, stream.patches, runtime)
        size = chunk_size(valid.shape[1])
        chunk = size if size < valid.shape[1] and np.isfinite(self.config.evidence.window_s) else None
        clock = stream.times if stream.clock is None else stream.clock
        features = self.evidence.temporal(tokens, clock, valid, runtime, chunk=chunk)
        cells = stream.length.max(-1, keepdims=True) // self.config.vision.merge_unit
        cell_valid = jnp.arange(tokens.shape[2]) < cells
        return DenseFeatures(features, stream.times, valid, stream.cells, cell_valid)

    def embed(
        self, row: TextRow, visuals: VisualFeatures | None
    ) -> tuple[Float[Array, "B S D"], Float[Array, "taps B tokens D"]]:
        """Returns the input embeddings with visual tokens in place, and the DeepStack features."""
        x = self.text.embedded(row.input_ids)
        if visuals is None:
            taps = jnp.zeros((0, x.shape[0], 1, x.shape[-1]), x.dtype)
            return shard(x, "batch", "sequence", None), taps
        index = row.visual_index
        x = jnp.where(index[..., None] >= 0, visual_rows(visuals.tokens, index).astype(x.dtype), x)
        return shard(x, "batch", "sequence", None), visuals.taps.astype(x.dtype)

    def hidden(
        self, row: TextRow, visuals: VisualFeatures | None, runtime: Runtime = Runtime()
    ) -> Float[Array, "B S D"]:
        """Returns the final-norm hidden states; `visuals` is what `encode_visuals` returned for the batch."""
        x, taps = self.embed(row, visuals)
        mask = causal_mask(row)

        def attend(q, k, v, state):
            return attention(q, k, v, mask, runtime.kernel), state

        return self.text(x, row.positions, attend, taps, row.visual_index, runtime)

    def relevance(
        self, questions: Questions, visuals: VisualFeatures, runtime: Runtime = Runtime()
    ) -> tuple[Float[Array, "R D"], Float[Array, "R T"]]:
        """Returns each question's vector, and the logits of each dense frame pair being its evidence."""
        ids = rearrange(questions.ids, "b q s -> (b q) s")
        embeddings = self.text.embedded(jnp.maximum(ids, 0))
        question = self.evidence.question(embeddings, ids >= 0, runtime)
        return question, self.evidence.question.relevance(question, visuals.dense)

    def estimate(
        self,
        states: Float[Array, "R M D"],
        valid: Bool[Array, "R M"],
        visuals: VisualFeatures,
        candidates: Bool[Array, "R T"],
        runtime: Runtime = Runtime(),
    ) -> Estimate:
        """Returns when and where each mention is, from the hidden states at the mentions."""
        decoder = self.evidence.decoder
        return decoder(decoder.naming(states), valid, visuals.dense, visuals.visual, candidates, runtime)

    def propose(
        self,
        question: Float[Array, "R D"],
        visuals: VisualFeatures,
        candidates: Bool[Array, "R T"],
        runtime: Runtime = Runtime(),
    ) -> Estimate:
        """Returns when and where the question alone points, before any text."""
        decoder = self.evidence.decoder
        queries = decoder.asking(question)
        there = jnp.ones(queries.shape[:2], bool)
        return decoder(queries, there, visuals.dense, visuals.visual, candidates, runtime)

    def logits(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns vocabulary logits of hidden states."""
        return self.text.logits(hidden)

    def __call__(self, batch: Batch, runtime: Runtime = Runtime()) -> Float[Array, "B S V"]:
        """Returns logits [B, S, V]."""
        visuals = self.encode_visuals(batch, runtime)
        return self.logits(self.hidden(batch.text, visuals, runtime))


def dense_tokens(
    tower: VisionTower, patches: Patches, runtime: Runtime = Runtime()
) -> Float[Array, "B T P D"]:
    """Returns the tower's tokens of the dense stream, a chunk of frame pairs at a time.

    The tower learns from the language stream alone: of this large pass nothing is kept.
    """
    # The plain kernel: a flash kernel would pad frames of a few patches to whole blocks.
    tower, runtime = jax.lax.stop_gradient(tower), dataclasses.replace(runtime, remat="none", kernel="xla")
    pairs, room = patches.values.shape[1:3]
    size = chunk_size(pairs, max(1, TOWER_CHUNK // room))
    if size == pairs:
        return rearrange(tower(patches, runtime)[0], "b (t p) d -> b t p d", t=pairs)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -pairs % size)] + [(0, 0)] * (x.ndim - 2))
        return rearrange(x, "b (n t) ... -> n b t ...", t=size)

    tokens = jax.lax.map(
        lambda part: tower(part, runtime)[0],
        jax.tree.map(lambda x: split(jnp.asarray(x)), patches),
    )
    return rearrange(tokens, "n b (t p) d -> b (n t) p d", t=size)[:, :pairs]


def visual_features(
    tokens: Float[Array, "B tokens D"], taps: Float[Array, "taps B tokens D"], pairs: int
) -> Float[Array, "B T P K D"]:
    """Returns what the tower made of so many frame pairs, as a batch carries it."""
    return rearrange(jnp.concatenate([tokens[None], taps]), "k b (t p) d -> b t p k d", t=pairs)


def chunk_size(pairs: int, most: int | None = None) -> int:
    """Returns how many frame pairs of a dense stream are processed at a time: few and equal parts."""
    return -(-pairs // -(-pairs // (most or DENSE_CHUNK)))


def _own(
    asked: Int[Array, "B Q"], clip: Int[Array, "B T"], valid: Bool[Array, "B T *dims"]
) -> Bool[Array, "R T *dims"]:
    """Returns what each question may read: what is valid and of its own video."""
    own = asked[:, :, None] == clip[:, None]
    own = rearrange(own, "b q t -> (b q) t")
    valid = repeated(valid, len(own))
    return valid & own.reshape(*own.shape, *[1] * (valid.ndim - 2))


def causal_mask(row: TextRow) -> Mask:
    """Returns the mask of a text: causal, within segments, continuations apart from each other."""
    segments, continuations = row.segment_ids, row.continuation_ids
    return Mask(segments, segments, continuations, continuations, causal=True)


def abstract_model(config: Config) -> Qwen3VL:
    """Returns the model with shapes in place of arrays, float32; nothing is allocated."""
    return Qwen3VL(config, Abstract())


def mention_states(
    hidden: Float[Array, "B S D"], mention_index: Int[Array, "B Q M"]
) -> Float[Array, "R M D"]:
    """Returns the hidden state at each mention; that of the first token where there is none."""
    flat = rearrange(jnp.maximum(mention_index, 0), "b q m -> b (q m) 1")
    states = jnp.take_along_axis(hidden, flat, axis=1)
    return rearrange(states, "b (q m) d -> (b q) m d", q=mention_index.shape[1])


def with_evidence(model: Qwen3VL, c: EvidenceConfig, key: jax.Array) -> Qwen3VL:
    """Returns the backbone with new, untrained evidence modules beside it."""
    config = dataclasses.replace(model.config, evidence=c)
    whole = abstract_model(config)
    whole.vision, whole.text = model.vision, model.text
    whole.evidence = EvidenceModules(config, Initializer(key, model.text.embed.dtype))
    return whole
