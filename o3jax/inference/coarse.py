"""A long video from afar: one frame per 5 s and what its packets point at, as features for any question.

Nothing here depends on a question, so a video is read once and its features are kept
(`o3jax.inference.coarse_cache`); the next question about it decodes nothing of this.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Float

from o3jax.errors import UserError
from o3jax.grounding import Interval
from o3jax.inference import coarse_cache
from o3jax.inference.matching import asked, match_features
from o3jax.inputs.collate import bucket, coarse
from o3jax.inputs.dense import cell_centres, dense_size, still_stream
from o3jax.inputs.processor import Processor
from o3jax.models.batch import DenseStream
from o3jax.models.evidence import DenseFeatures
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.notes import Note
from o3jax.searched import Event, Pass, Progress
from o3jax.video import OpenVideo
from o3jax.video.sparse import SparseReader

EVERY_S = 5.0  # between the frames of the first pass
CUES_SHARE = 0.02  # of a video's frames that what the packets point at may cost
_LOOK_S = 2.0  # a busy stretch is looked at this long after its start, or in its middle
_ROW = (16, 32, 64)  # frames that are encoded at a time
_ROWS = (64, 512)  # frames whose relevance is found at a time
_QUESTION = coarse(64, 1024)  # tokens that the question is padded to for that: most of its cost
_KEPT = np.float16


class Settings(Protocol):
    """What is needed of an `o3jax.hf.o3_config.Settings`."""

    whole_s: float
    clip_s: float
    clock: str


class Loaded(Protocol):
    """What is needed of an `o3jax.Model`."""

    backbone: Qwen3VL
    folder: Path
    processor: Processor
    settings: Settings
    open_video: Callable[..., OpenVideo]
    open_sparse: Callable[..., SparseReader]


@dataclasses.dataclass(frozen=True)
class CoarseFeatures:
    """What the model makes of single frames of a long video."""

    times_s: Float[np.ndarray, " n"]  # of each frame, increasing, seconds from the first shown frame
    features: Float[np.ndarray, "n P D"]  # F, float16
    cells: Float[np.ndarray, "P 2"]  # centre of each cell, in [0, 1] of the frame
    duration_s: float
    frames: int  # of the whole video
    passes: tuple[Pass, ...]  # how they were read
    lost: tuple[float, ...] = ()  # seconds whose frames could not be decoded
    notes: tuple[Note, ...] = ()
    forward: bool = False  # whether the video had to be decoded from start to end
    cached: bool = False  # whether they come from the disk, and nothing was decoded for them

    def within(self, part: Interval) -> CoarseFeatures:
        """Returns those of a part of the video; times stay."""
        inside = (self.times_s >= part[0]) & (self.times_s <= part[1])
        return dataclasses.replace(self, times_s=self.times_s[inside], features=self.features[inside])

    def joined(self, other: CoarseFeatures) -> CoarseFeatures:
        """Returns these and more features of the same video, in the order of time."""
        times = np.concatenate([self.times_s, other.times_s])
        times, order = np.unique(times, return_index=True)
        features = np.concatenate([self.features, other.features])[order]
        lost = tuple(sorted({*self.lost, *other.lost}))
        passes = (*self.passes, *other.passes)
        return dataclasses.replace(self, times_s=times, features=features, lost=lost, passes=passes)


def coarse_features(
    model: Loaded,
    video: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CoarseFeatures:
    """Returns what a model sees of a video from afar, from the disk if it was kept there.

    One frame per 5 s where key frames are so dense, else all key frames; those at scene cuts; and one in each
    stretch in which unusually much changes but none of them lies.

    Args:
        model: an `o3jax.Model`.
        video: a local file.
        cache: the folder of kept features, see `o3jax.inference.coarse_cache.default_folder`; "" keeps none.
        progress: is told how far reading is.

    Raises:
        UserError: if the model has no evidence modules, or the video cannot be read.
    """
    if model.backbone.config.evidence is None:
        raise UserError(f"{model.folder} has no evidence modules, which searching a video needs")
    store = coarse_cache.Entry(model, video, cache)
    if kept := store.read():
        return CoarseFeatures(**kept, cached=True)
    with model.open_sparse(video) as reader:
        made = _from_afar(model, reader, progress)
        made = dataclasses.replace(made, notes=reader.notes(), forward=reader.forward is not None)
    store.write(made)
    return dataclasses.replace(made, notes=(*made.notes, *store.notes))


def relevance(model: Loaded, features: CoarseFeatures, question: str) -> Float[np.ndarray, " n"]:
    """Returns the probability of each frame being evidence for the question.

    Its uncertainty is that of the probability: greatest at 0.5. Float64, so that sure ones still differ.
    """
    asking, found = asked(model.processor, [question], _QUESTION), [np.zeros(0)]
    for begin in range(0, len(features.times_s), _ROWS[-1]):  # so that few programs serve all lengths
        times, values = (x[begin : begin + _ROWS[-1]] for x in (features.times_s, features.features))
        n, size = len(times), bucket(len(times), _ROWS)
        padded = np.zeros((1, size, *values.shape[1:]), np.float32)
        padded[0, :n] = values
        seconds = np.pad(times, (0, size - n)).astype(np.float32)
        valid, cells = np.arange(size)[None] < n, features.cells[None]
        there = DenseFeatures(padded, seconds[None], valid, cells, np.ones(cells.shape[:2], bool))
        logits = np.asarray(match_features(model.backbone, asking, there), np.float64)[0, :n]
        found.append(1 / (1 + np.exp(-logits.clip(-500, 30))))
    return np.concatenate(found)


def look(
    model: Loaded,
    reader: SparseReader,
    times_s: Sequence[float] | np.ndarray,
    name: str,
    every_s: float,
    progress: Progress | None = None,
    intervals: Sequence[Interval] = (),
) -> CoarseFeatures:
    """Returns the features of the frames near some times; fewer where the file is damaged, perhaps none.

    Args:
        name, every_s, intervals: what the pass is called, about how far its frames are apart, and over what
            it goes.
    """
    config, video = model.backbone.config, model.processor.video_config
    height, width = reader.size
    size = dense_size(height, width, config.evidence, video.factor)
    decoded, lost = reader.decoded, len(reader.lost)
    times, features, cells = [np.zeros(0)], [], None
    frames = reader.frames(times_s, size)
    while part := list(itertools.islice(frames, _ROW[-1])):
        at, first = np.unique([frame.time_s for frame in part], return_index=True)
        pictures = np.stack([part[i].picture for i in first])
        stream = still_stream(pictures, at, video, config.vision, frame_pairs=bucket(len(at), _ROW))
        stream = jax.tree.map(lambda x: x[None], stream)
        made = _encode(model.backbone, stream)
        features.append(np.asarray(made.features[0, : len(at)]).astype(_KEPT))
        cells = stream.cells[0]
        times.append(at)
        if progress is not None:
            progress(Event(name, float(at[-1]), reader.duration_s))
    if cells is None:  # nothing could be read: what is here has the shape of one frame
        cells = cell_centres(size[0] // video.factor, size[1] // video.factor)
        features = [np.zeros((0, len(cells), config.evidence.hidden_size), _KEPT)]
    at, first = np.unique(np.concatenate(times), return_index=True)
    return CoarseFeatures(
        at,
        np.concatenate(features)[first],
        cells,
        reader.duration_s,
        reader.cues.frames,
        (
            Pass(
                name=name,
                every_s=every_s,
                read=len(at),
                decoded=reader.decoded - decoded,
                intervals=tuple(intervals),
            ),
        ),
        tuple(reader.lost[lost:]),
    )


def _from_afar(model: Loaded, reader: SparseReader, progress: Progress | None) -> CoarseFeatures:
    """Returns what is seen of a video whatever is asked."""
    if reader.forward is not None:  # everything is decoded anyhow, once
        times = np.arange(0.0, reader.duration_s, EVERY_S)
        busy = [(a + b) / 2 for (a, b), _ in reader.cues.busy()]
        return look(model, reader, [*times, *busy], "coarse", EVERY_S, progress)
    # Of each step the key frame nearest to it.
    steps, keys = np.arange(0.0, reader.duration_s, EVERY_S), reader.cues.keyframes
    after = np.clip(np.searchsorted(keys, steps), 1, len(keys) - 1)
    times = np.unique(np.where(keys[after] - steps < steps - keys[after - 1], keys[after], keys[after - 1]))
    made = look(model, reader, times, "coarse", EVERY_S, progress)
    if pointed := pointed_at(reader, made.times_s, CUES_SHARE * reader.cues.frames):
        made = made.joined(look(model, reader, pointed, "cues", 0.0, progress))
    return made


def pointed_at(reader: SparseReader, seen: Float[np.ndarray, " n"], most_decoded: float) -> list[float]:
    """Returns where packets say that something unseen may be: at scene cuts, and in busy stretches.

    Args:
        seen: times of frames that were read.
        most_decoded: frames that this may cost; the strongest come first.
    """
    found = [float(t) for t in reader.cues.cuts() if not (np.abs(seen - t) < 0.5).any()]
    spent = float(len(found))
    for (start, end), _ in sorted(reader.cues.busy(), key=lambda one: -one[1]):
        # Borders are whole seconds: within the outer ones a frame may be before or after what it is about.
        border = 1.0 if end - start > 2.0 else 0.0
        if ((seen >= start + border) & (seen < end - border)).any():
            continue
        at = start + min(_LOOK_S, (end - start) / 2)
        if spent + reader.cues.cost(at) <= most_decoded:
            spent += reader.cues.cost(at)
            found.append(at)
    return found


@jax.jit
def _encode(model: Qwen3VL, stream: DenseStream) -> DenseFeatures:
    return model.encode_dense(stream)
