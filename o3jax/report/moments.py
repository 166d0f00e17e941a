"""What is found in a video: stretches of it with a name, a confidence, and boxes at times."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from o3jax.grounding import Grounding, Interval
from o3jax.metrics.boxes import interval_iou
from o3jax.report.answer import Answer

_INSTANT_S = 0.5  # around a time that no interval surrounds
_SAME = 0.4  # bounds that overlap what was searched by less are of something else


@dataclasses.dataclass(frozen=True)
class Moment:
    """A stretch of a video in which something is."""

    label: str  # what: the name of an event or of a tag, a chapter's title
    start_s: float  # seconds from the first presented frame
    end_s: float
    confidence: float
    evidence: tuple[Grounding, ...] = ()  # boxes at times, in the order of time
    text: str = ""  # what the model said
    needs_review: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        evidence = [
            {"object": e.object, "time_s": e.time_s, "box": e.box, "confidence": e.confidence}
            for e in self.evidence
        ]
        return dataclasses.asdict(self) | {"evidence": evidence}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Moment:
        """Returns the moment that `to_dict` wrote; further fields are passed over."""
        evidence = tuple(
            Grounding(
                e["object"],
                e["time_s"],
                boxes=(tuple(e["box"]),) if e["box"] else (),
                confidence=e["confidence"],
            )
            for e in values["evidence"]
        )
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in names} | {"evidence": evidence})

    def later(self, seconds: float) -> Moment:
        """Returns the moment as a clock shows it that runs behind by so much."""
        moved = tuple(dataclasses.replace(e, time_s=e.time_s + seconds) for e in self.evidence)
        return dataclasses.replace(
            self, start_s=self.start_s + seconds, end_s=self.end_s + seconds, evidence=moved
        )

    @property
    def key(self) -> Grounding | None:
        """The evidence that shows it best: with a box, and the surest."""
        return max(self.evidence, key=lambda e: (e.box is not None, e.confidence or 0), default=None)


@dataclasses.dataclass(frozen=True)
class VideoMoments:
    """What was found in one video."""

    file: str
    size: tuple[int, int]  # width and height of the displayed frame, pixels
    duration_s: float
    fps: float  # of the file's frames, which numbers of frames count
    moments: tuple[Moment, ...]
    chapters: tuple[Moment, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoMoments:
        """Returns what a record of a run says of a video."""
        listed = {
            name: tuple(map(Moment.from_dict, values.get(name, ()))) for name in ("moments", "chapters")
        }
        plain = {name: values[name] for name in ("file", "duration_s", "fps")}
        return cls(**plain, size=tuple(values["size"]), **listed)


def moments_of(answer: Answer, label: str) -> list[Moment]:
    """Returns the moments that an answer tells of, none where its model finds nothing relevant.

    With evidence modules these are the stretches that were searched, each with the bounds that the decoder
    gives to what it found there, else with the text's. Without them they are the text's intervals, or what
    is around the times of its claims.
    """
    placed = [e for e in answer.evidence if e.time_s is not None]
    spans = answer.candidates if answer.relevance else answer.intervals
    if not spans and not answer.relevance:
        spans = [(max(0.0, e.time_s - _INSTANT_S), e.time_s + _INSTANT_S) for e in placed]
    found = []
    for span in _distinct(spans):
        mine = [e for e in placed if span[0] <= e.time_s <= span[1]]
        bounds = [e.interval for e in mine if e.interval] or list(answer.intervals)
        start, end = max(bounds, key=lambda one: interval_iou(one, span), default=span)
        if interval_iou((start, end), span) < _SAME:
            start, end = span
        shown = tuple(map(_shown, sorted(mine, key=lambda e: e.time_s)))
        sure = answer.confidence
        found.append(Moment(label, start, end, sure, shown, answer.text, answer.needs_review))
    return found


def _shown(e: Grounding) -> Grounding:
    """Returns what a moment keeps of an answer's evidence."""
    return Grounding(e.object, e.time_s, boxes=e.boxes, confidence=e.confidence)


def _distinct(spans: Iterable[Interval]) -> list[Interval]:
    return sorted({(float(start), float(end)) for start, end in spans if end > start})


def joined(moments: Iterable[Moment], gap_s: float) -> list[Moment]:
    """Returns the moments in order of time, those of one label that are at most `gap_s` apart as one.

    The surest of these gives the text, and whether it needs review.
    """
    found: list[Moment] = []
    last: dict[str, int] = {}
    for moment in sorted(moments, key=lambda m: (m.start_s, m.end_s, m.label)):
        at = last.get(moment.label)
        if at is None or moment.start_s > found[at].end_s + gap_s:
            last[moment.label] = len(found)
            found.append(moment)
            continue
        before = found[at]
        best = max(before, moment, key=lambda m: m.confidence)
        evidence = {(e.object, round(e.time_s, 2)): e for e in (*moment.evidence, *before.evidence)}
        found[at] = dataclasses.replace(
            best,
            start_s=before.start_s,
            end_s=max(before.end_s, moment.end_s),
            evidence=tuple(sorted(evidence.values(), key=lambda e: (e.time_s, e.object))),
        )
    return found


def claimed(answer: Answer) -> list[Moment]:
    """Returns a moment for each thing that an answer names with its time, labelled with the thing's name."""
    found = []
    for e in answer.evidence:
        if e.object and e.time_s is not None:
            start, end = e.interval or (max(0.0, e.time_s - _INSTANT_S), e.time_s + _INSTANT_S)
            sure = answer.confidence if e.confidence is None else e.confidence
            found.append(Moment(e.object, start, end, sure, (_shown(e),), answer.text, answer.needs_review))
    return found
