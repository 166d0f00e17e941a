"""What is where, and when: the one form of a grounded thing in texts, annotations, estimates and rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in [0, 1] of the displayed frame
Interval = tuple[float, float]  # start, end in seconds from the first presented frame


def join(intervals: Iterable[Interval], gap_s: float = 0.0) -> list[Interval]:
    """Returns the intervals in order, those that are at most `gap_s` apart as one."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1] + gap_s:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


@dataclasses.dataclass(frozen=True)
class Grounding:
    """A thing in a video, with the time and the place that somebody gives it.

    A model's text (`prompts.grammar.Claim`), an annotation (`Sample.mentions`), the evidence decoder
    (`inference.locate.DecoderEstimate`) and an answer (`report.Evidence`) all say it in this form.
    """

    object: str = ""  # its name; empty where nothing names it
    time_s: float | None = None  # seconds from the first presented frame
    interval: Interval | None = None  # the seconds in which it is visible
    boxes: tuple[Box, ...] = ()  # where it is at that time: several for several things of this name
    confidence: float | None = None  # of being right, in [0, 1]

    @property
    def box(self) -> Box | None:
        """The first box, None without one."""
        return self.boxes[0] if self.boxes else None
