"""From which confidence on answers need no review, so that of these hardly more than a chosen share is wrong.

Learn then test (Angelopoulos et al. 2021) by a fixed sequence: thresholds from the highest down are tested
one after the other on answers that nothing was fit on. What is promised is something that one can count: of
as many new answers as were tested, at most this share is wrong. If more than that were wrong, so few wrong
ones among those tested would be an unlikely half of the two together (hypergeometric, exact). The first
threshold that fails ends the sequence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from o3jax.errors import UserError

CERTAINTY = 0.95
RATES = (0.05, 0.1, 0.2)  # of wrong answers among those without a review
_START = 3
_GRID = np.arange(99, -1, -1) / 100  # thresholds, chosen before any answer is looked at


@dataclasses.dataclass(frozen=True)
class Bound:
    """A promise: of new answers at least as sure as `threshold`, at most `rate` are wrong."""

    rate: float
    certainty: float  # that the promise holds
    threshold: float | None  # None: no threshold can be promised
    coverage: float  # share of the answers that it lets pass


def bound(confidence: Sequence[float], correct: Sequence[bool], rate: float) -> Bound:
    """Returns the lowest threshold whose unreviewed answers are wrong at most at `rate`, with 95 % certainty.

    The sequence begins at the highest threshold above which there are three times the answers that would do
    if none of them were wrong: with fewer a single wrong one would end it. That looks at how many there are,
    not at which are right.

    Args:
        confidence, correct: of answers that neither the model nor the calibration was fit on.

    Raises:
        UserError: if the rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UserError(f"rate must lie between 0 and 1, not {rate:g}")
    sure, wrong = np.asarray(confidence, np.float64), ~np.asarray(correct, bool)
    fewest = 4 / rate  # then 5 wrong ones break it, which are all among as many others once in 2**5 times
    enough = max(fewest, min(_START * fewest, len(sure)))
    found = None
    for threshold in _GRID:
        taken = sure >= threshold
        count = int(taken.sum())
        if count < enough:
            continue
        if _so_few(int(wrong[taken].sum()), count, rate) > 1 - CERTAINTY:
            break
        found = float(threshold)
    coverage = 0.0 if found is None else float((sure >= found).mean())
    return Bound(rate, CERTAINTY, found, coverage)


def _so_few(wrong: int, count: int, rate: float) -> float:
    """Returns the probability that at most so many of `count` answers are wrong, if of as many others the
    fewest are that break the promise."""
    from scipy.stats import hypergeom  # to answer a question needs none of it

    broken = math.floor(rate * count + 1e-9) + 1
    return float(hypergeom.cdf(wrong, 2 * count, wrong + broken, count))
