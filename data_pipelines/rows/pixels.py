"""The pixels of rows: the frames of the text, the dense stream, and the frames that boxes are read from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.reading.frame_cache import Arrays
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.frames import read_frames
from data_pipelines.rows.settings import RowSettings
from data_pipelines.rows.text import Written
from o3jax.errors import UserError
from o3jax.inputs.dense import dense_stream, pointed_frames, visual_places
from o3jax.inputs.processor import Medium
from o3jax.models.batch import DenseStream, Patches, VisualPlaces, map_arrays, put


@dataclasses.dataclass(frozen=True)
class Read:
    """The pixels of a clip, or zeros and why they could not be read, or the features that replace them."""

    media: Sequence[Medium]
    dense: tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"]] | None
    pointed: UInt8[np.ndarray, "m H W 3"]
    error: str = ""
    key: str = ""  # of the entry that a feature cache does not have
    features: Arrays | None = None


def read_clip(s: RowSettings, clip: Clip, written: Written) -> Read:
    """Returns the pixels of a clip; UserError if something cannot be read."""
    size = written.frames.size
    media = read_frames(written.frames, clip.source, s.reader, s.processor)
    dense, pointed = None, np.zeros((0, *size, 3), np.uint8)
    if s.evidence is not None:
        dense = clip.dense(s.config.evidence, s.processor.video_config.factor, s.reader)
    if len(written.pointed):
        pointed = clip.source.frames_at(written.pointed, size, s.reader)
    return Read(media, dense, pointed)


def blank_clip(s: RowSettings, clip: Clip, written: Written, features: Arrays | None = None) -> Read:
    """Returns zeros of the same shapes, where a clip cannot be read or its features need no pixels."""
    plan, vision, dense = written.frames, s.config.vision, None
    media = [
        m._replace(patches=np.zeros((math.prod(m.grid), vision.patch_dim), np.uint8)) for m in plan.media
    ]
    if s.evidence is not None:
        times, _, size = s.dense_plan(clip)
        if features is not None:  # whose times are those of frame pairs
            times = np.repeat(features[-1], s.processor.video_config.temporal_patch_size)
        dense = np.zeros((len(times), *size, 3), np.uint8), times
    pointed = np.zeros((len(written.pointed), *plan.size, 3), np.uint8)
    return Read(media, dense, pointed, features=features)


def reason(failure: UserError) -> str:
    """Returns why a clip could not be read."""
    return str(failure) or type(failure).__name__


def streams(
    s: RowSettings, written: Sequence[Written], read: Sequence[Read]
) -> tuple[DenseStream, VisualPlaces]:
    """Returns the dense stream of the clips of a row, and when and where their visual tokens are.

    Raises:
        UserError: if the row has no room for them, or clips cannot share one.
    """
    p, vision, window = s.processor, s.config.vision, s.config.evidence.window_s
    if len(written) > 1 and not math.isfinite(window):
        raise UserError(
            "clips cannot share a row if evidence.window_s has no end: set config.clips_per_row=1"
        )
    merge, patches, clock = vision.spatial_merge_size, s.shape.patches, 0.0
    dense, places = [], []
    for number, (one, pixels) in enumerate(zip(written, read, strict=True), start=1):
        stream = dense_stream(*pixels.dense, p.video_config, vision, patches=s.evidence.patches)
        times = [(frame.time_s,) for frame in one.frames.frames] or [(0.0,)]
        shown = [
            visual_places(m.times_s or t, m.grid, merge, frame_pairs=m.grid[0], patches=patches)
            for m, t in zip(one.frames.media, times, strict=False)
        ]
        for parts, part in ((dense, stream), (places, map_arrays(_joined, *shown))):
            at = np.full(len(part.times), number, np.int32)
            parts.append(dataclasses.replace(part, clip=at, clock=part.times + np.float32(clock)))
        clock = max(dense[-1].clock.max(), places[-1].clock.max()) + window + 1
    cells = dense[0].cells
    if any((one.cells != cells).any() for one in dense):
        raise ValueError("clips of one row must have dense frames of one size")
    pairs = [dataclasses.replace(one, cells=None) for one in dense]  # cells are of all of them
    stream = map_arrays(lambda *arrays: _padded(_joined(*arrays), s.evidence.frame_pairs), *pairs)
    shown = map_arrays(lambda *arrays: _padded(_joined(*arrays), s.shape.frame_pairs), *places)
    return dataclasses.replace(stream, cells=cells), shown


def add_pointed(
    s: RowSettings, patches: Patches, places: VisualPlaces, written: Sequence[Written], read: Sequence[Read]
) -> None:
    """Writes the frames that boxes are read from behind the pairs that the texts show."""
    at = sum(one.frames.frame_pairs for one in written)
    for number, (one, pixels) in enumerate(zip(written, read, strict=True), start=1):
        if not (count := len(one.pointed)):
            continue
        rules = one.frames.size, s.processor.video_config, s.config.vision
        sizes = {"frame_pairs": count, "patches": s.shape.patches}
        added = pointed_frames(pixels.pointed, one.pointed, *rules, **sizes)
        here = slice(at, at + count)
        put(patches, here, added.patches)
        first = np.argmax(places.clip == number)
        places.times[here], places.centres[here] = one.pointed, added.cells
        places.clock[here] = one.pointed + (places.clock - places.times)[first]
        places.clip[here] = number
        at += count


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    if len(x) > size:
        raise UserError(
            f"the clips of a row have {len(x)} dense frame pairs, more than the {size} of a row: "
            "raise config.evidence_shape.frame_pairs"
        )
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)
