"""Frames of a video file at wanted times, by presentation timestamp.

The frame shown at time t is the last one that starts at or before t, and time 0 is the start of the first
frame that can be shown.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from o3jax.notes import Note
from o3jax.video.decoder import Shown, VideoFile
from o3jax.video.files import MAX_PIXELS, VideoError
from o3jax.video.timeline import PRESENTED_FPS

MIN_FPS, MAX_FPS = 1e-4, 1000
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
    times_s: Float64[np.ndarray, " T"]
    duration_s: float
    duration_measured: bool
    source_fps: float | None
    size: tuple[int, int]
    status: Literal["complete", "partial"]
    notes: tuple[Note, ...]
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


@dataclass(frozen=True)
class Wanted:
    """Which frames of a video are wanted: those at a constant rate, or those at some times.

    Attributes:
      fps: presented frames per second, whatever the rate of the file: the times are k / fps for whole k.
      times_s: seconds from the first shown frame, in any order, instead of a constant rate; the clip has
        the same order. A time up to half a frame past the end shows the last frame.
      start_s, end_s: part of the video in seconds, from `start_s` (included) to `end_s` (excluded) or to the
        end of the video; with `fps` only.
      size: (height, width) of the frames, resized by swscale's bicubic filter. Pixels that are declared not
        square stay as they are stored, and a note says so.

    Raises:
      VideoError: naming the field that makes no sense.
    """

    fps: float = PRESENTED_FPS
    times_s: Sequence[float] | np.ndarray | None = None
    start_s: float = 0.0
    end_s: float | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        fps, start_s, end_s, size = self.fps, self.start_s, self.end_s, self.size
        if not (_is_number(fps) and 0 < fps <= MAX_FPS):
            raise VideoError(f"fps must be a positive number, at most {MAX_FPS}, not {fps!r}.")
        if fps < MIN_FPS:
            raise VideoError(f"fps must be at least {MIN_FPS}, not {fps!r}.")
        if not (_is_number(start_s) and 0 <= start_s < math.inf):
            raise VideoError(f"start_s must be zero or a positive number of seconds, not {start_s!r}.")
        if end_s is not None and not (_is_number(end_s) and end_s > start_s):
            raise VideoError(
                f"end_s must be a number of seconds greater than start_s ({start_s!r}), not {end_s!r}."
            )
        if size is not None:
            pair = isinstance(size, Sequence) and len(size) == 2
            whole = pair and all(isinstance(n, int | np.integer) and n > 0 for n in size)
            if not whole or size[0] * size[1] > MAX_PIXELS:
                raise VideoError(
                    f"size must be (height, width) in whole pixels, at most {MAX_PIXELS} in all, "
                    f"not {size!r}."
                )
        if self.times_s is None:
            return
        if start_s != 0 or end_s is not None:
            raise VideoError("times_s cannot be combined with start_s or end_s; give one or the other.")
        try:
            wanted = np.asarray(self.times_s, np.float64)
        except (TypeError, ValueError):
            raise VideoError("times_s must be a list of numbers (seconds).") from None
        if wanted.ndim != 1 or not len(wanted):
            raise VideoError("times_s must be a list with at least one time in seconds.")
        wrong = wanted[~((wanted >= 0) & np.isfinite(wanted))]
        if len(wrong):
            raise VideoError(f"times_s must hold zero or positive seconds, not {wrong[0]:g}.")

    def requests(self) -> Iterator[tuple[int, float]]:
        """Yields (place in the clip, seconds) in the order of time; without end at a constant rate."""
        if self.times_s is not None:
            times = np.asarray(self.times_s, np.float64)
            order = np.argsort(times, kind="stable")
            yield from zip(order.tolist(), times[order].tolist(), strict=True)
        else:
            first = math.ceil(self.start_s * self.fps - 1e-6)
            for slot in count():
                t = (first + slot) / self.fps
                if self.end_s is not None and t > self.end_s - 1e-6:
                    return
                yield slot, t


class OpenVideo:
    """One opened file that serves a whole request: what it says of itself, and frames in one pass over it.

    It is also a context manager, which closes the file; `frames_at` may be called after that.

    Args:
      path: a local file; URLs, playlists, devices and pipes are refused.
      threads: decoding threads; one costs the least processor time, "auto" the least waiting.
      measure: whether its length will be asked for before it is read.
      keep_bytes: decoded frames of up to this size in all are kept for `frames_at`, the first ones.

    Raises:
      VideoError: if the file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | Literal["auto"] = 1,
        keep_bytes: int = 0,
        measure: bool = True,
    ):
        if threads != "auto" and not (isinstance(threads, int) and threads >= 1):
            raise VideoError(f'threads must be a positive whole number or "auto", not {threads!r}.')
        self._file = VideoFile(path, threads, measure)
        self._free_bytes = keep_bytes
        self._kept: dict[float, Shown] = {}  # by the time asked

    def __enter__(self) -> "OpenVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def info(self) -> VideoInfo:
        """Returns what the file says about itself; ask before `read`, which may find something else."""
        line, (height, width) = self._file.timeline, self._file.size
        duration = line.duration()
        fps = line.average_fps()
        return VideoInfo(
            duration_s=duration,
            fps=fps,
            frames=round(duration * fps) if fps else None,
            width=width,
            height=height,
            codec=self._file.stream.codec.canonical_name,
            rotation=self._file.at_start.frame.rotation % 360,
        )

    def read(self, *wanted: Wanted) -> list[Clip]:
        """Returns a clip for each of the arguments; no frame is decoded twice. To be called once.

        Frames that nobody wants are decoded only where a later frame needs them.

        Raises:
          VideoError: the file holds no frame for the times, a time lies past the end of an intact file, or a
            clip is larger than `MAX_CLIP_BYTES`.
        """
        readings = [_Reading(one, self._file) for one in wanted]
        while waiting := [reading for reading in readings if reading.next is not None]:
            reading = min(waiting, key=lambda one: one.next[1])
            t = reading.next[1]
            shown = reading.take()
            if shown is not None and self._free_bytes > 0:
                self._keep(t, shown)
        return [reading.clip() for reading in readings]

    def frame_times(self) -> Iterator[float]:
        """Yields the seconds at which each frame is presented, from the first, reading the whole file.

        To be called in place of `read`.
        """
        for shown in self._file.frames():
            yield shown.start - self._file.timeline.zero

    def notes(self) -> tuple[Note, ...]:
        """Returns what a user should know about what was decoded so far."""
        return self._file.notes([], [])

    @property
    def track(self) -> int:
        """The number of the file's track that is shown, as FFmpeg counts them."""
        return self._file.stream.index

    def at_rate(
        self, fps: float, size: tuple[int, int], start_s: float = 0.0, end_s: float | None = None
    ) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"], bool]]:
        """Yields (seconds, frame, whether it is held) at a constant rate, one at a time in memory.

        Where a frame is lost, the last good one is held. To be called in place of `read`; again for parts
        that follow.

        Raises:
          VideoError: a parameter makes no sense.
        """
        file = self._file
        last = file.picture(file.at_start, size)
        for _, t in Wanted(fps, start_s=start_s, end_s=end_s, size=size).requests():
            shown = file.shown_at(t, tolerate_end=False)
            if shown is None and file.timeline.is_past(t):
                return
            last = last if shown is None else file.picture(shown, size)
            yield t, last, shown is None

    def _keep(self, t: float, shown: Shown) -> None:
        if self._kept and next(reversed(self._kept.values())) is shown:
            self._kept[t] = shown
        else:
            self._free_bytes -= sum(plane.buffer_size for plane in shown.frame.planes)
            if self._free_bytes >= 0:
                self._kept[t] = shown

    def frames_at(
        self, times_s: Float64[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n H W 3"], Float64[np.ndarray, " n"]]:
        """Returns the frames shown at some times, of full size, and the times without those that are lost.

        What `read` decoded for exactly such a time and kept is not decoded again; for the other times the
        file is opened anew.

        Raises:
          VideoError: as `read`.
        """
        file, times = self._file, times_s.tolist()
        found = {t: file.picture(self._kept[t], file.size) for t in times if t in self._kept}
        if missing := [t for t in times if t not in found]:
            clip = read_video(file.path, times_s=missing, threads=file.threads)
            found |= zip(clip.times_s.tolist(), clip.frames, strict=True)
        times = [t for t in times if t in found]
        return np.stack([found[t] for t in times]), np.array(times)


class _Reading:
    """What was found of what is wanted; `next` is (place, seconds) of the next frame, None at the end."""

    def __init__(self, wanted: Wanted, file: VideoFile):
        self.by_rate = wanted.times_s is None
        self.file = file
        self.size = tuple(wanted.size or file.size)
        self.frame_bytes = self.size[0] * self.size[1] * 3
        if self.by_rate:
            most = MAX_CLIP_BYTES // self.frame_bytes
            capacity = file.timeline.count_at(wanted.fps, wanted.start_s, wanted.end_s, most)
        else:
            capacity = len(wanted.times_s)
        self._check_memory(capacity)
        self.frames = np.empty((capacity, *self.size, 3), np.uint8)
        self.times: dict[int, float] = {}
        self.left_out: list[float] = []
        self.past_end: list[float] = []
        self._requests = wanted.requests()
        self.next = next(self._requests, None)

    def take(self) -> Shown | None:
        """Reads the next frame, and returns it unless it cannot be shown."""
        slot, t = self.next
        shown = self.file.shown_at(t, tolerate_end=not self.by_rate)
        self.next = next(self._requests, None)
        if shown is not None:
            if slot >= len(self.frames):  # the header promised too little
                self._check_memory(slot + 1)
                self.frames.resize((2 * slot + 1, *self.size, 3), refcheck=False)
            self.frames[slot] = self.file.picture(shown, self.size)
            self.times[slot] = t
        elif not self.file.timeline.is_past(t):
            self.left_out.append(t)
        elif self.by_rate:
            self.next = None
        else:
            self.past_end.append(t)
        return shown

    def clip(self) -> Clip:
        """Returns what was read; VideoError if that is nothing, or a time lies past the end."""
        file, line, frames = self.file, self.file.timeline, self.frames
        if self.past_end and not line.damaged:
            raise VideoError(
                f"{file.path}: {self.past_end[0]:g} s is past the end of the video ({line.end_s:.3f} s)."
            )
        if not self.times:
            raise VideoError(f"{file.path}: no frame can be shown at the times asked for; {line.extent()}.")
        slots = sorted(self.times)
        if slots[-1] + 1 == len(slots):
            frames.resize((len(slots), *self.size, 3), refcheck=False)
        else:
            frames = frames[slots]
        return Clip(
            frames=frames,
            times_s=np.array([self.times[slot] for slot in slots]),
            duration_s=line.duration(),
            duration_measured=line.end_s is not None,
            source_fps=line.average_fps(),
            size=file.size,
            status="partial" if line.damaged else "complete",
            notes=file.notes(self.left_out, self.past_end),
            decoded_frames=file.decoded,
        )

    def _check_memory(self, frames: int) -> None:
        if frames * self.frame_bytes > MAX_CLIP_BYTES:
            raise VideoError(
                f"{self.file.path}: {frames} frames would take more than {MAX_CLIP_BYTES / 2**30:g} GiB of "
                "memory; ask for a part with start_s and end_s, for smaller frames with size, or for a "
                "lower fps."
            )


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Returns the size, length and codec of a video without decoding more than its first frame.

    Raises:
      VideoError: for everything that `read_video` refuses to open.
    """
    with OpenVideo(path) as video:
        return video.info()


def read_video(
    path: str | os.PathLike[str],
    fps: float = PRESENTED_FPS,
    *,
    times_s: Sequence[float] | np.ndarray | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    size: tuple[int, int] | None = None,
    threads: int | Literal["auto"] = 1,
) -> Clip:
    """Returns the frames that a viewer would see at the wanted times, with an account of what was decoded.

    Args:
      path, threads: see `OpenVideo`.
      fps, times_s, start_s, end_s, size: see `Wanted`.

    Raises:
      VideoError: the file cannot be opened or holds no frame for the times, a parameter makes no sense, a
        time lies past the end of an intact file, or the clip is larger than `MAX_CLIP_BYTES`.
    """
    wanted = Wanted(fps, times_s, start_s, end_s, size)
    with OpenVideo(path, threads, measure=False) as video:
        return video.read(wanted)[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Fraction | np.number) and not isinstance(value, bool)
