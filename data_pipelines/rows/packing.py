"""Several clips in one row: what each clip needs is known before a frame is read, so rows are planned.

A plan is the run's order of rows, a pure function of the clips, the seed and the weights of the mixture.
Nothing is ever left out of it while it is read, so a position in it is a number.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from o3jax.errors import UserError

_OPEN = 128  # rows that are still being filled; a clip goes to the first of them that has room


@dataclasses.dataclass(frozen=True)
class RowCost:
    """What a clip takes of the row that it is in."""

    tokens: int
    frame_pairs: int  # of the language stream
    questions: int = 1
    dense_pairs: int = 0
    alike: tuple[int, ...] = ()  # clips of a row must agree in this: the grid of their dense frames
    patches: int = 0  # of the largest of these pairs of the language stream

    def counts(self) -> tuple[int, ...]:
        return self.tokens, self.frame_pairs, self.questions, self.dense_pairs, 1


@dataclasses.dataclass(frozen=True)
class RowCapacity:
    """What a row has; what is None is not limited."""

    tokens: int
    frame_pairs: int
    questions: int | None
    dense_pairs: int | None
    clips: int

    def counts(self) -> tuple[float, ...]:
        counts = (self.tokens, self.frame_pairs, self.questions, self.dense_pairs, self.clips)
        return tuple(np.inf if count is None else count for count in counts)


class PlannedRows:
    """Rows in the order of a run; row i is a tuple of clips. It starts again behind its end."""

    def __init__(self, clips: Sequence[Any], rows: Sequence[Sequence[int]]):
        self.clips, self.rows = clips, rows

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(self.clips[number] for number in self.rows[int(index) % len(self.rows)])


def clip_order(
    sources: Sequence[str], count: int, seed: int, mixture: Mapping[str, float]
) -> Int[np.ndarray, " count"]:
    """Returns the numbers of the clips in the order in which they are taken.

    Each source, or all clips of one pattern, is shuffled anew whenever it starts again.

    Args:
        sources: of each clip.
        count: how many to take.
        seed: of the shuffles.
        mixture: weight of the sources that match a pattern, the first that fits; empty: as they are.

    Raises:
        UserError: if a weight is not positive, a pattern fits no clip, or a source fits no pattern.
    """
    patterns = dict(mixture) or {"*": 1.0}
    named = {s: next((p for p in patterns if fnmatch.fnmatchcase(s, p)), None) for s in set(sources)}
    if lost := sorted(source for source, pattern in named.items() if pattern is None):
        raise UserError(f"config.mixture says nothing of the source '{lost[0]}': give it, or '*', a weight")
    keys, numbers = [], []
    for place, (pattern, weight) in enumerate(patterns.items()):
        members = np.flatnonzero([named[source] == pattern for source in sources])
        if not (weight > 0 and len(members)):
            raise UserError(f"config.mixture['{pattern}'] needs a positive weight and a source of that name")
        wanted = int(np.ceil(count * weight / sum(patterns.values()))) + 1
        epochs = -(-wanted // len(members))
        shuffles = [
            np.random.default_rng((seed, place, epoch)).permutation(members) for epoch in range(epochs)
        ]
        numbers.append(np.concatenate(shuffles)[:wanted])
        keys.append((np.arange(wanted) + 0.5) / weight)  # each source at even distances
    return np.concatenate(numbers)[np.argsort(np.concatenate(keys), kind="stable")][:count]


def first_fit(cost: Sequence[RowCost], capacity: RowCapacity) -> list[list[int]]:
    """Returns rows of clips (as numbers of `cost`): each goes to the first open row that has room."""
    if capacity.clips == 1:
        return [[number] for number in range(len(cost))]
    free = np.zeros((0, len(capacity.counts())))
    rows: list[list[int]] = []
    kinds: list[tuple[int, ...]] = []
    done: list[list[int]] = []

    def close(at: int) -> None:
        nonlocal free
        done.append(rows.pop(at))
        kinds.pop(at)
        free = np.delete(free, at, axis=0)

    for number, need in enumerate(cost):
        wanted = np.array(need.counts())
        fits = (free >= wanted).all(1)
        at = next((i for i in np.flatnonzero(fits) if kinds[i] == need.alike), None)
        if at is None:
            if len(rows) == _OPEN:
                close(int(free[:, 0].argmin()))
            at = len(rows)
            rows.append([])
            kinds.append(need.alike)
            free = np.concatenate([free, [capacity.counts()]])
        rows[at].append(number)
        free[at] -= wanted
        if free[at].min() <= 0:
            close(at)
    return done + rows


def plan_rows(
    cost: Sequence[RowCost],
    sources: Sequence[str],
    capacity: RowCapacity,
    *,
    seed: int,
    mixture: Mapping[str, float],
    epochs: float = 0.0,
    least: int = 0,
    groups: Sequence[int] = (),
    frame_pairs: Sequence[int] = (),
) -> list[list[int]]:
    """Returns the rows of a run: of so many epochs, or at least `least` of them.

    An epoch is as many clips as there are; it is packed for itself, and its rows are shuffled.

    Args:
        groups: of each clip the number of its group, if only clips of one group share rows.
        frame_pairs: of the rows of each group, in place of the capacity's.
    """
    size = len(cost)
    count = round(epochs * size) if epochs else least * capacity.clips + size
    order = clip_order(sources, count, seed, mixture)
    rows: list[list[int]] = []
    for epoch, start in enumerate(range(0, count, size)):
        taken = order[start : start + size]
        packed = []
        for group, room in enumerate(frame_pairs or (capacity.frame_pairs,)):
            own = [number for number in taken if not groups or groups[number] == group]
            fitted = first_fit([cost[number] for number in own], replace(capacity, frame_pairs=room))
            packed += [[int(own[i]) for i in row] for row in fitted]
        shuffled = np.random.default_rng((seed, epoch)).permutation(len(packed))
        rows += [packed[row] for row in shuffled]
        if not epochs and len(rows) >= least:
            break
    return rows


def padding(
    rows: Sequence[Sequence[int]], cost: Sequence[RowCost], capacity: RowCapacity
) -> dict[str, float]:
    """Returns which share of the rows' tokens, frame pairs and, if limited, dense frame pairs is empty."""
    used = np.sum([cost[number].counts() for row in rows for number in row], axis=0)
    have = np.array(capacity.counts()) * len(rows)
    names = ("tokens", "frame pairs", "questions", "dense frame pairs")
    kept = [i for i in (0, 1, 3) if np.isfinite(have[i])]
    return {names[i]: float(1 - used[i] / have[i]) for i in kept}


def fingerprint(*parts: Any) -> str:
    """Returns a short hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]
