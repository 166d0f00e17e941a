"""Qwen3-VL, assembled: a batch of token ids and patches -> hidden states, logits and evidence.

A batch is a dictionary of arrays, made on the host by `o3jax.inputs.collate`:

    input_ids     int32 [B, S]        segment_ids  int32 [B, S], 0 is padding
    positions     int32 [B, 3, S]     continuation_ids   int32 [B, S], optional (see attention.Mask)
    visual_index  int32 [B, S]: the visual token at each position, -1 for text
    and, where there are images or videos: patches [B, T, P, C], patch_length [B, T],
    patch_coords [B, T, P, 2], pos_index and pos_weight [B, T, P, 4]

What a frozen tower made of the pixels earlier may stand in their place; the tower then does not run:

    visual_features [B, T, P / 4, 1 + taps, D]: each visual token and its DeepStack features, instead of all
    of the above but patch_length
    dense_tokens [B, Td, Pd / 4, D]: instead of the dense stream's, below, all but dense_length

For the evidence modules there is also, made by `o3jax.inputs.dense` (R rows, B dividing R: questions
about one video are consecutive):

    dense_patches and its like, dense_times [B, Td], dense_cells [B, Pd / 4, 2], dense_grid [B, 2]
    visual_times [B, T], visual_centres [B, T, P / 4, 2]: when and where the visual tokens are
    question_ids   int32 [B, Q, Sq]: the question's tokens, -1 is padding
    mention_index  int32 [B, Q, M]: where in the row each mention's state is, -1 is padding

and, where a row holds several videos, each a segment of its own:

    question_clip  int32 [B, Q], dense_clip [B, Td], visual_clip [B, T]: of which video each is, 1 and up
    dense_clock [B, Td], visual_clock [B, T]: the times of all videos one after the other, further apart
    than the temporal window reaches

Visual tokens that no text refers to are read by the evidence decoder alone. `Qwen3VL.look` adds such ones to
what was seen:

    pointed_patches and its like, pointed_times [B, X], pointed_cells [B, P / 4, 2]

Grids are data: one compiled program serves every set of grids that is padded to the same shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from o3jax.models.attention import Mask, attention
from o3jax.models.config import Config, EvidenceConfig
from o3jax.models.evidence import (
    DenseStream,
    Estimate,
    EvidenceDecoder,
    QuestionEncoder,
    VisualStream,
    repeated,
)
from o3jax.models.layers import Abstract, Initializer
from o3jax.models.temporal import Injection, TemporalEncoder
from o3jax.models.text import TextDecoder, visual_rows
from o3jax.models.vision import VisionTower
from o3jax.sharding import shard

Batch = Mapping[str, Array | np.ndarray]

DENSE_CHUNK = 512  # frame pairs of the dense stream that are processed at a time, at most

VISION_KEYS = ("patches", "patch_length", "patch_coords", "pos_index", "pos_weight")
DENSE_KEYS = tuple("dense_" + key.removeprefix("patch_") for key in VISION_KEYS)
FEATURE_KEYS = ("visual_features", "patch_length")  # instead of VISION_KEYS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualFeatures:
    """All that comes from pixels; computed once, read by the language model and by the evidence modules."""

    tokens: Float[Array, "B tokens D"]  # of the language stream
    taps: Float[Array, "taps B tokens D"]  # DeepStack features
    dense: DenseStream | None  # F, where there are evidence modules and a dense stream
    visual: VisualStream | None  # the tokens again, with their times and places; with F only


class EvidenceModules(nnx.Module):
    """Temporal encoder, question matching and evidence decoder, beside the backbone."""

    def __init__(self, config: Config, init: Initializer):
        c, width = config.evidence, config.text.hidden_size
        self.temporal = TemporalEncoder(c, config.vision.out_hidden_size, init)
        self.injection = Injection(c, width, init) if c.inject else None
        self.question = QuestionEncoder(c, width, init)
        self.decoder = EvidenceDecoder(c, width, init)


class Qwen3VL(nnx.Module):
    """The backbone and its evidence modules; a thin container whose methods are pure functions."""

    def __init__(self, config: Config, init: Initializer):
        self.config = config
        self.vision = VisionTower(config.vision, init)
        self.text = TextDecoder(config.text, config.tie_word_embeddings, init)
        self.evidence = EvidenceModules(config, init) if config.evidence else None

    def encode_visuals(
        self, batch: Batch, *, kernel: str = "xla", remat: str = "none"
    ) -> VisualFeatures | None:
        """Returns what the towers and the temporal encoder make of the pixels; None where there are none."""
        if "visual_features" in batch:
            kept = rearrange(jnp.asarray(batch["visual_features"]), "b t p k d -> k b (t p) d")
            tokens, taps = kept[0], kept[1:]
        elif "patches" in batch:
            tokens, taps = self.vision(*[batch[key] for key in VISION_KEYS], kernel=kernel, remat=remat)
        else:
            return None
        if self.evidence is None or "dense_length" not in batch:
            return VisualFeatures(tokens, taps, None, None)
        dense = self._dense(batch, kernel, remat)
        visual = self._visual(tokens, batch["visual_times"], batch["visual_centres"], batch["patch_length"])
        if self.evidence.injection is not None:
            by_pair = self.evidence.injection(
                visual.tokens,
                batch.get("visual_clock", visual.times),
                visual.centres,
                dense.features,
                batch.get("dense_clock", dense.times),
                dense.valid,
                batch["dense_grid"],
            )
            tokens = rearrange(by_pair, "b t p d -> b (t p) d")
        if "question_clip" in batch:
            dense = dataclasses.replace(dense, valid=_own(batch, "dense_clip", dense.valid))
            visual = dataclasses.replace(visual, valid=_own(batch, "visual_clip", visual.valid))
        return VisualFeatures(tokens, taps, dense, visual)

    def add_frames(self, visuals: VisualFeatures, batch: Batch) -> VisualFeatures:
        """Returns what was seen, with the frames `pointed_*` of the batch to read boxes from."""
        tokens, _ = self.vision(*[batch["pointed_" + key.removeprefix("patch_")] for key in VISION_KEYS])
        times, cells = batch["pointed_times"], batch["pointed_cells"]
        centres = repeat(cells, "b p xy -> b x p xy", x=times.shape[1])
        more = self._visual(tokens, times, centres, batch["pointed_length"])
        visual = jax.tree.map(lambda *streams: jnp.concatenate(streams, axis=1), visuals.visual, more)
        return dataclasses.replace(visuals, visual=visual)

    def _visual(
        self,
        tokens: Float[Array, "B tokens D"],
        times: Float[Array, "B T"],
        centres: Float[Array, "B T P 2"],
        lengths: Int[Array, "B T"],
    ) -> VisualStream:
        by_pair = rearrange(tokens, "b (t p) d -> b t p d", t=times.shape[1])
        valid = jnp.arange(centres.shape[2]) < lengths[..., None] // self.config.vision.merge_unit
        return VisualStream(by_pair, times, centres, valid)

    def _dense(self, batch: Batch, kernel: str, remat: str) -> DenseStream:
        valid = batch["dense_length"] > 0
        tokens = (
            batch["dense_tokens"] if "dense_tokens" in batch else dense_tokens(self.vision, batch, kernel)
        )
        size = chunk_size(valid.shape[1])
        chunk = size if size < valid.shape[1] and np.isfinite(self.config.evidence.window_s) else None
        clock = batch.get("dense_clock", batch["dense_times"])
        features = self.evidence.temporal(tokens, clock, valid, chunk=chunk, remat=remat)
        cells = batch["dense_length"].max(-1, keepdims=True) // self.config.vision.merge_unit
        cell_valid = jnp.arange(tokens.shape[2]) < cells
        return DenseStream(features, batch["dense_times"], valid, batch["dense_cells"], cell_valid)

    def embed(
        self, batch: Batch, visuals: VisualFeatures | None
    ) -> tuple[Float[Array, "B S D"], Float[Array, "taps B tokens D"]]:
        """Returns the input embeddings with visual tokens in place, and the DeepStack features."""
        x = self.text.embed[...][batch["input_ids"]]
        if visuals is None:
            taps = jnp.zeros((0, x.shape[0], 1, x.shape[-1]), x.dtype)
            return shard(x, "batch", "sequence", None), taps
        index = batch["visual_index"]
        x = jnp.where(index[..., None] >= 0, visual_rows(visuals.tokens, index).astype(x.dtype), x)
        return shard(x, "batch", "sequence", None), visuals.taps.astype(x.dtype)

    def hidden(
        self, batch: Batch, visuals: VisualFeatures | None, *, kernel: str = "xla", remat: str = "none"
    ) -> Float[Array, "B S D"]:
        """Returns the final-norm hidden states; `visuals` is what `encode_visuals` returned for the batch."""
        x, taps = self.embed(batch, visuals)
        mask = causal_mask(batch)

        def attend(q, k, v, state):
            return attention(q, k, v, mask, kernel), state

        index = batch["visual_index"]
        return self.text(x, batch["positions"], attend, taps, index, remat=remat)

    def relevance(
        self, batch: Batch, visuals: VisualFeatures, *, kernel: str = "xla"
    ) -> tuple[Float[Array, "R D"], Float[Array, "R T"]]:
        """Returns each question's vector, and the logits of each dense group being its evidence."""
        ids = rearrange(batch["question_ids"], "b q s -> (b q) s")
        embeddings = self.text.embed[...][jnp.maximum(ids, 0)]
        question = self.evidence.question(embeddings, ids >= 0, kernel=kernel)
        return question, self.evidence.question.relevance(question, visuals.dense)

    def estimate(
        self,
        states: Float[Array, "R M D"],
        valid: Bool[Array, "R M"],
        visuals: VisualFeatures,
        candidates: Bool[Array, "R T"],
        *,
        kernel: str = "xla",
    ) -> Estimate:
        """Returns when and where each mention is, from the hidden states at the mentions."""
        return self.evidence.decoder(states, valid, visuals.dense, visuals.visual, candidates, kernel=kernel)

    def propose(
        self,
        question: Float[Array, "R D"],
        visuals: VisualFeatures,
        candidates: Bool[Array, "R T"],
        *,
        kernel: str = "xla",
    ) -> Estimate:
        """Returns when and where the question alone points, before any text."""
        return self.evidence.decoder.propose(
            question, visuals.dense, visuals.visual, candidates, kernel=kernel
        )

    def logits(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns vocabulary logits of hidden states."""
        return self.text.logits(hidden)

    def __call__(self, batch: Batch, *, kernel: str = "xla", remat: str = "none") -> Float[Array, "B S V"]:
        """Returns logits [B, S, V]."""
        visuals = self.encode_visuals(batch, kernel=kernel, remat=remat)
        return self.logits(self.hidden(batch, visuals, kernel=kernel, remat=remat))


def dense_tokens(tower: VisionTower, batch: Batch, kernel: str = "xla") -> Float[Array, "B T P D"]:
    """Returns the tower's tokens of the dense stream, a chunk of frame pairs at a time.

    The tower learns from the language stream alone: of this large pass nothing is kept.
    """
    tower = jax.lax.stop_gradient(tower)
    inputs = [batch[key] for key in DENSE_KEYS]
    groups, size = inputs[0].shape[1], chunk_size(inputs[0].shape[1])
    if size == groups:
        return rearrange(tower(*inputs, kernel=kernel)[0], "b (t p) d -> b t p d", t=groups)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -groups % size)] + [(0, 0)] * (x.ndim - 2))
        return rearrange(x, "b (n t) ... -> n b t ...", t=size)

    tokens = jax.lax.map(lambda xs: tower(*xs, kernel=kernel)[0], [split(jnp.asarray(x)) for x in inputs])
    return rearrange(tokens, "n b (t p) d -> b (n t) p d", t=size)[:, :groups]


def visual_features(
    tokens: Float[Array, "B tokens D"], taps: Float[Array, "taps B tokens D"], groups: int
) -> Float[Array, "B T P K D"]:
    """Returns what the tower made of so many frame groups, as a batch carries it."""
    return rearrange(jnp.concatenate([tokens[None], taps]), "k b (t p) d -> b t p k d", t=groups)


def chunk_size(groups: int) -> int:
    """Returns how many frame pairs of a dense stream are processed at a time: few and equal parts."""
    return -(-groups // -(-groups // DENSE_CHUNK))


def _own(batch: Batch, clips: str, valid: Bool[Array, "B T *dims"]) -> Bool[Array, "R T *dims"]:
    """Returns what each question may read: what is valid and of its own video."""
    own = batch["question_clip"][:, :, None] == batch[clips][:, None]
    own = rearrange(own, "b q t -> (b q) t")
    valid = repeated(valid, len(own))
    return valid & own.reshape(*own.shape, *[1] * (valid.ndim - 2))


def causal_mask(batch: Batch) -> Mask:
    """Returns the mask of a batch: causal, within segments, branches apart from each other."""
    segments, continuations = batch["segment_ids"], batch.get("continuation_ids")
    return Mask(segments, segments, continuations, continuations, causal=True)


def abstract_model(config: Config, dtype: jnp.dtype = jnp.float32) -> Qwen3VL:
    """Returns the model with shapes in place of arrays; nothing is allocated."""
    return Qwen3VL(config, Abstract(dtype))


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
