"""What moves in the synthetic world, exactly: objects, the stretches in which they are seen, the occluder."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.synthetic.words import object_name
from o3jax.grounding import Box, Interval

FPS = 25


@dataclasses.dataclass(frozen=True)
class Span:
    """One visible stretch of an object: frames `first` to `stop` - 1, straight constant motion."""

    first: int
    stop: int
    center: tuple[float, float]  # x, y at `first`, pixels
    velocity: tuple[float, float]  # pixels per second, as seen on the screen
    side: float  # of the box at `first`, pixels
    growth: float  # of the side, pixels per second

    @property
    def interval(self) -> Interval:
        return self.first / FPS, self.stop / FPS

    def window(self, begin: int, count: int) -> Span | None:
        """Returns what is seen of it in `count` frames from `begin` on, counted from there; None: nothing."""
        first, stop = max(self.first - begin, 0), min(self.stop - begin, count)
        if first >= stop:
            return None
        t = (first + begin - self.first) / FPS
        center = tuple(c + v * t for c, v in zip(self.center, self.velocity, strict=True))
        return dataclasses.replace(
            self, first=first, stop=stop, center=center, side=self.side + self.growth * t
        )

    def boxes_px(self, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 4"]:
        """Returns the xyxy boxes in pixels at `frames`, which lie inside the span."""
        t = (np.asarray(frames) - self.first) / FPS
        x, y = self.center[0] + self.velocity[0] * t, self.center[1] + self.velocity[1] * t
        half = (self.side + self.growth * t) / 2
        return np.stack([x - half, y - half, x + half, y + half], -1)

    def lapse(self, speed: float) -> Span:
        """Returns it in a film of it that is shown so many times as fast."""
        first = math.ceil(self.first / speed - 1e-9)
        t = (first * speed - self.first) / FPS
        return Span(
            first=first,
            stop=math.ceil(self.stop / speed - 1e-9),
            center=tuple(c + v * t for c, v in zip(self.center, self.velocity, strict=True)),
            velocity=tuple(speed * v for v in self.velocity),
            side=self.side + self.growth * t,
            growth=self.growth * speed,
        )


@dataclasses.dataclass(frozen=True)
class Object:
    """A coloured shape; `size` is the frame's (height, width)."""

    color: str
    shape: str
    rgb: tuple[int, int, int]
    spans: tuple[Span, ...]
    size: tuple[int, int]

    @property
    def visible(self) -> tuple[Interval, ...]:
        """The visible intervals, seconds, in order."""
        return tuple(span.interval for span in self.spans)

    def name(self, language: str) -> str:
        """Returns the colour and shape in words, such as "red circle" or "红色圆形"."""
        return object_name(self.color, self.shape, language)

    def box(self, time_s: float) -> Box | None:
        """Returns the normalised xyxy box in the frame shown at `time_s`, None when not visible."""
        frame = _frame_at(time_s)
        for span in self.spans:
            if span.first <= frame < span.stop:
                height, width = self.size
                return tuple((span.boxes_px(np.array([frame]))[0] / (width, height, width, height)).tolist())
        return None


@dataclasses.dataclass(frozen=True)
class Occluder:
    """A vertical bar that passes once over the whole frame."""

    rgb: tuple[int, int, int]
    width: float  # pixels
    start: float  # x of its middle at time 0, pixels
    velocity: float  # pixels per second


def _frame_at(time_s: float) -> int:
    """Returns the number of the frame shown at a time; the tolerance is for times such as 3 * 0.04."""
    return math.floor(time_s * FPS + 1e-6)
