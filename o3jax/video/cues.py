"""What a video file tells of its content without decoding: where its key frames are, where much changes.

An encoder spends bytes where the picture changes, and sets key frames outside of their rhythm where the
scene does. Sizes and kinds of packets stand in the index of mp4, mov and avi; other files are read through
once. None of it is proof: it says where to look, and only timestamps of decoded frames are believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from jaxtyping import Float64

from o3jax.grounding import Interval
from o3jax.video.decoder import VideoFile
from o3jax.video.files import demux, open_container
from o3jax.video.timeline import is_avi

NEAR_S = 0.3  # a key frame this close to a time is as good, and so is a frame that others need
_RHYTHM = 0.05  # by which share distances of key frames in rhythm may differ
_STRONG = 4.0  # deviations above the usual rate of bytes, from which a stretch is called busy
_LONGEST_S = 1e6  # that packets are believed to say
_PACKET = np.dtype([("ticks", np.int64), ("size", np.int64), ("key", bool)])
_JOIN_S = 1.0  # busy stretches this close are one


@dataclass(frozen=True)
class Cues:
    """What the packets of a video's track say; times count from the first shown frame.

    Attributes:
      keyframes: when each frame starts that can be decoded alone, seconds.
      frames: packets of the track.
      rate: frames per second, on average.
      changes: bytes of the packets between key frames in each second.
    """

    keyframes: Float64[np.ndarray, " k"]
    frames: int
    rate: float
    changes: Float64[np.ndarray, " seconds"]

    @property
    def duration_s(self) -> float:
        """About when the last frame ends."""
        return self.frames / self.rate if self.rate else 0.0

    @property
    def longest_gap_s(self) -> float:
        """The most seconds that one must decode to reach a frame."""
        return float(np.diff(self.keyframes, append=self.duration_s).max()) if len(self.keyframes) else np.inf

    def keyframe(self, time_s: float) -> float:
        """Returns the last key frame before or just after a time; the first where none is before."""
        index = np.searchsorted(self.keyframes, time_s + NEAR_S, side="right") - 1
        return float(self.keyframes[max(index, 0)])

    def cost(self, time_s: float) -> float:
        """Returns about how many frames must be decoded to see that of a time: 1 at a key frame."""
        before = self.keyframe(time_s)
        return 1.0 if time_s - before <= NEAR_S else 1.0 + (time_s - before) * self.rate

    def cuts(self) -> Float64[np.ndarray, " c"]:
        """Returns the key frames that break the rhythm of the others: there the encoder saw a new scene."""
        gaps = np.diff(self.keyframes)
        if len(gaps) < 2:
            return np.zeros(0)
        usual = np.median(gaps)
        return self.keyframes[1:][gaps < (1 - _RHYTHM) * usual]

    def busy(self) -> list[tuple[Interval, float]]:
        """Returns the stretches where unusually much changes, each with its strength: deviations above the
        usual rate at their highest. The usual rate is the median, so a video in which all moves has none."""
        if not len(self.changes):
            return []
        usual = np.median(self.changes)
        # What a tenth more than usual costs is the least deviation: a still picture has none of its own.
        deviation = 1.48 * np.median(np.abs(self.changes - usual)) + 0.1 * usual + 1.0
        strength = (self.changes - usual) / deviation
        above = np.flatnonzero(strength > _STRONG)
        found: list[tuple[Interval, float]] = []
        for run in np.split(above, np.flatnonzero(np.diff(above) > 1 + _JOIN_S) + 1):
            if len(run):
                found.append(((float(run[0]), float(run[-1] + 1)), float(strength[run].max())))
        return found


def read_cues(file: VideoFile) -> Cues:
    """Returns the cues of an open video; its position does not move.

    Raises:
      VideoError: if it has more frames than may be read.
    """
    # The index of these names every packet; that of mkv only key frames, others have what was read so far.
    if "mov" in file.container.format.name or is_avi(file.container):
        packets = (
            (e.timestamp, e.size, e.is_keyframe) for e in file.stream.index_entries if not e.is_discard
        )
    else:
        packets = _packets(file.path, file.stream.index)
    found = np.fromiter(packets, _PACKET)
    if not len(found):
        return Cues(np.zeros(0), 0, 0.0, np.zeros(0))
    # An index has decoding times: they lead those of display by as much as at the first frame. A file may
    # claim any.
    times = np.clip((found["ticks"] - found["ticks"][0]) * float(file.stream.time_base), 0, _LONGEST_S)
    keys, span = found["key"], float(times.max())
    rate = (len(times) - 1) / span if span > 0 else file.timeline.average_fps() or 0.0
    changes = np.bincount(times[~keys].astype(int), found["size"][~keys], minlength=int(span) + 1)
    return Cues(np.unique(times[keys]), len(times), rate, changes)


def _packets(path: str | os.PathLike[str], track: int) -> Iterator[tuple[int, int, bool]]:
    """Yields (ticks, bytes, whether it is a key frame) of all packets of a track, decoding none."""
    with open_container(path, decodes=False) as container:
        try:
            for packet in demux(container, container.streams[track]):
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is not None and packet.size:
                    yield stamp, packet.size, packet.is_keyframe
        except av.FFmpegError:  # damaged from here on: what was read is what can be searched
            return
