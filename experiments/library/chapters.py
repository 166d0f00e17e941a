"""Chapters of a video: its pieces' descriptions, or the stretches between which what is found changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.library.records import Record
from o3jax.report.moments import Moment

_LEAST_S = 1.0  # a shorter chapter belongs to the one before


def of(windows: Sequence[Record]) -> list[Moment]:
    """Returns the descriptions of a video's pieces, each up to where the next begins; like ones are one."""
    found: list[Moment] = []
    for window in windows:
        if "chapter" not in window:
            continue
        chapter = Moment.from_dict(window["chapter"])
        if found and found[-1].label == chapter.label:
            found[-1] = dataclasses.replace(found[-1], end_s=chapter.end_s)
            continue
        if found:
            found[-1] = dataclasses.replace(found[-1], end_s=min(found[-1].end_s, chapter.start_s))
        found.append(chapter)
    return found


def of_tags(tags: Sequence[Moment], duration_s: float) -> list[Moment]:
    """Returns a chapter for each stretch in which the same tags are there, named after them."""
    borders = {0.0, duration_s, *(t.start_s for t in tags), *(min(t.end_s, duration_s) for t in tags)}
    times = [0.0]
    for time in sorted(borders):
        if time - times[-1] >= _LEAST_S:
            times.append(time)
    times[-1] = duration_s if len(times) > 1 else times[-1]
    if len(times) == 1:
        times.append(duration_s)
    found: list[Moment] = []
    for start, end in zip(times, times[1:], strict=False):
        middle = (start + end) / 2
        here = sorted({t.label for t in tags if t.start_s <= middle < t.end_s})
        sure = min((t.confidence for t in tags if t.label in here), default=1.0)
        title = ", ".join(here)
        if found and found[-1].label == title:
            found[-1] = dataclasses.replace(found[-1], end_s=end)
        else:
            found.append(Moment(title, start, end, sure))
    return [chapter for chapter in found if chapter.label]
