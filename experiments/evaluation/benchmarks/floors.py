"""What is reached without understanding anything: a table without it cannot be read.

`random` is a random letter, two random times and a random box, on average over some tries; `whole video` the
whole of it; `best constant` the interval, as shares of the video, and the letter that do best on these very
items. What a model says that reads the question without the video is another run (`--text_only`).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from data_pipelines.formats.benchmarks.item import Item
from experiments.evaluation.benchmarks.prediction import Prediction
from experiments.evaluation.benchmarks.scorers import Metrics, Scorer
from o3jax.grounding import Box, Interval
from o3jax.metrics.intervals import best_iou

_TRIES = 20
_STEPS = 20  # of the shares of the video that the best constant interval is searched among
_MOST = 2000  # items that it is searched on
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def floors(scorer: Scorer, items: Sequence[Item]) -> dict[str, Metrics]:
    """Returns the metrics of each floor; an item without a known duration gets no interval."""
    found = [_metrics(scorer, items, [_random(i, n) for i in items]) for n in range(_TRIES)]
    result = {"random": {name: _mean([one[name] for one in found]) for name in found[0]}}
    letter = Counter(item.answer for item in items if item.options).most_common(1)
    letter = letter[0][0] if letter else None
    constants = {"best constant": _best(items)}
    if any(item.intervals for item in items):
        constants = {"whole video": (0.0, 1.0), **constants}
    for name, shares in constants.items():
        guesses = [(letter, _of(item, *shares), _WHOLE) for item in items]
        result[name] = _metrics(scorer, items, guesses)
    return result


def _metrics(
    scorer: Scorer, items: Sequence[Item], guesses: Sequence[tuple[str | None, Interval | None, Box]]
) -> Metrics:
    pairs: list[tuple[Item, Prediction]] = [
        (item, scorer.guess(item, *guess)) for item, guess in zip(items, guesses, strict=True)
    ]
    return scorer.metrics(pairs)


def _random(item: Item, number: int) -> tuple[str | None, Interval | None, Box]:
    rng = random.Random(f"0/{number}/{item.id}")
    letter = rng.choice(item.letters) if item.options else None
    start, end = sorted((rng.random(), rng.random()))
    (x1, x2), (y1, y2) = (sorted((rng.random(), rng.random())) for _ in "xy")
    return letter, _of(item, start, end), (x1, y1, x2, y2)


def _of(item: Item, start: float, end: float) -> Interval | None:
    return None if item.duration is None else (start * item.duration, end * item.duration)


def _best(items: Sequence[Item]) -> tuple[float, float]:
    """Returns the shares of the video with the highest mean IoU."""
    known = [item for item in items if item.intervals and item.duration][:_MOST]
    shares = [(a / _STEPS, b / _STEPS) for a, b in itertools.combinations(range(_STEPS + 1), 2)]
    return max(
        shares,
        key=lambda pair: sum(best_iou(_of(item, *pair), item.intervals) for item in known),
        default=(0.0, 1.0),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
