"""From which confidence on answers need no review, so that of these hardly more than a chosen share is wrong.

Learn then test (Angelopoulos et al. 2021) by a fixed sequence: thresholds from the highest down are tested
one after the other on answers that nothing was fit on, each for whether the share of wrong answers above it
is below the rate, by the exact binomial bound of Clopper and Pearson (1934). The first threshold that fails
ends it, so that all that passed before hold together with the certainty of one test.
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
    """A promise: of the answers at least as sure as `threshold`, at most `rate` are wrong."""

    rate: float
    certainty: float  # that the promise holds
    threshold: float | None  # None: no threshold can be promised
    coverage: float  # share of the answers that it lets pass


def bound(
    confidence: Sequence[float], correct: Sequence[bool], rate: float, certainty: float = CERTAINTY
) -> Bound:
    """Returns the lowest threshold whose unreviewed answers are wrong at most at `rate`, with this certainty.

    The sequence begins at the highest threshold above which there are three times the answers that would do
    if none of them were wrong: with fewer a single wrong one would end it. That looks at how many there are,
    not at which are right.

    Args:
        confidence, correct: of answers that neither the model nor the calibration was fit on.

    Raises:
        UserError: if rate or certainty are not between 0 and 1.
    """
    for name, value in (("rate", rate), ("certainty", certainty)):
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1, not {value:g}")
    sure, wrong = np.asarray(confidence, np.float64), ~np.asarray(correct, bool)
    enough = math.log(1 - certainty) / math.log(1 - rate)
    enough = max(enough, min(_START * enough, len(sure)))
    found = None
    for threshold in _GRID:
        taken = sure >= threshold
        count = int(taken.sum())
        if count < enough:
            continue
        # Clopper and Pearson's bound is below the rate exactly if so few wrong ones are this unlikely at it.
        if _so_few(int(wrong[taken].sum()), count, rate) > 1 - certainty:
            break
        found = float(threshold)
    coverage = 0.0 if found is None else float((sure >= found).mean())
    return Bound(rate, certainty, found, coverage)


def upper_bound(wrong: int, count: int, certainty: float = CERTAINTY) -> float:
    """Returns Clopper and Pearson's one-sided upper bound of a share, from `wrong` of `count`.

    The share at which so few or fewer have the probability 1 - certainty; found by bisection of the binomial
    distribution, which is exact and needs no other library.
    """
    if wrong >= count:
        return 1.0
    low, high = wrong / count, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if _so_few(wrong, count, share) > 1 - certainty else (low, share)
    return high


def _so_few(wrong: int, count: int, share: float) -> float:
    """Returns the probability that of `count` answers at most so many are wrong, each with probability
    share."""
    if not 0 < share < 1 or wrong >= count:
        return float(share <= 0 or wrong >= count)
    ways = [math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in range(wrong + 1)]
    ks = np.arange(wrong + 1)
    terms = math.lgamma(count + 1) - np.array(ways) + ks * math.log(share) + (count - ks) * math.log1p(-share)
    return float(np.exp(terms).sum())
