"""The time of a video: what its header says of length and rate, against what was found in the file.

Headers are often wrong: variable-rate files name a constant rate, edit lists hide coded frames, streams
start late, cut-off files keep their full length. What was found is believed, and a `Timeline` can say in
words where the two differ.
"""

import bisect
import math
import re
from fractions import Fraction
from pathlib import Path

import av

from o3jax.video.files import VideoError, current_limits, open_container

PRESENTED_FPS = 25.0  # frames per second at which a video is presented where nobody says another rate
MAX_TICKS = 2**60  # timestamps are 64-bit

# These containers count their duration from zero, the others from the first timestamp.
CONTAINERS_TIMED_FROM_ZERO = ("matroska", "flv")


class Timeline:
    """When the frames of one open video are shown, as far as is known.

    A file has a clock of its own; everything that users see counts from the start of the first frame.

    Attributes:
      zero: when the first frame is shown, by the file's clock.
      frame_s: duration of the last frame.
      end_s: end of the last frame from the start of the first, once the end has been seen.
      lost: sorted times, by the file's clock, of frames that are known to exist but not to decode.
      reached: end of the last packet of any track, by the file's clock.
      untimed: frames without a timestamp.
      backwards: frames dropped because the clock jumps back.
      in_sequence: frames since the start; None once frames were skipped.
      read_error: True if reading stopped early.
    """

    def __init__(self, path: Path):
        self.path = path
        self.zero = math.inf
        self.frame_s = 0.0
        self.end_s: float | None = None
        self.lost: list[float] = []
        self.reached = -math.inf
        self.untimed = self.backwards = 0
        self.in_sequence: int | None = 0
        self.read_error = False
        self._promised_end: float | None = None  # by the header, if the file ends before it
        self._scan: tuple[float, int] | None = None  # seconds and packets, as counted

    def header_of(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        """Makes this file's header the one that is read; again whenever the file is opened again."""
        self.container, self.stream = container, stream
        # Containers round timestamps to their ticks (1 ms in mkv): without half a tick of tolerance a
        # 30 fps file read at 30 fps repeats frames. AVI's ticks are whole frames, and exact.
        self.tolerance = min(float(stream.time_base) / 2, 5e-4) + 1e-6

    # What is found while reading

    def check_extent(self, frames: int = 0, end: float = 0.0) -> None:
        """VideoError if the file has too many frames, or ends too late by its own clock."""
        limits = current_limits()
        if frames > limits.max_frames:
            raise VideoError(
                f"{self.path} has {frames} frames or more; the limit max_frames is {limits.max_frames}."
            )
        if end - self.zero > limits.max_duration_s:
            raise VideoError(
                f"{self.path} lasts {end - self.zero:.0f} s or more; "
                f"the limit max_duration_s is {limits.max_duration_s:g} s."
            )

    def lose(self, start: float) -> None:
        """Notes a frame that cannot be shown."""
        i = bisect.bisect_left(self.lost, start)
        if i == len(self.lost) or self.lost[i] != start:
            self.lost.insert(i, start)

    def loses_between(self, start: float, end: float) -> bool:
        """Returns whether a frame is lost after `start` and not after `end`, by the file's clock."""
        i = bisect.bisect_right(self.lost, start)
        return i < len(self.lost) and self.lost[i] <= end

    def packets_end(self) -> bool:
        """Notes that there are no more packets; returns whether they end before the header says."""
        declared = self.declared_end()
        is_cut = declared is not None and self.reached < declared - max(0.1, 2 * self.frame_s)
        self._promised_end = declared if is_cut else None
        return is_cut

    def frames_end(self, last: float) -> None:
        """Notes that the frame that starts at `last`, by the file's clock, is the last one."""
        if not math.isfinite(self.frame_s):
            self.frame_s = 1 / (self.average_fps() or PRESENTED_FPS)
        self.end_s = last + self.frame_s - self.zero

    def is_past(self, t: float) -> bool:
        """Returns whether `t` seconds after the first frame nothing is shown any more, as is known by now."""
        return self.end_s is not None and t > self.end_s - self.tolerance

    # What is known about the whole file

    def average_fps(self) -> float | None:
        """Returns the frames per second as counted, else as the header says, else None."""
        if self.end_s and self.in_sequence and not self.damaged:
            return self.in_sequence / self.end_s
        if self._scan is not None and self._scan[0] > 0:
            return self._scan[1] / self._scan[0]
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else None

    def duration(self) -> float:
        """Returns the seconds from the first shown frame to the end: measured if it was seen."""
        return self.declared_duration() if self.end_s is None else self.end_s

    def declared_duration(self) -> float:
        """Returns the seconds that the header promises from the first shown frame, else the packets' sum."""
        end = self.declared_end()
        return self._scanned_duration() if end is None else end - self.zero

    def declared_end(self) -> float | None:
        """Returns when the video ends by the file's clock and according to its headers, or None."""
        ends = []
        stream, container = self.stream, self.container
        from_zero = any(name in container.format.name for name in CONTAINERS_TIMED_FROM_ZERO)
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if tag and from_zero:
            ends.append(int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]))
        if stream.duration and not from_zero:
            ends.append(float(((stream.start_time or 0) + stream.duration) * stream.time_base))
        if container.duration:
            ends.append((container.duration + (0 if from_zero else container.start_time or 0)) / av.time_base)
        # An edit list may hide part of the track, and sound may go on after it: the smallest is the best.
        return min(ends, default=None)

    def _scanned_duration(self) -> float:
        """Returns the length of the video by reading all its packets without decoding any."""
        if self._scan is None:
            end, packets = self.zero, 0
            with open_container(self.path) as container:
                try:
                    for packet in container.demux(container.streams[self.stream.index]):
                        if packet.pts is not None and not packet.is_discard:
                            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                            packets += 1
                            self.check_extent(packets, end)
                except av.FFmpegError:
                    self.read_error = True
            self._scan = (end - self.zero, packets)
        return self._scan[0]

    def count_at(self, fps: float, start_s: float, end_s: float | None, limit: int) -> int:
        """Returns how many frames a constant rate will give; a header that says too many is not believed."""

        def frames(duration: float) -> int:
            stop = duration if end_s is None else min(duration, end_s)
            return max(1, math.ceil(min((stop - start_s) * fps, MAX_TICKS)))

        expected = frames(self.declared_duration())
        return expected if expected <= limit else frames(self._scanned_duration())

    # In words

    @property
    def damaged(self) -> bool:
        return bool(self.lost or self.backwards or self.read_error or self.is_cut)

    @property
    def is_cut(self) -> bool:
        """True if the frames end before the header says they do."""
        return self.end_s is not None and self._promised_end is not None

    def extent(self) -> str:
        """Returns how long the video is, as part of a sentence."""
        if self.end_s is None:
            return f"its header promises {self.declared_duration():.3f} s"
        return f"it can be shown up to {self.end_s:.3f} s"

    def notes(self, left_out: list[float], past_end: list[float]) -> list[str]:
        """Returns everything that a user should know about what was not decoded.

        The arguments are wanted times that could not be shown: inside the video, and after its end.
        """
        notes = []
        if self.is_cut:
            promised = self._promised_end - self.zero
            notes.append(f"cut off: {self.end_s:.2f} s of {promised:.2f} s could be decoded")
        if self.lost and not left_out:
            where = max(0.0, self.lost[0] - self.zero)
            notes.append(f"damaged near {where:.2f} s; no wanted frame was lost")
        if left_out:
            notes.append(
                f"damaged: {len(left_out)} wanted times are left out, the first at {left_out[0]:g} s"
            )
        if self.read_error:
            notes.append("reading stopped early because of damage in the file")
        if past_end:
            notes.append(f"{len(past_end)} wanted times lie past that, the first at {past_end[0]:g} s")
        if self.backwards:
            notes.append(f"{self.backwards} frames were dropped because the file's clock jumps back")
        if self.untimed:
            notes.append(f"{self.untimed} frames without a timestamp are not shown")
        return notes


def seconds(ticks: int, base: Fraction) -> float:
    """Returns float(ticks * base), without making a fraction of it, which takes as long as decoding."""
    return ticks * base.numerator / base.denominator
