"""The sizes of frames that rows are padded to: few for all clips, and one for all rows of a batch.

A frame pair is padded to the patches of its row, and a row to its frame pairs. Where clips are unlike, one
size for all would be mostly padding; so clips of like size share rows, and rows of one size make batches.
Each size is a program of its own, so there are few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.rows.packing import RowCapacity, RowCost, plan_rows
from o3jax.inputs.collate import bucket

MOST = 16  # sizes of a run, and so programs
ENOUGH = 1.5  # times the patches that are there, which one size for all may take
_FEW, _WANTED, _LIMIT = 6, 1.2, 1.4  # more sizes than a few only where these would take more than the limit


@dataclasses.dataclass(frozen=True)
class RowSize:
    """What the frames of a row are padded to, and which clips go there: the first size that holds a clip."""

    frame_pairs: int
    patches: int  # of a pair
    clip_pairs: int  # frame pairs of a clip

    def holds(self, clip: RowCost) -> bool:
        return clip.frame_pairs <= self.clip_pairs and clip.patches <= self.patches


def size_of(clip: RowCost, sizes: Sequence[RowSize]) -> int:
    """Returns the number of the size of a clip."""
    return next(number for number, size in enumerate(sizes) if size.holds(clip))


def plan_sized_rows(
    cost: Sequence[RowCost],
    sources: Sequence[str],
    capacity: RowCapacity,
    patches: int,
    batch_size: int,
    **options: Any,
) -> tuple[list[list[int]], tuple[RowSize, ...]]:
    """Returns the rows of a run and what their frames are padded to; no sizes where one does for all.

    With sizes, all rows of a batch have one.

    Args:
        patches: of a pair, the most.
        cost, sources, capacity, options: as for `plan_rows`.
    """
    rows = plan_rows(cost, sources, capacity, **options)
    if len(rows) * capacity.frame_pairs * patches <= ENOUGH * patches_of(rows, cost):
        return rows, ()
    sizes = choose_sizes(cost, capacity, patches)
    own = [size_of(clip, sizes) for clip in cost]
    pairs = [size.frame_pairs for size in sizes]
    rows = plan_rows(cost, sources, capacity, groups=own, frame_pairs=pairs, **options)
    used = [0] * len(sizes)  # pairs of the fullest row
    for row in rows:
        number = own[row[0]]
        used[number] = max(used[number], sum(cost[clip].frame_pairs for clip in row))
    sizes = [replace(size, frame_pairs=most) for size, most in zip(sizes, used, strict=True)]
    return in_batches(rows, own, batch_size), tuple(sizes)


def patches_of(rows: Sequence[Sequence[int]], cost: Sequence[RowCost]) -> int:
    """Returns the patches of the clips of rows."""
    return sum(cost[clip].frame_pairs * cost[clip].patches for row in rows for clip in row)


def padded_patches(rows: Sequence[Sequence[int]], cost: Sequence[RowCost], sizes: Sequence[RowSize]) -> int:
    """Returns the patches of rows, padding included."""
    own = [sizes[size_of(cost[row[0]], sizes)] for row in rows]
    return sum(size.frame_pairs * size.patches for size in own)


def choose_sizes(cost: Sequence[RowCost], capacity: RowCapacity, patches: int) -> tuple[RowSize, ...]:
    """Returns the sizes of the rows of a data set, the smallest first.

    None is larger as a whole than the largest, `capacity.frame_pairs` x `patches`.
    """
    there = sum(clip.frame_pairs * clip.patches for clip in cost)
    alone = capacity.clips == 1  # then a row has the frame pairs of its clip
    groups: dict[tuple[int, int], np.ndarray] = {}  # of like clips: most pairs, most patches, how often
    for clip in cost:
        pairs, times = (clip.frame_pairs, 1) if alone else (1, clip.frame_pairs)
        own = groups.setdefault((bucket(pairs), bucket(clip.patches)), np.zeros(3, np.int64))
        own[:] = *np.maximum(own[:2], (pairs, clip.patches)), own[2] + times
    sizes = []
    for pairs, high, _ in _merged(np.stack(list(groups.values())), there).tolist():
        room = capacity.frame_pairs * patches // high
        sizes.append(RowSize(pairs if alone else room, high, pairs if alone else capacity.frame_pairs))
    return tuple(sorted(sizes, key=lambda size: (size.clip_pairs * size.patches, size.patches)))


def _merged(groups: Int[np.ndarray, "n 3"], there: int) -> Int[np.ndarray, "m 3"]:
    """Returns few groups, joined where that costs least, as long as that wastes little."""
    while len(groups) > 1:
        pairs, patches, _ = np.maximum(groups[:, None], groups).T
        areas = groups.prod(1)
        more = pairs * patches * np.add.outer(groups[:, 2], groups[:, 2]) - np.add.outer(areas, areas)
        others = np.tri(len(groups), k=-1, dtype=bool)
        a, b = np.unravel_index(np.where(others, more, more.max() + 1).argmin(), more.shape)
        wasted = (areas.sum() + more[a, b]) / there
        if len(groups) <= _FEW and wasted > _WANTED or len(groups) <= MOST and wasted > _LIMIT:
            break
        both = [*np.maximum(groups[a, :2], groups[b, :2]), groups[a, 2] + groups[b, 2]]
        groups = np.concatenate([np.delete(groups, (a, b), axis=0), [both]])
    return groups


def in_batches(rows: Sequence[Sequence[int]], sizes: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Returns rows so that each batch holds rows of one size; the last of a size is filled up with its first.

    Args:
        sizes: the number of the size of each clip.
    """
    own: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        own.setdefault(sizes[row[0]], []).append(at)
    batches = []
    for numbers in own.values():
        full = np.resize(numbers, -(-len(numbers) // batch_size) * batch_size).reshape(-1, batch_size)
        batches += full.tolist()
    return [rows[at] for batch in sorted(batches, key=lambda batch: batch[0]) for at in batch]
