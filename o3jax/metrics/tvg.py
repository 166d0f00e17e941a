"""Temporal video grounding metrics (TVGBench): mean IoU and recall of one predicted interval."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from o3jax.metrics.boxes import interval_iou
from o3jax.metrics.vstar import parse_answer

THRESHOLDS = (0.3, 0.5, 0.7)

Interval = Sequence[float]

# Every quantifier is possessive and a number starts where its digits start: one pass over any text.
_SECONDS = r"(?<!\d)(\d++(?:\.\d*+)?+)"
_UNIT = r"\s*+(?:</t>)?+\s*+(?:seconds?|secs?|s|秒)?+\s*+"
_PATTERNS = {
    "official": re.compile(rf"{_SECONDS} (?:to|and) {_SECONDS}"),
    "o3": re.compile(rf"{_SECONDS}{_UNIT}(?:to|and|-|–|~|到|至)\s*+(?:<t>)?+\s*+{_SECONDS}"),
}


def parse(text: str, mode: str = "official") -> list[float] | None:
    """Returns the last [start, end] in seconds that the text states, or None.

    Modes: `official` reads `12.5 to 17.8` and `12.5 and 17.8` anywhere in the text, as Time-R1's
    evaluation does; `o3` reads the answer element (the whole text without one) and also knows the
    published tags and units: `From <t>12.5</t>s to <t>17.8</t>s`, `12.5s - 17.8s`.

    Raises:
        ValueError: if the mode is unknown.
    """
    if mode not in _PATTERNS:
        raise ValueError(f"mode '{mode}' is unknown; choose one of {', '.join(_PATTERNS)}")
    interval = None
    for match in _PATTERNS[mode].finditer(parse_answer(text) if mode == "o3" else text):
        interval = [float(match.group(1)), float(match.group(2))]
    return interval if interval and all(map(math.isfinite, interval)) else None


def score(pairs: Sequence[tuple[Interval | None, Interval]]) -> dict[str, float]:
    """Returns {"mIoU", "R1@0.3", "R1@0.5", "R1@0.7"} of (predicted or None, truth) pairs, as fractions.

    An interval is (start, end) in seconds; a prediction of None has IoU 0. The thresholds are strict
    (an IoU of exactly 0.5 is no hit at 0.5), unlike V-STaR's. Without pairs every metric is 0.
    """
    ious = [0.0 if predicted is None else interval_iou(predicted, truth) for predicted, truth in pairs]
    count = max(len(ious), 1)
    recalls = {f"R1@{threshold}": sum(iou > threshold for iou in ious) / count for threshold in THRESHOLDS}
    return {"mIoU": math.fsum(ious) / count} | recalls
