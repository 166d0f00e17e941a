"""What clips take of a row, and whether they fit; and which of them could not be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.packing import RowCost
from data_pipelines.rows.settings import RowSettings
from data_pipelines.rows.text import Written
from o3jax.errors import UserError
from o3jax.models.batch import Failures

_ERROR_BYTES = 300


def cost_of(s: RowSettings, clip: Clip, written: Written) -> RowCost:
    """Returns what a clip takes of a row.

    Raises:
        UserError: if its frames have more patches than any row has room for.
    """
    if written.frames.patches > s.shape.patches:
        raise UserError(
            f"{clip.samples[0].id} has frames of {written.frames.patches} patches, more than the "
            f"{s.shape.patches} of a row: raise config.row_patches or lower the pixels of a frame"
        )
    cost = RowCost(written.length, written.frame_pairs, len(clip.samples))
    if s.evidence is None:
        return cost
    dense, video = s.dense_plan(clip), s.processor.video_config
    grid = tuple(side // video.patch_size for side in dense.size)
    if grid[0] * grid[1] > s.evidence.patches:
        raise UserError(
            f"{clip.samples[0].id} has dense frames of {grid[0] * grid[1]} patches, more than the "
            f"{s.evidence.patches} of a row: raise config.evidence_shape.patches"
        )
    pairs = -(-len(dense.times_s) // video.temporal_patch_size)
    return dataclasses.replace(cost, dense_pairs=pairs, alike=grid)


def check_row(s: RowSettings, clips: Sequence[Clip], written: Sequence[Written]) -> None:
    """Raises a UserError if the clips do not fit into a row."""
    first = clips[0].samples[0]
    total = sum(one.length for one in written)
    if total > s.shape.length:
        raise UserError(
            f"{first.id} needs {total} tokens, more than the {s.shape.length} of a row: "
            "raise config.row_length or lower config.questions_per_row"
        )
    frame_pairs = sum(one.frame_pairs for one in written)
    if frame_pairs > s.shape.frame_pairs:
        raise UserError(
            f"{first.id} needs {frame_pairs} frame pairs, more than the {s.shape.frame_pairs} of a row: "
            "raise config.row_frame_pairs or lower config.questions_per_row"
        )
    if s.evidence is not None:
        count = sum(len(clip.samples) for clip in clips)
        check_capacity(first, count, s.evidence.questions, "questions in its row", "questions")


def check_capacity(sample: Sample, count: int, capacity: int, what: str, field: str) -> None:
    """Raises a UserError if a sample has more of something than a row has room for."""
    if count > capacity:
        raise UserError(
            f"sample {sample.id} has {count} {what}, more than the {capacity} that a row has room for: "
            f"raise config.evidence_shape.{field}"
        )


def failures_of(s: RowSettings, clips: Sequence[Clip], errors: Sequence[str]) -> Failures:
    """Returns which clips a row holds, and why they could not be read."""
    numbers = np.full(s.shape.clips, -1, np.int32)
    numbers[: len(clips)] = [clip.number for clip in clips]
    return Failures(numbers, as_bytes(errors, s.shape.clips, _ERROR_BYTES))


def as_bytes(texts: Sequence[str], rows: int, size: int) -> UInt8[np.ndarray, "rows size"]:
    """Returns texts as UTF-8, each cut or filled with zeros."""
    out = np.zeros((rows, size), np.uint8)
    for at, text in enumerate(texts):
        encoded = text.encode()[:size]
        out[at, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return out
