"""A person's verdict on an answer: right, wrong, or how it should be; a JSON file beside the answer's.

`NAME.review.json` beside `NAME.json` (an answer's `to_json`):
    {"verdict": "right" | "wrong" | "fixed",
     "answer": the right answer, where it was fixed,
     "evidence": [{"object": ..., "time_s": ..., "box": [x1, y1, x2, y2] in [0, 1] or null,
                   "interval": [start, end] in seconds or null}, ...], all of it, where any was fixed,
     "note": what else a person says}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o3jax.fields import Section
from o3jax.files import read_json, write_json
from o3jax.grounding import Grounding

VERDICTS = ("right", "wrong", "fixed")
SUFFIX = ".review.json"
_MOST_TEXT, _MOST_EVIDENCE, _MOST_S = 20_000, 200, 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """What a person says of an answer."""

    verdict: str  # one of VERDICTS
    answer: str | None = None  # the right one; None: as it is
    evidence: tuple[Grounding, ...] | None = None  # the right one; None: as it is
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON of its file."""
        evidence = self.evidence and [
            {"object": e.object, "time_s": e.time_s, "box": e.box, "interval": e.interval}
            for e in self.evidence
        ]
        return {"verdict": self.verdict, "answer": self.answer, "evidence": evidence, "note": self.note}


def from_dict(values: Mapping[str, Any], source: str = "the review") -> Review:
    """Returns a review; UserError names the field that is wrong.

    Args:
        source: the file that errors name.
    """
    section = Section(values, source)
    section.nothing_but(("verdict", "answer", "evidence", "note"))
    if section.text("verdict") not in VERDICTS:
        raise section.bad("verdict", f"must be one of {', '.join(VERDICTS)}")
    texts = {name: section.text(name) for name in ("answer", "note") if section.has(name)}
    for name, text in texts.items():
        if len(text) > _MOST_TEXT:
            raise section.bad(name, f"must have at most {_MOST_TEXT} characters")
    evidence = None
    if section.has("evidence"):
        items = section.get("evidence")
        if not isinstance(items, list) or len(items) > _MOST_EVIDENCE:
            raise section.bad("evidence", f"must be a list of at most {_MOST_EVIDENCE}")
        evidence = tuple(_grounding(item, source, number) for number, item in enumerate(items))
    return Review(verdict=section.text("verdict"), evidence=evidence, **texts)


def _grounding(item: Any, source: str, number: int) -> Grounding:
    name = f"evidence[{number}]"
    if not isinstance(item, Mapping):
        raise Section({}, source).bad(name, "must be an object")
    section = Section(item, source, f"{name}.")
    section.nothing_but(("object", "time_s", "box", "interval"))
    (time_s,) = Section({"time_s": [item.get("time_s")]}, source, f"{name}.").numbers("time_s", 1)
    box = section.numbers("box", 4) if section.has("box") else None
    if box and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise section.bad("box", "must be [x1, y1, x2, y2] in [0, 1], with x1 < x2 and y1 < y2")
    interval = section.numbers("interval", 2) if section.has("interval") else None
    if interval and not 0 <= interval[0] <= interval[1] <= _MOST_S:
        raise section.bad("interval", "must be [start, end] in seconds, with start <= end")
    if not 0 <= time_s <= _MOST_S:
        raise section.bad("time_s", "must be seconds from the start of the video")
    return Grounding(section.text("object")[:200], time_s, interval, (box,) if box else ())


def review_path(answer: Path) -> Path:
    """Returns where the review of an answer's JSON file is."""
    return answer.with_suffix(SUFFIX)


def read_review(path: Path) -> Review:
    """Returns the review in a file; UserError if it is none."""
    return from_dict(read_json(path), str(path))


def write_review(path: Path, review: Review) -> None:
    """Writes the file of a review, whole or not at all."""
    write_json(path, review.to_dict(), indent=2)
