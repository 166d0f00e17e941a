"""When decoded frames are shown: the timestamps that FFmpeg takes for the best, put in order.

Frames leave the decoder in the order in which they are shown, and that order is believed. What a file says of
their times may be wrong: files with pts = dts, without pts, with two frames at one time, or whose clock
starts anew in the middle.
"""

import math

import av

JUMP_FRAMES = 16  # a clock that goes back further starts anew; reordering explains less
_LEAP = 1000  # steps: a longer one is no step of this video, but a gap or a faulty timestamp
_NEVER = -(2**63)


class FrameClock:
    """The times of the frames of one file, in the order in which the decoder gives them.

    Attributes:
      jumps: how often the clock started anew.
    """

    def __init__(self, seconds_per_tick: float, is_avi: bool):
        self.seconds_per_tick = seconds_per_tick
        self.is_avi = is_avi
        self.jumps = 0
        self._faulty_pts = self._faulty_dts = 0
        self._offset = 0.0  # seconds added to the file's clock since it started anew
        self._at_start = True
        self.reset()

    def reset(self) -> None:
        """Forgets the last frame: to be called before another position is read."""
        self._last_pts = self._last_dts = _NEVER
        self.last = -math.inf  # seconds
        self._step = self._part = 0.0

    @property
    def is_guessing(self) -> bool:
        """Whether times depend on the frames before: only who reads from the start knows them."""
        return self.jumps > 0 or self._faulty_pts > self._faulty_dts

    def time(self, frame: av.VideoFrame, damaged: bool) -> tuple[float, float] | None:
        """Returns (start, duration) of the next frame in seconds; None if its time is not known.

        In a damaged file nothing is guessed: what has no time of its own, or one that is over, is lost.
        """
        pts, dts, last = frame.pts, frame.dts, self.last
        # AVI stores no presentation times, and those that FFmpeg makes up are wrong with B-frames.
        if self.is_avi and (dts is not None or not self._at_start):
            pts = None
        self._at_start = False
        repeats = pts is not None and pts == self._last_pts
        careful = damaged and not self.is_guessing
        stamp = (dts if self.is_avi else pts) if careful else self._best_effort(pts, dts)
        duration = (frame.duration or 0) * self.seconds_per_tick
        step = self._step or duration
        if stamp is not None:
            start = stamp * self.seconds_per_tick
            self._offset = 0.0 if start > last else self._offset  # a clock that has caught up again
            start += self._offset
        elif last > -math.inf and (self.is_avi or not careful):
            start = last + step
        else:
            return None
        if start < last - JUMP_FRAMES * step and (frame.key_frame or not careful):
            self.jumps += 1
            self._offset += last + step - start
            start = last + step
        elif start <= last and careful:
            return None
        elif start < last or (start == last and not repeats):
            # FFmpeg guesses wrong where it starts or stops to prefer dts. Such frames share the time of the
            # one before: its second half, then the last quarter, and so on.
            self._part = duration = (self._part or min(step, duration or step)) / 2
            start = last + duration
        elif start > last > -math.inf:
            gap = start - last + self._part
            if not step or gap <= _LEAP * step:
                self._step = step = gap
            self._part = 0.0
        self.last = start
        # AVI's ticks may be shorter than its frames.
        return start, step if self.is_avi or not duration else duration

    def _best_effort(self, pts: int | None, dts: int | None) -> int | None:
        """Returns the timestamp that FFmpeg takes (guess_correct_pts in libavcodec/decode.c)."""
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        return pts if pts is not None and (self._faulty_pts <= self._faulty_dts or dts is None) else dts
