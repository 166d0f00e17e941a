"""Sets of intervals: their overlap, the best of several, recall, and what is inside a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from o3jax.grounding import join
from o3jax.metrics.boxes import interval_iou

THRESHOLDS = (0.3, 0.5, 0.7)

Interval = Sequence[float]


def set_iou(a: Iterable[Interval], b: Iterable[Interval]) -> float:
    """Returns intersection over union of two sets of intervals, as VideoZeroBench defines it; 0 if both are
    empty. The union is the true one, not the hull."""
    ones, others = (join((float(s), float(e)) for s, e in one if e > s) for one in (a, b))
    both = sum(max(0.0, min(e, f) - max(s, t)) for s, e in ones for t, f in others)
    union = sum(e - s for s, e in ones) + sum(f - t for t, f in others) - both
    return both / union if union > 0 else 0.0


def best_iou(predicted: Interval | None, truths: Sequence[Interval]) -> float:
    """Returns the best overlap of a prediction with several true intervals; 0 without a prediction."""
    return max((interval_iou(predicted, truth) for truth in truths), default=0.0) if predicted else 0.0


def iop(predicted: Interval, truth: Interval) -> float:
    """Returns the share of the prediction that lies in the truth (NExT-GQA's IoP).

    As published, a prediction without length counts 1 inside the truth and 0 outside; a reversed one 0.
    """
    start, end = map(float, predicted)
    if not (math.isfinite(start) and math.isfinite(end)) or end < start:
        return 0.0
    if end == start:
        return float(truth[0] <= start <= truth[1])
    return max(0.0, min(end, truth[1]) - max(start, truth[0])) / (end - start)


def recall(ious: Sequence[float], *, strict: bool = False) -> dict[str, float]:
    """Returns {"mIoU", "R1@0.3", "R1@0.5", "R1@0.7"} as fractions; 0 without any.

    Args:
        strict: an IoU of exactly the threshold is no hit (Time-R1, VideoZeroBench); elsewhere it is.
    """
    count = max(len(ious), 1)
    shares = {f"R1@{t}": sum(iou > t if strict else iou >= t for iou in ious) / count for t in THRESHOLDS}
    return {"mIoU": math.fsum(ious) / count} | shares
