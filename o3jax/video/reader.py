"""Frames of a video file at wanted times, by presentation timestamp.

The frame shown at time t is the last one that starts at or before t, and time 0 is the start of the first
frame that can be shown. `o3jax.video.decoder` does the work and says what may be opened.
"""

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from o3jax.video.decoder import MAX_PIXELS, VideoError, VideoFile

__all__ = ["Clip", "VideoError", "VideoInfo", "probe", "read_video"]

MAX_FPS = 1000
MAX_CLIP_BYTES = 8 * 2**30  # the largest clip that is put into memory


@dataclass(frozen=True)
class Clip:
    """Frames of a video and an account of what was decoded.

    Attributes:
      frames: RGB, upright (the file's rotation and mirroring are applied).
      times_s: seconds from the first shown frame at which each frame was asked for. Times that the file
        cannot show (status "partial") are absent here and in `frames`.
      duration_s: seconds from the start of the first shown frame to the end of the last.
      duration_measured: True if the file was read to its end, False if `duration_s` is the header's word.
      source_fps: the file's own average frames per second, or None if it gives no hint.
      size: (height, width) in pixels of the displayed original, before `size=` of the request.
      status: "partial" if something could not be decoded on the way to the wanted times.
      notes: what was not decoded, dropped or changed, and why.
      decoded_frames: how many frames went through the decoder.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    times_s: Float64[np.ndarray, "T"]
    duration_s: float
    duration_measured: bool
    source_fps: float | None
    size: tuple[int, int]
    status: Literal["complete", "partial"]
    notes: tuple[str, ...]
    decoded_frames: int


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about itself; only its first frame was decoded.

    Attributes:
      duration_s: seconds, counted from the packets where the header does not say.
      fps: average frames per second, or None if the file gives no hint; headers of variable-rate mkv and
        webm files often name another rate.
      frames: estimated number of shown frames, or None.
      width, height: displayed pixels, after rotation.
      codec: FFmpeg's name of the video codec.
      rotation: 0, 90, 180 or 270 degrees counter-clockwise from coded to displayed.
    """

    duration_s: float
    fps: float | None
    frames: int | None
    width: int
    height: int
    codec: str
    rotation: int


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Returns the size, length and codec of a video without decoding more than its first frame.

    Raises:
      VideoError: for everything that `read_video` refuses to open.
    """
    with closing(VideoFile(path)) as reader:
        duration = reader.declared_duration()
        fps = reader.average_fps()
        height, width = reader.size
        return VideoInfo(
            duration_s=duration,
            fps=fps,
            frames=round(duration * fps) if fps else None,
            width=width,
            height=height,
            codec=reader.stream.codec.canonical_name,
            rotation=reader.first.rotation % 360,
        )


def read_video(
    path: str | os.PathLike[str],
    fps: float = 25.0,
    *,
    times_s: Sequence[float] | np.ndarray | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    size: tuple[int, int] | None = None,
    threads: int | Literal["auto"] = 1,
) -> Clip:
    """Returns the frames that a viewer would see at the wanted times, with an account of what was decoded.

    Without `times_s` the times are k / fps for whole k, from `start_s` (included) to `end_s` (excluded) or
    to the end of the video. Frames that are not wanted are decoded only where a later frame needs them.

    Args:
      path: a local file; URLs, playlists, devices and pipes are refused.
      fps: presented frames per second, whatever the rate of the file.
      times_s: seconds from the first shown frame, in any order, instead of a constant rate; the result has
        the same order. A time up to half a frame past the end shows the last frame.
      start_s, end_s: part of the video in seconds, with `fps` only.
      size: (height, width) of the returned frames, resized by swscale's bicubic filter. Pixels that are
        declared not square stay as they are stored, and a note says so.
      threads: decoding threads; one costs the least processor time, "auto" the least waiting.

    Raises:
      VideoError: the file cannot be opened or holds no frame for the times, a parameter makes no sense, a
        time lies past the end of an intact file, or the clip is larger than `MAX_CLIP_BYTES`.
    """
    wanted = _check_request(fps, times_s, start_s, end_s, size, threads)
    with closing(VideoFile(path, threads)) as reader:
        clip_size = size or reader.size
        frame_bytes = clip_size[0] * clip_size[1] * 3
        if wanted is not None:
            order = np.argsort(wanted, kind="stable")
            requests: Iterable[tuple[int, float]] = zip(order.tolist(), wanted[order].tolist(), strict=True)
            capacity = len(wanted)
        else:
            first = math.ceil(start_s * fps - 1e-6)
            requests = ((slot, (first + slot) / fps) for slot in count())
            capacity = reader.count_at(fps, start_s, end_s, MAX_CLIP_BYTES // frame_bytes)
        _check_memory(capacity, frame_bytes, reader.path)

        frames = np.empty((capacity, *clip_size, 3), np.uint8)
        times: dict[int, float] = {}
        left_out: list[float] = []
        past_end: list[float] = []
        for slot, t in requests:
            if wanted is None and end_s is not None and t > end_s - 1e-6:
                break
            shown = reader.shown_at(t, tolerate_end=wanted is not None)
            if shown is not None:
                if slot >= len(frames):  # the header promised too little
                    _check_memory(slot + 1, frame_bytes, reader.path)
                    frames.resize((2 * slot + 1, *clip_size, 3), refcheck=False)
                frames[slot] = reader.picture(shown, clip_size)
                times[slot] = t
            elif reader.end_s is not None and t > reader.end_s - reader.tolerance:
                if wanted is None:
                    break
                past_end.append(t)
            else:
                left_out.append(t)
        if past_end and not reader.damaged:
            raise VideoError(
                f"{reader.path}: {past_end[0]:g} s is past the end of the video ({reader.end_s:.3f} s)."
            )
        if not times:
            raise VideoError(
                f"{reader.path}: no frame can be shown at the times asked for; {reader.extent()}."
            )
        slots = sorted(times)
        if slots[-1] + 1 == len(slots):
            frames.resize((len(slots), *clip_size, 3), refcheck=False)
        else:
            frames = frames[slots]
        return Clip(
            frames=frames,
            times_s=np.array([times[slot] for slot in slots]),
            duration_s=reader.end_s if reader.end_s is not None else reader.declared_duration(),
            duration_measured=reader.end_s is not None,
            source_fps=reader.average_fps(),
            size=reader.size,
            status="partial" if reader.damaged else "complete",
            notes=reader.notes(left_out, past_end),
            decoded_frames=reader.decoded,
        )


def _check_request(
    fps: object, times_s: object, start_s: object, end_s: object, size: object, threads: object
) -> Float64[np.ndarray, "T"] | None:
    """Returns the explicit times as an array, or None; VideoError naming the parameter that is wrong."""
    if not (_is_number(fps) and 0 < fps <= MAX_FPS):
        raise VideoError(f"fps must be a positive number, at most {MAX_FPS}, not {fps!r}.")
    if not (_is_number(start_s) and 0 <= start_s < math.inf):
        raise VideoError(f"start_s must be zero or a positive number of seconds, not {start_s!r}.")
    if end_s is not None and not (_is_number(end_s) and end_s > start_s):
        raise VideoError(
            f"end_s must be a number of seconds greater than start_s ({start_s!r}), not {end_s!r}."
        )
    if threads != "auto" and not (isinstance(threads, int) and threads >= 1):
        raise VideoError(f'threads must be a positive whole number or "auto", not {threads!r}.')
    if size is not None:
        pair = isinstance(size, Sequence) and len(size) == 2
        whole = pair and all(isinstance(n, int | np.integer) and n > 0 for n in size)
        if not whole or size[0] * size[1] > MAX_PIXELS:
            raise VideoError(
                f"size must be (height, width) in whole pixels, at most {MAX_PIXELS} in all, not {size!r}."
            )
    if times_s is None:
        return None
    if start_s != 0 or end_s is not None:
        raise VideoError("times_s cannot be combined with start_s or end_s; give one or the other.")
    try:
        wanted = np.asarray(times_s, np.float64)
    except (TypeError, ValueError):
        raise VideoError("times_s must be a list of numbers (seconds).") from None
    if wanted.ndim != 1 or not len(wanted):
        raise VideoError("times_s must be a list with at least one time in seconds.")
    wrong = wanted[~((wanted >= 0) & np.isfinite(wanted))]
    if len(wrong):
        raise VideoError(f"times_s must hold zero or positive seconds, not {wrong[0]:g}.")
    return wanted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Fraction | np.number) and not isinstance(value, bool)


def _check_memory(frames: int, frame_bytes: int, path: Path) -> None:
    if frames * frame_bytes > MAX_CLIP_BYTES:
        raise VideoError(
            f"{path}: {frames} frames would take more than {MAX_CLIP_BYTES / 2**30:g} GiB of memory; "
            "ask for a part with start_s and end_s, for smaller frames with size, or for a lower fps."
        )
