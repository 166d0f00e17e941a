"""Coarse to fine: where in a long video the evidence of a question is, for a small part of its frames.

    from afar    one frame per 5 s, and what packets point at; the same for every question, kept on disk
    relevance    of each frame to the question; what is uncertain lies between frames that differ
    refinement   these stretches at one frame per second, then per half second, while the budget lasts
    windows      what is relevant then, the most relevant first, as much as the model reads at a time

What is read closely afterwards (`o3jax.inference.reading`) is paid from the same budget.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from o3jax.errors import UserError
from o3jax.grounding import Interval, join
from o3jax.inference.coarse import CoarseFeatures, Loaded, coarse_features, look, relevance
from o3jax.inference.matching import candidate_intervals
from o3jax.notes import Note
from o3jax.prompts.clock import named_times
from o3jax.searched import Pass, Progress
from o3jax.video.cues import Cues
from o3jax.video.sparse import SparseReader

SHARE = 0.05  # of a video's frames that may be decoded
LEAST = 3000  # that may be, however short it is: two minutes
STEPS_S = (1.0, 0.5)  # between frames where it is uncertain what is relevant
REFINE_SHARE = 0.4  # of what is left after the first passes, for these
MARGIN_S = 1.4  # that a window shows before and after what is relevant
NAMED_S = 3.0  # and around a time that the question names
AROUND_S = 15.0  # of such a time it is refined what is relevant, and nowhere else
WINDOWS = 8  # that are read at a time, at most
RELEVANT = 0.5  # probability
_SURE = 0.2  # two frames tell of what is between them, if their probabilities differ by less
_GRID = 5  # windows start and end at multiples of 1/5 s: whole frames at 25 per second, and whole tenths
# What comes first is read first, what comes last likewise: then what the question names and is seen is it.
_FIRST = re.compile(r"\b(?:first|earlier|earliest)\b|先|第一|最早", re.IGNORECASE)
_LAST = re.compile(r"\b(?:last|later|latest)\b|最后|最晚", re.IGNORECASE)


class Stretch(NamedTuple):
    """Seconds that are relevant, with what is around them."""

    start: float
    peak: float  # where it is most relevant
    end: float


@dataclasses.dataclass(frozen=True)
class Found:
    """Where to read closely."""

    windows: tuple[Interval, ...]  # seconds, in order; none: nothing is relevant
    why: Note
    features: CoarseFeatures  # all frames that were looked at
    relevance: Float[np.ndarray, " n"]  # of each, a probability
    part: Interval  # in which it was searched
    budget: int  # frames that may be decoded in all
    left: float = math.inf  # of them, for reading closely
    stretches: tuple[Stretch, ...] = ()  # of which the windows were chosen, the most relevant first
    room: Room | None = None  # for windows; None: all is one

    @property
    def unread(self) -> int:
        """How many stretches no window is of."""
        return sum(not any(a <= one.peak <= b for a, b in self.windows) for one in self.stretches)

    def without(self, times: Sequence[float], decoded: int) -> Found:
        """Returns what to read next, when what is at some times is not what is asked for.

        Args:
            times: seconds; where none of them lies in a window, it is none of the windows.
            decoded: frames that reading this took.
        """
        other = [one for one in self.stretches if any(one.start <= t <= one.end for t in times)]
        other = other or [one for one in self.stretches if any(a <= one.peak <= b for a, b in self.windows)]
        kept = tuple(one for one in self.stretches if one not in other)
        left = self.left - decoded
        windows = self.room.windows(kept, left) if self.room and other else ()
        return dataclasses.replace(self, windows=windows, left=left, stretches=kept)


def search(
    model: Loaded,
    video: str | os.PathLike[str],
    question: str,
    *,
    part: Interval,
    most_s: float,
    budget: float | None = None,
    progress: Progress | None = None,
) -> Found:
    """Returns the parts of a long video in which the evidence of a question may be.

    Args:
        part: seconds of the video in which they may be.
        most_s: seconds that they may last in all.
        budget: share of the video's frames that may be decoded; 5 % by default, and at least 3,000 frames.

    Raises:
        UserError: if the budget is too small for the first pass and two seconds of video.
    """
    with model.open_sparse(video) as reader:
        if part[1] - part[0] <= most_s:  # all of it is one window
            seen = dataclasses.replace(look(model, reader, [], "coarse", 0.0), passes=())
            return Found((part,), Note("searched short"), seen, np.zeros(0), part, reader.cues.frames)
        rate, frames = reader.cues.rate or 1.0, reader.cues.frames
        seen = coarse_features(model, video, progress=progress).within(part)
        spent = sum(one.decoded for one in seen.passes)
        may = max(LEAST, SHARE * frames) if budget is None else budget * frames
        least = spent + 2 * rate
        if reader.forward is None and not seen.forward:
            if may < least:
                raise UserError(
                    f"a budget of {may:.0f} of {frames} frames does not cover a look at every key frame of "
                    f"{video} and 2 s of it: raise the budget to {math.ceil(1000 * least / frames) / 1000:g}"
                )
            seen = _refined(
                model, reader, seen, question, _named(question, part), REFINE_SHARE * (may - spent), progress
            )
        found = relevance(model, seen, question)
        is_forward = reader.forward is not None
        is_read = is_forward or seen.forward  # all of it, whatever may be decoded
        left = math.inf if is_read else may - sum(one.decoded for one in seen.passes)
        named, left = _named(question, part), max(left, 2 * rate)
        stretches = _stretches(seen.times_s, found, named)
        if _FIRST.search(question) or _LAST.search(question):
            stretches.sort(reverse=not _FIRST.search(question))
        room = Room(reader.cues, is_forward, part, most_s)
        windows = room.windows(stretches, left)
        why = Note("searched named") if named else Note("searched", len(stretches))
        why = why if windows else Note("uniform")
        return Found(windows, why, seen, found, part, int(may), left, tuple(stretches), room)


def _refined(
    model: Loaded,
    reader: SparseReader,
    seen: CoarseFeatures,
    question: str,
    named: Sequence[float],
    most_decoded: float,
    progress: Progress | None,
) -> CoarseFeatures:
    """Returns the features with more of where it is uncertain what is relevant; near named times, if any."""
    for step in STEPS_S:
        before, times = reader.decoded, _uncertain(seen.times_s, relevance(model, seen, question), step)
        chosen, over, spent = [], [], 0.0
        for gap in times:
            if named and min(abs(t - near) for t in gap for near in named) > AROUND_S:
                continue
            # Frames that no other needs are not decoded: of most encoders that is every other.
            cost = decoding(reader.cues, gap) / 2
            if spent + cost <= most_decoded:
                spent += cost
                chosen += gap
                over.append((round(gap[0] - step, 3), round(gap[-1] + step, 3)))
        if chosen:
            seen = seen.joined(look(model, reader, chosen, "refine", step, progress, join(over)))
        most_decoded -= reader.decoded - before
    return seen


def _uncertain(
    times: Float[np.ndarray, " n"], found: Float[np.ndarray, " n"], step: float
) -> list[list[float]]:
    """Returns times of the gaps between frames that differ, the most relevant first, `step` apart."""
    gaps = []
    for t, following, p, q in zip(times, times[1:], found, found[1:], strict=False):
        inner = np.arange(t + step, following - step / 2, step)
        unsure = 1 - abs(p + q - 1)
        if len(inner) and unsure > _SURE:
            gaps.append((unsure * max(p, q), inner.tolist()))
    return [inner for _, inner in sorted(gaps, key=lambda gap: -gap[0])]


def _named(question: str, part: Interval) -> list[float]:
    """Returns the times in a part of the video that the question names: those are where to look."""
    return [t for t in named_times(question) if part[0] <= t <= part[1]]


def decoding(cues: Cues, times: Sequence[float] | np.ndarray) -> float:
    """Returns about how many frames must be decoded to see those of some times, in order."""
    # Behind each key frame all is decoded up to the last of them.
    return sum(cues.cost(last) for last in {cues.keyframe(t): t for t in times}.values())


def _stretches(
    times: Float[np.ndarray, " n"], found: Float[np.ndarray, " n"], named: Sequence[float]
) -> list[Stretch]:
    """Returns what may be read, the most relevant first: around times that the question names, if it does."""
    relevant = []
    for start, end in candidate_intervals(found, times, high=RELEVANT, smooth_s=0.0, min_s=0.0):
        inside = np.flatnonzero((times >= start) & (times <= end))
        peak = inside[found[inside].argmax()]
        # It may begin right after the frame before, which may be far where nothing was refined.
        before, after = times[max(inside[0] - 1, 0)], times[min(inside[-1] + 1, len(times) - 1)]
        start, end = min(start - MARGIN_S, before), max(end + MARGIN_S, after)
        relevant.append((found[peak], Stretch(float(start), float(times[peak]), float(end))))
    relevant = [one for _, one in sorted(relevant, key=lambda one: -one[0])]
    # At a named time what is relevant then, as far as it goes, and at least what is around it.
    at = [[one for one in relevant if one.start <= t <= one.end] for t in named]
    around = [
        Stretch(min([t - NAMED_S, *(a for a, _, _ in near)]), t, max([t + NAMED_S, *(b for _, _, b in near)]))
        for t, near in zip(named, at, strict=True)
    ]
    return around if named else relevant


@dataclasses.dataclass(frozen=True)
class Room:
    """What limits windows."""

    cues: Cues
    forward: bool  # whether all was decoded anyhow
    part: Interval  # in which they are
    most_s: float  # that they last in all

    def windows(self, stretches: Sequence[Stretch], most_decoded: float) -> tuple[Interval, ...]:
        """Returns as many of some stretches as there is room for, in order of time."""
        windows: list[Interval] = []
        rate, seconds, frames = self.cues.rate or 1.0, self.most_s, most_decoded
        for start, peak, end in stretches[:WINDOWS]:
            start, end = max(start, self.part[0]), min(end, self.part[1])
            lead = 0.0 if self.forward else (start - self.cues.keyframe(start)) * rate
            room = min(seconds, (frames - lead) / rate)
            if room < min(2.0, end - start) or (windows and room < end - start):
                continue
            if end - start > room:  # as much of it as there is room for, around its most relevant frame
                start = min(max(peak - room / 2, start), end - room)
                end = start + room
            start, end = math.floor(start * _GRID) / _GRID, math.floor(end * _GRID) / _GRID
            windows.append((start, end))
            seconds -= end - start
            frames -= lead + (end - start) * rate
        return tuple(join(windows))


def passes_of(found: Found) -> tuple[Pass, ...]:
    """Returns what was decoded for this question before anything is read closely."""
    seen = found.features
    return tuple(
        dataclasses.replace(one, decoded=0) if seen.cached and one.name != "refine" else one
        for one in seen.passes
    )
