"""Overlap of two intervals and of two boxes, as the video grounding benchmarks define it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the overlap of two (start, end) intervals, in [0, 1]: intersection over their hull.

    The hull, not the union, is what V-STaR and TVGBench divide by; the two differ only where the
    intervals do not touch, and there both give 0. A reversed, empty or non-finite interval gives 0.
    """
    (start_a, end_a), (start_b, end_b) = map(_finite, (a, b))
    hull = max(end_a, end_b) - min(start_a, start_b)
    intersection = min(end_a, end_b) - max(start_a, start_b)
    return max(0.0, intersection) / hull if hull > 0 else 0.0


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns intersection over union of two (x1, y1, x2, y2) boxes, in [0, 1]; any one unit for both.

    A box with a reversed side, without area or with a non-finite coordinate gives 0.
    """
    ax1, ay1, ax2, ay2 = _finite(a)
    bx1, by1, bx2, by2 = _finite(b)
    intersection = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection / union if 0 < intersection and union < math.inf else 0.0


def _finite(values: Sequence[float]) -> list[float]:
    """Returns the values as floats, all zero (an empty interval or box) if any of them is not finite."""
    try:
        numbers = [float(value) for value in values]
    except OverflowError:  # an integer of hundreds of digits
        numbers = [math.inf]
    return numbers if all(map(math.isfinite, numbers)) else [0.0] * len(values)
