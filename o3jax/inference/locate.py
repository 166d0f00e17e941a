"""When and where the mentions of a text are, and where a question alone points: the evidence decoder's word.

It may read boxes from the very frames that it points at. Those are not known before it has pointed, so it is
asked twice: for the times, and with the frames of these times. All these times it is one program: what does
not take part is zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from o3jax.grounding import Grounding
from o3jax.inference.matching import Searched
from o3jax.inputs.collate import bucket, coarse
from o3jax.inputs.dense import SingleFrames, pointed_frames
from o3jax.inputs.processor import Processor
from o3jax.models.batch import PointedFrames, stack
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures

# Sizes that queries and the frames pointed at are padded to: coarse ones first, so that one program serves
# most texts. A query costs little, a frame a run of the tower.
QUERIES, FRAMES = coarse(16, 256), coarse(4, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderEstimate(Grounding):
    """What the evidence decoder says of one mention; it has a box, and no name."""

    spread_s: float  # standard deviation of the time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Located:
    """What the decoder says of rows R of M mentions or proposals; see `Estimate` for the units."""

    time_s: Float[np.ndarray, "R M"]
    spread_s: Float[np.ndarray, "R M"]
    interval: Float[np.ndarray, "R M 2"]
    box: Float[np.ndarray, "R M 4"]
    score: Float[np.ndarray, "R M"]  # a logit; the confidence is its probability
    confidence: Float[np.ndarray, "R M"]

    def estimate(self, row: int, m: int) -> DecoderEstimate:
        """Returns what is said of one of them."""
        return DecoderEstimate(
            time_s=float(self.time_s[row, m]),
            interval=tuple(self.interval[row, m].tolist()),
            boxes=(tuple(self.box[row, m].tolist()),),
            confidence=float(self.confidence[row, m]),
            spread_s=float(self.spread_s[row, m]),
        )


# Seconds of each video -> the frames nearest to them, to read boxes from.
ReadFrames = Callable[[Sequence[Float[np.ndarray, " m"]]], PointedFrames]


def frames_nearest(
    processor: Processor,
    model: Qwen3VL,
    sources: Sequence[SingleFrames | None],
    patches: int,
    times: Sequence[Float[np.ndarray, " m"]],
) -> PointedFrames:
    """Returns of each video the frames nearest to some times.

    Args:
        sources: of each video; None for what has no frames but those that were seen.
        patches: size that P is padded to.
        times: of each video, seconds.
    """
    video = processor.video_config
    wanted = [
        np.unique([] if one is None else [one.times_s[np.abs(one.times_s - t).argmin()] for t in mine])
        for one, mine in zip(sources, times, strict=True)
    ]
    sizes = {"frame_pairs": bucket(max(map(len, wanted)), FRAMES), "patches": patches}
    rows = []
    for one, at in zip(sources, wanted, strict=True):
        size = one.size if one else (video.factor, video.factor)
        frames = np.zeros((0, *size, 3), np.uint8)
        if len(at):
            frames, at = one.frames_at(at)
        rows.append(pointed_frames(frames, at, size, video, model.config.vision, **sizes))
    return stack(rows)


def locate(
    model: Qwen3VL,
    visuals: VisualFeatures,
    candidates: Bool[np.ndarray, "R T"],
    read_frames: ReadFrames | None,
    *,
    states: Float[np.ndarray, "R M E"] | None = None,
    asking: Float[np.ndarray, "R M D"] | None = None,
    valid: Bool[np.ndarray, "R M"],
) -> Located:
    """Returns when and where, as numpy arrays, for the states of mentions or for `Searched.asking`.

    Args:
        visuals: of B videos; R is B times the texts about each.
        candidates: the frame pairs that may be searched.
        read_frames: what boxes are read from; None: the frames that were seen.
        states: final-norm hidden states at the mentions.
        valid: which of the M are real; the others influence nothing.
    """
    given, evidence, width = valid.shape, model.config.evidence, model.config.text.hidden_size
    states = np.zeros((*given, width), np.float32) if states is None else states.astype(np.float32)
    asking = np.zeros((*given, evidence.hidden_size), np.float32) if asking is None else asking
    videos = len(visuals.dense.features)
    nowhere = [np.zeros(0)] * videos

    def decode(frames: PointedFrames | None) -> Located:
        return _decode(model, states, asking, valid, visuals, frames, candidates)

    found = decode(read_frames and read_frames(nowhere))
    if read_frames is not None and valid.any():
        times, real = (np.asarray(x).reshape(videos, -1) for x in (found.time_s, valid))
        found = decode(read_frames([t[r] for t, r in zip(times, real, strict=True)]))
    return jax.tree.map(np.asarray, found)


@jax.jit
def _decode(
    model: Qwen3VL,
    states: Float[Array, "R M E"],
    asking: Float[Array, "R M D"],
    valid: Bool[Array, "R M"],
    visuals: VisualFeatures,
    frames: PointedFrames | None,
    candidates: Bool[Array, "R T"],
) -> Located:
    decoder = model.evidence.decoder
    if frames is not None:
        visuals = model.add_frames(visuals, frames)
    queries = decoder.naming(states)
    queries += asking.astype(queries.dtype)
    found = decoder(queries, valid, visuals.dense, visuals.visual, candidates)
    confidence = jax.nn.sigmoid(found.confidence)
    return Located(found.time_s, found.spread_s, found.interval, found.box, found.confidence, confidence)


def proposals(
    model: Qwen3VL, searched: Searched, visuals: VisualFeatures, read_frames: ReadFrames | None
) -> list[list[DecoderEstimate]]:
    """Returns where each question alone points: the best proposal, and others that are likely."""
    rows, roles, width = searched.asking.shape
    asking = np.zeros((rows, bucket(roles, QUERIES), width), np.float32)
    asking[:, :roles] = searched.asking
    valid = np.broadcast_to(np.arange(asking.shape[1]) < roles, asking.shape[:2])
    found = locate(model, visuals, searched.candidates, read_frames, asking=asking, valid=valid)
    ranked = [np.argsort(-scores[:roles]) for scores in found.score]
    return [
        [found.estimate(row, m) for rank, m in enumerate(order) if not rank or found.score[row, m] > 0]
        for row, order in enumerate(ranked)
    ]
