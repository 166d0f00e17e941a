"""Where the evidence of a question is looked for: relevance over time, and the intervals cut from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from o3jax.errors import UserError
from o3jax.grounding import Interval, join
from o3jax.inputs.collate import bucket, coarse
from o3jax.inputs.dense import interval_mask
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, Questions
from o3jax.models.evidence import DenseFeatures
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures

_SIZES = coarse(1024)  # tokens that questions are padded to, so that all lengths share a program
_SHORT = 64  # tokens of most questions: the program reads no more of one


class Searched(NamedTuple):
    """What the evidence modules make of each question before any text exists; rows R, one a question."""

    asking: Float[np.ndarray, "R P D"]  # the question in the roles of the proposals' queries
    relevance: Float[np.ndarray, "R T"]  # of each dense frame pair, a probability
    intervals: list[list[Interval]]  # candidates
    candidates: Bool[np.ndarray, "R T"]  # the pairs inside them


def match(model: Qwen3VL, batch: Batch, visuals: VisualFeatures) -> Searched:
    """Returns where the evidence of each question of a batch is looked for."""
    asking, relevance = map(np.asarray, _match(model, batch.questions, visuals))
    valid, times = batch.dense.length > 0, batch.dense.times
    found = [candidate_intervals(r[v], t[v]) for r, v, t in zip(relevance, valid, times, strict=True)]
    inside = [interval_mask(f, t) for f, t in zip(found, times, strict=True)]
    return Searched(asking, relevance, found, np.stack(inside))


def asked(processor: Processor, questions: Sequence[str], sizes: Sequence[int] = _SIZES) -> Questions:
    """Returns questions as matching reads them, one a row, padded to sizes that recur."""
    tokenizer = processor.tokenizer
    ids = [tokenizer(tokenizer.quoted(question))["input_ids"] for question in questions]
    width = bucket(max(map(len, ids)), sizes)
    return Questions(np.array([[one + [-1] * (width - len(one))] for one in ids], np.int32))


@jax.jit
def match_features(model: Qwen3VL, questions: Questions, features: DenseFeatures) -> Float[Array, "R T"]:
    """Returns the logit of each of some features being evidence, without anything else of a video."""
    visuals = VisualFeatures(None, None, features, None)
    return _relevance(model, questions, visuals)[1]


@jax.jit
def _match(
    model: Qwen3VL, questions: Questions, visuals: VisualFeatures
) -> tuple[Float[Array, "R P D"], Float[Array, "R T"]]:
    question, relevance = _relevance(model, questions, visuals)
    return model.evidence.decoder.asking(question), jax.nn.sigmoid(relevance)


def _relevance(
    model: Qwen3VL, questions: Questions, visuals: VisualFeatures
) -> tuple[Float[Array, "R D"], Float[Array, "R T"]]:
    """Returns what `Qwen3VL.relevance` does; where all questions are short, without reading their padding."""
    short = dataclasses.replace(questions, ids=questions.ids[..., :_SHORT])
    long = (questions.ids[..., _SHORT:] >= 0).any()
    return jax.lax.cond(
        long, lambda: model.relevance(questions, visuals), lambda: model.relevance(short, visuals)
    )


def candidate_intervals(
    relevance: Float[np.ndarray, " T"],
    times: Float[np.ndarray, " T"],
    *,
    high: float = 0.5,
    low: float = 0.1,
    smooth_s: float = 0.2,
    min_s: float = 1.0,
) -> list[Interval]:
    """Returns the intervals where smoothed relevance reaches `high`, as far as it stays at `low`.

    Each time stands for the span up to the midpoints to its neighbours, so times may be uneven and
    a single relevant frame of a coarse pass is an interval too. None starts before the video, at 0.

    Args:
        relevance: any score that grows with relevance, usually a probability.
        times: seconds, strictly increasing.
        high, low: thresholds of the hysteresis, in the unit of `relevance`.
        smooth_s: relevance is averaged over a window of this many seconds around each time.
        min_s: shorter intervals are widened to this length, as far as the video goes; what then
            touches becomes one.

    Raises:
        UserError: if `low` is above `high`, or the times do not increase.
    """
    if low > high:
        raise UserError(f"candidates.low ({low}) is above candidates.high ({high}); swap them")
    relevance, times = (np.asarray(x, np.float64) for x in (relevance, times))
    if relevance.shape != times.shape or (np.diff(times) <= 0).any():
        raise UserError("candidate intervals need one relevance per time, and times that increase")
    if not len(times):
        return []
    smooth = _smoothed(relevance, times, smooth_s)
    inner = (times[1:] + times[:-1]) / 2
    first = max(0.0, times[0] - (inner[0] - times[0] if len(inner) else 0))
    last = times[-1] + (times[-1] - inner[-1] if len(inner) else 0)
    borders = np.concatenate([[first], inner, [last]])

    above = np.concatenate([[0], (smooth >= low).astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1)
    runs = [(a, b) for a, b in zip(starts, ends, strict=True) if smooth[a:b].max() >= high]
    found = [(float(borders[a]), float(borders[b])) for a, b in runs]
    return join([_widened(interval, min_s, float(first), float(last)) for interval in found])


def _smoothed(relevance: np.ndarray, times: np.ndarray, smooth_s: float) -> np.ndarray:
    """Returns the mean relevance of the times within smooth_s / 2 of each time."""
    sums = np.concatenate([[0.0], np.cumsum(relevance)])
    left = np.searchsorted(times, times - smooth_s / 2, side="left")
    right = np.searchsorted(times, times + smooth_s / 2, side="right")
    return (sums[right] - sums[left]) / (right - left)


def _widened(interval: Interval, min_s: float, first: float, last: float) -> Interval:
    """Returns the interval, at least `min_s` long unless the video [first, last] is shorter."""
    start, end = interval
    if end - start >= min_s:
        return interval
    start = min(max((start + end - min_s) / 2, first), max(last - min_s, first))
    return start, min(start + min_s, last)
