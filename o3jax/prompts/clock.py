"""The seconds that a model reads and writes, where they are not the video's.

A model may know only the times of short clips (`Settings.clock` is "window"): what it is shown of a long
video then begins at 0, its parts one after the other. This is the one place where such times become the
video's and the other way; everybody else has the video's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from o3jax.grounding import Interval

CLOCKS = ("video", "window")
_SEAM_S = 1e-3  # between two parts, so that every time of the model is one of the video
T = TypeVar("T", float, np.ndarray)

# Decimal numbers that are no coordinates: those in brackets and boxes are matched first, and stay.
_SAID = re.compile(r"<box>[^<]{0,200}+</box>|\[[^\[\]]{0,200}+\]|(?<![\d.,])\d{1,6}\.\d{1,3}(?![\d.])")
# Times in a question: 1:02:03, 12:30.5, 75.5 s, 75 seconds, 75秒.
_NAMED = re.compile(
    r"(?<![\d.:])(?:(?:(\d{1,3}):)?(\d{1,3}):(\d{2}(?:\.\d{1,3})?)"
    r"|(\d{1,6}(?:\.\d{1,3})?)(?=\s?(?:s|sec|secs|seconds?|秒)(?![a-z])))(?![\d.:])"
)


@dataclass(frozen=True)
class Clock:
    """A one-to-one map between seconds of a video and those of a model, straight between knots."""

    video: tuple[float, ...]
    model: tuple[float, ...]

    @classmethod
    def of_windows(cls, windows: Sequence[Interval], pace: float = 1.0) -> Clock:
        """Returns the clock of parts of a video that are shown one after the other.

        Args:
            pace: how much faster they are shown.
        """
        video: list[float] = []
        model: list[float] = []
        at = 0.0
        for start, end in windows:
            video += [start, end]
            model += [at, at + (end - start) / pace]
            at = model[-1] + _SEAM_S
        return cls(tuple(video), tuple(model))

    def to_video(self, seconds: T) -> T:
        """Returns the video's seconds of the model's."""
        return _like(seconds, np.interp(seconds, self.model, self.video))

    def to_model(self, seconds: T) -> T:
        """Returns the model's seconds of the video's; what is not shown is the nearest part's end."""
        return _like(seconds, np.interp(seconds, self.video, self.model))

    def apart(self, seconds: np.ndarray, gap_s: float) -> np.ndarray:
        """Returns the model's seconds with `gap_s` between the parts, float32."""
        part = np.searchsorted(self.model[2::2], seconds, side="right")
        return (seconds + part * gap_s).astype(np.float32)

    def said(self, text: str, ends: Sequence[int] = ()) -> tuple[str, list[int]]:
        """Returns what the model wrote with the video's times: every decimal number that is no coordinate.

        Args:
            ends: places in the text, increasing; they are returned moved, those in a number to its end.
        """
        parts: list[str] = []
        moved: list[int] = []
        before = length = 0
        for match in _SAID.finditer(text):
            if not match[0][0].isdigit():
                continue
            plain, number = text[before : match.start()], _changed(match[0], self.to_video)
            while len(moved) < len(ends) and ends[len(moved)] <= match.start():
                moved.append(ends[len(moved)] - before + length)
            length += len(plain) + len(number)
            before = match.end()
            while len(moved) < len(ends) and ends[len(moved)] <= before:
                moved.append(length)
            parts += [plain, number]
        moved += [end - before + length for end in ends[len(moved) :]]
        return "".join([*parts, text[before:]]), moved

    def asked(self, question: str) -> str:
        """Returns a question with the model's times in place of the video's."""
        return _NAMED.sub(
            lambda m: f"{self.to_model(_seconds(m)):.1f}" + (" s" if m[4] is None else ""), question
        )


def named_times(question: str) -> list[float]:
    """Returns the seconds that a question names, in its order: 75.5 s, 12:30, 1:02:03, 75秒."""
    return [_seconds(match) for match in _NAMED.finditer(question)]


def _seconds(match: re.Match[str]) -> float:
    hours, minutes, rest, plain = match.groups()
    return float(plain) if plain else int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)


def _changed(number: str, change: Callable[[float], float]) -> str:
    return f"{change(float(number)):.{len(number.partition('.')[2])}f}"


def _like(given: T, found: np.ndarray) -> T:
    return found if isinstance(given, np.ndarray) else float(found)
