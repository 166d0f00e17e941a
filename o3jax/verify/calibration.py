"""Does a confidence mean what it says? Figures of confidences against what turned out right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from o3jax.errors import UserError

BINS = 10  # of equal width, [0, 0.1), [0.1, 0.2), ..., [0.9, 1]


def report(
    confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS
) -> dict[str, float | None | list[dict[str, float]]]:
    """Returns how far confidences can be trusted: `ece, brier, auroc, accuracy, confidence, N, risk_coverage,
    bins`.

    - `ece`: expected calibration error (Naeini 2015; Guo 2017): over bins of equal width, the share of
      answers in a bin times |their mean confidence - their accuracy|.
    - `brier`: mean squared difference to 1 (right) or 0 (wrong).
    - `auroc`: how often a right answer is surer than a wrong one, ties counted half; None where all are right
      or all are wrong.
    - `risk_coverage`: for each confidence that occurs, from the highest down, what is so if all answers at
      least so sure are taken: `{"threshold", "coverage" (their share), "risk" (the share of them that is
    wrong)}`.
    - `bins`: the reliability diagram, `{"low", "high", "N", "confidence", "accuracy"}`, empty bins left out.

    Args:
        confidence: each in [0, 1].
        correct: whether each answer is right.

    Raises:
        UserError: if the two differ in number, there are none, or a confidence is no number in [0, 1].
    """
    sure, right = _checked(confidence, correct)
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}")
    diagram = _diagram(sure, right, bins)
    return {
        "ece": sum(b["N"] / len(sure) * abs(b["confidence"] - b["accuracy"]) for b in diagram),
        "brier": float(np.mean(np.square(sure - right))),
        "auroc": auroc(sure, right),
        "accuracy": float(right.mean()),
        "confidence": float(sure.mean()),
        "N": len(sure),
        "risk_coverage": _risk_coverage(sure, right),
        "bins": diagram,
    }


def auroc(score: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Returns how often a right answer's score is higher than a wrong one's (Mann-Whitney), ties counted
    half."""
    score, right = np.asarray(score, np.float64), np.asarray(correct, bool)
    positive, negative = int(right.sum()), int((~right).sum())
    if not positive or not negative:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equal scores, from 1
    above = rank[inverse][right].sum() - positive * (positive + 1) / 2
    return float(above / (positive * negative))


def _checked(
    confidence: Sequence[float], correct: Sequence[bool]
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    try:
        sure, right = np.asarray(confidence, np.float64), np.asarray(correct)
    except (TypeError, ValueError) as error:
        raise UserError("a confidence is no number: give one for each answer, from 0 to 1") from error
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        raise UserError(
            f"{sure.size} confidences and {right.size} answers: give one confidence for each answer, and some"
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        bad = sure[~((sure >= 0) & (sure <= 1))][0]
        raise UserError(f"a confidence must be a number from 0 to 1, not {bad:g}")
    if not np.isin(right, (0, 1)).all():
        raise UserError("correct must hold True or False for each answer")
    return sure, right.astype(bool)


def _diagram(sure: np.ndarray, right: np.ndarray, bins: int) -> list[dict[str, float]]:
    # A hair more, so that 0.3, a hair below 3 / 10 as a float, is in the bin that it names.
    number = np.minimum((sure * bins + 1e-9).astype(int), bins - 1)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "N": int(mine.sum()),
            "confidence": float(sure[mine].mean()),
            "accuracy": float(right[mine].mean()),
        }
        for b in range(bins)
        if (mine := number == b).any()
    ]


def _risk_coverage(sure: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    order = np.argsort(-sure, kind="stable")
    ranked, wrong = sure[order], np.cumsum(~right[order])
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # equal ones come together
    return [
        {
            "threshold": float(ranked[i]),
            "coverage": float((i + 1) / len(sure)),
            "risk": float(wrong[i] / (i + 1)),
        }
        for i in last
    ]


def interval(successes: int, trials: int, certainty: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a share, (low, high); (0, 1) without a trial."""
    if not trials:
        return 0.0, 1.0
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + certainty) / 2)
    share, extra = successes / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * np.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def selective(confidence: Sequence[float], correct: Sequence[bool], threshold: float) -> dict[str, Any]:
    """Returns the share of answers at least so sure, and their accuracy; None where there are none."""
    sure, right = _checked(confidence, correct)
    taken = sure >= threshold
    return {
        "threshold": threshold,
        "coverage": float(taken.mean()),
        "accuracy": float(right[taken].mean()) if taken.any() else None,
    }
