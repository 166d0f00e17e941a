"""Single frames far apart, for as little decoding as possible: key frames alone, and from a key frame up to
another frame without those that no other frame needs.

What `OpenVideo.read` guarantees is given up for that: the frame returned for a time is one of those around
it, and its own time is returned with it. Files whose clock or key frames cannot be relied on are read from
the start to the end instead, and `forward` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from o3jax.notes import Note
from o3jax.video.cues import NEAR_S, read_cues
from o3jax.video.decoder import Shown, VideoFile
from o3jax.video.files import demux
from o3jax.video.timeline import MAX_TICKS

# Containers in which a seek by timestamps lands where it should.
_SEEKABLE = ("mov", "matroska", "mpegts", "flv")
_WORTH_S = 60.0  # a file whose key frames are further apart is read through at once
_ASTRAY = 0.6  # share of seeks that may miss before the index is not believed any more
_TRIED = 8  # seeks before that is judged
_BACK_S = (0.0, 2.0, 8.0)  # a seek that lands past its target is taken further back


class StillFrame(NamedTuple):
    """A frame, and from when it is shown: seconds from the first frame."""

    time_s: float
    picture: UInt8[np.ndarray, "h w 3"]


class SparseReader:
    """An open video of which single frames are read; a context manager that closes it.

    Attributes:
      cues: what its packets say.
      forward: why it is read from start to end, a note; None where seeking does.
      lost: times asked for whose frame could not be decoded.
      size: (height, width) of a frame as displayed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = VideoFile(path, measure=True)
        try:
            self.cues = read_cues(self._file)
            self.duration_s = self._file.timeline.duration()
            self.forward = self._why_forward()
        except BaseException:
            self._file.close()
            raise
        self.size = self._file.size
        self.lost: list[float] = []
        self._decoded = self._seeks = self._missed = 0

    def __enter__(self) -> SparseReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def decoded(self) -> int:
        """How many frames went through the decoder; each opening of the file costs a few."""
        return self._decoded + self._file.decoded

    def notes(self) -> tuple[Note, ...]:
        """Returns what a user should know about what was read so far."""
        said = self._file.notes([], [])
        if self.lost and not any(note.startswith("damaged") for note in said):
            said = (*said, Note("left out", len(self.lost), min(self.lost)))
        return (*said, self.forward) if self.forward else said

    def frames(self, times_s: Iterable[float], size: tuple[int, int]) -> Iterator[StillFrame]:
        """Yields a frame near each of some times, in order unless the index lies; none where it is damaged.

        One picture is in memory at a time. A frame is at most 0.3 s from the time asked where the file
        has frames there.
        """
        waiting = sorted({float(t) for t in times_s})
        if self.forward is None:
            groups: dict[float, list[float]] = {}
            for t in waiting:
                groups.setdefault(self.cues.keyframe(t), []).append(t)
            waiting = []
            for start, group in groups.items():
                if self.forward is not None:
                    waiting += group
                    continue
                for t, shown in self._from(start, group):
                    if shown is not None:
                        yield self._still(shown, size)
                    else:
                        self.lost.append(t)
                if self._seeks >= _TRIED and self._missed > _ASTRAY * self._seeks:
                    self.forward = Note("index")
                    self._file._restart()
                    waiting, self.lost = self.lost, []
        for t in waiting if self.forward else ():
            shown = self._file.shown_at(t, tolerate_end=True)
            if shown is not None:
                yield self._still(shown, size)
            elif not self._file.timeline.is_past(t):
                self.lost.append(t)

    def _still(self, shown: Shown, size: tuple[int, int]) -> StillFrame:
        return StillFrame(shown.start - self._file.timeline.zero, self._file.picture(shown, size))

    def _why_forward(self) -> Note | None:
        file, cues = self._file, self.cues
        if len(cues.keyframes) < 2 or cues.longest_gap_s > _WORTH_S:
            return Note("key frames", len(cues.keyframes))
        if not any(name in file.container.format.name for name in _SEEKABLE):
            return Note("no seeking", file.container.format.name)
        return None

    def _from(self, start: float, wanted: list[float]) -> list[tuple[float, Shown | None]]:
        """Returns for each time the nearest frame that was decoded from the key frame at `start`."""
        base, zero = self._file.stream.time_base, self._file.timeline.zero
        nearest: list[Shown | None] = [None] * len(wanted)
        first: float | None = None
        damaged = False
        try:
            for frame in self._decode(start, wanted[-1]):
                self._decoded += 1
                if frame.pts is None or frame.is_corrupt:
                    damaged |= frame.is_corrupt
                    continue
                at = float(frame.pts * base) - zero
                first = at if first is None else first
                for i, t in enumerate(wanted):
                    if nearest[i] is None or abs(at - t) < abs(nearest[i].start - zero - t):
                        nearest[i] = Shown(at + zero, frame)
        except (av.FFmpegError, EOFError):
            damaged = True
        self._seeks += 1
        self._missed += not damaged and (first is None or abs(first - start) > NEAR_S)
        reach = NEAR_S + 2 / (self.cues.rate or 1)  # those between are skipped
        far = [
            one is None or abs(one.start - zero - t) > reach for one, t in zip(nearest, wanted, strict=True)
        ]
        return [(t, None if bad else one) for t, one, bad in zip(wanted, nearest, far, strict=True)]

    def _decode(self, start: float, last: float) -> Iterator[av.VideoFrame]:
        """Yields frames from the key frame at `start` to about `last`, without those that no other needs."""
        file, base, zero = self._file, self._file.stream.time_base, self._file.timeline.zero
        codec = file.stream.codec_context
        codec.skip_frame = "NONKEY" if last - start <= NEAR_S else "NONREF"
        try:
            for back in _BACK_S:
                ticks = int((start + zero + NEAR_S - back) / base)
                file.container.seek(min(ticks, MAX_TICKS), stream=file.stream)
                begun = False
                for packet in demux(file.container, file.stream):
                    stamp = packet.dts if packet.pts is None else packet.pts
                    if stamp is None:
                        break
                    at = float(stamp * base) - zero
                    # A seek may land on an earlier key frame: that one is not wanted.
                    begun = begun or (packet.is_keyframe and abs(at - start) <= NEAR_S)
                    if begun:
                        yield from file.stream.decode(packet)
                    if begun and at >= last or not begun and at > start + NEAR_S:
                        break
                if begun:
                    yield from file.stream.decode(None)  # those that the decoder holds back
                    return
        finally:
            codec.skip_frame = "DEFAULT"
