"""The dense stream of a video as the model reads it: all its frames, small, with their times; and single
frames, large, that boxes are read from. Everything is numpy, made on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from o3jax.errors import UserError
from o3jax.inputs.collate import empty_patches, put_frames
from o3jax.inputs.image import VideoConfig, patchify, resize_video
from o3jax.models.batch import DenseStream, Patches, PointedFrames, VisualPlaces
from o3jax.models.config import EvidenceConfig, VisionConfig
from o3jax.video import VideoInfo, Wanted

# Seconds -> the frames that a video shows nearest to them, and the frames' own seconds.
FramesAt = Callable[[Float[np.ndarray, " n"]], tuple[UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, " n"]]]


class SingleFrames(NamedTuple):
    """A video that single frames can be read of."""

    times_s: Float[np.ndarray, " n"]  # of all its frames, as the dense stream has them
    size: tuple[int, int]  # (height, width) of a frame of the language stream
    frames_at: FramesAt


def dense_rate(native_fps: float, c: EvidenceConfig) -> float:
    """Returns the frames per second of the dense stream: the video's own, or `dense_fps` if that is too many.

    Too many are more than the temporal window is sized for, 2 x `max_rate`, which `dense_fps` never exceeds
    (see `o3jax.hf.o3_config`). So the window holds all frames, and no frame is read twice.
    """
    return native_fps if native_fps <= 2 * c.max_rate else c.dense_fps


def dense_size(height: int, width: int, c: EvidenceConfig, factor: int) -> tuple[int, int]:
    """Returns the (height, width) of a dense frame: multiples of `factor` with about `dense_pixels`.

    A frame is never enlarged, except to one factor.
    """
    scale = min(1.0, math.sqrt(c.dense_pixels / (height * width)))
    return tuple(max(1, round(side * scale / factor)) * factor for side in (height, width))


@functools.lru_cache(maxsize=64)
def cell_centres(rows: int, columns: int) -> Float[np.ndarray, "cells 2"]:
    """Returns the centre (x, y) of each language token of a frame, in [0, 1], in the tokens' order."""
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    return np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)


def dense_wanted(info: VideoInfo, c: EvidenceConfig, factor: int) -> Wanted:
    """Returns which frames of a video are its dense stream: all, or as many as the window holds, small."""
    return Wanted(dense_rate(info.fps or c.dense_fps, c), size=dense_size(info.height, info.width, c, factor))


def dense_stream(
    frames: UInt8[np.ndarray, "n H W 3"],
    times_s: Float[np.ndarray, " n"],
    video: VideoConfig,
    vision: VisionConfig,
    *,
    frame_pairs: int | None = None,
    patches: int | None = None,
) -> DenseStream:
    """Returns one row of the dense stream, without a batch axis; patches are uint8.

    Args:
        frames: RGB of `dense_size`, in order of time.
        times_s: of each frame, seconds.
        frame_pairs, patches: sizes to pad T and P to; None takes the smallest that fits.

    Raises:
        UserError: if the frames do not fit these sizes.
    """
    _, height, width, _ = frames.shape
    size = (height // video.patch_size) * (width // video.patch_size)
    count = -(-len(frames) // video.temporal_patch_size)
    frame_pairs, patches = frame_pairs or count, patches or size
    if count > frame_pairs or size > patches:
        raise UserError(
            f"the dense stream has {count} frame pairs of {size} patches, more than the {frame_pairs} x "
            f"{patches} of a row: raise config.evidence_shape.frame_pairs or .patches, or use shorter clips"
        )
    pixels, times, cells = _pairs(frames, times_s, video, vision, frame_pairs, patches)
    return DenseStream(times, cells, patches=pixels)


def still_stream(
    frames: UInt8[np.ndarray, "n H W 3"],
    times_s: Float[np.ndarray, " n"],
    video: VideoConfig,
    vision: VisionConfig,
    *,
    frame_pairs: int | None = None,
) -> DenseStream:
    """Returns frames far apart as one row of a dense stream: each is a pair with itself, at its own time.

    So is a video read at 2 frames per second or fewer: of two frames half a second apart, a pair would be
    the picture of neither. Arguments and errors as `dense_stream`.
    """
    pair = video.temporal_patch_size
    frames, times_s = np.repeat(frames, pair, axis=0), np.repeat(times_s, pair)
    return dense_stream(frames, times_s, video, vision, frame_pairs=frame_pairs)


def pointed_frames(
    frames: UInt8[np.ndarray, "n H W 3"],
    times_s: Float[np.ndarray, " n"],
    size: tuple[int, int],
    video: VideoConfig,
    vision: VisionConfig,
    *,
    frame_pairs: int,
    patches: int,
) -> PointedFrames:
    """Returns frames to read boxes from, each twice as a pair, without a batch axis.

    Args:
        frames: RGB of any size.
        times_s: of each frame, seconds.
        size: (height, width) of a frame of the language stream.
        frame_pairs, patches: sizes to pad to.
    """
    stills = np.repeat(resize_video(frames, size), video.temporal_patch_size, axis=0)
    times_s = np.repeat(times_s, video.temporal_patch_size)
    pixels, times, cells = _pairs(stills, times_s, video, vision, frame_pairs, patches)
    return PointedFrames(pixels, times, cells)


def _pairs(
    frames: UInt8[np.ndarray, "n h w 3"],
    times_s: Float[np.ndarray, " n"],
    video: VideoConfig,
    vision: VisionConfig,
    frame_pairs: int,
    patches: int,
) -> tuple[Patches, Float[np.ndarray, " T"], Float[np.ndarray, "cells 2"]]:
    """Returns the pairs' patches, their mean times, and the centres of the tokens of one."""
    n, height, width, _ = frames.shape
    pair, merge = video.temporal_patch_size, vision.spatial_merge_size
    h, w = height // video.patch_size, width // video.patch_size
    count = -(-n // pair)
    out = empty_patches((frame_pairs, patches), vision)
    values = patchify(frames, video).reshape(count, h * w, vision.patch_dim)
    put_frames(out, (slice(count),), values, (h, w), vision)
    times, cells = np.zeros(frame_pairs, np.float32), np.zeros((patches // merge**2, 2), np.float32)
    padded = np.append(times_s, np.repeat(times_s[-1:], -n % pair))
    times[:count] = padded.reshape(count, pair).mean(-1)
    cells[: h * w // merge**2] = cell_centres(h // merge, w // merge)
    return out, times, cells


def visual_places(
    times_s: Sequence[float], grid: tuple[int, int, int], merge: int, *, frame_pairs: int, patches: int
) -> VisualPlaces:
    """Returns when and where the language stream's tokens of a video are, without a batch axis.

    Args:
        times_s: of each frame pair.
        grid: frame pairs, and rows and columns of patches, as the processor returns.
        merge: patches along one side of a token.
        frame_pairs, patches: sizes that T and P are padded to.
    """
    t, h, w = grid
    times = np.zeros(frame_pairs, np.float32)
    centres = np.zeros((frame_pairs, patches // merge**2, 2), np.float32)
    times[:t] = times_s
    centres[:t, : h * w // merge**2] = cell_centres(h // merge, w // merge)
    return VisualPlaces(times, centres)


def interval_mask(
    intervals: Iterable[tuple[float, float]], times: Float[np.ndarray, " T"]
) -> Bool[np.ndarray, " T"]:
    """Returns which times lie in an interval, ends included.

    The time nearest to an interval's middle counts too, so that none is lost between two times.
    """
    mask = np.zeros(len(times), bool)
    for start, end in intervals if len(times) else ():
        mask |= (times >= start) & (times <= end)
        mask[np.abs(times - (start + end) / 2).argmin()] = True
    return mask
