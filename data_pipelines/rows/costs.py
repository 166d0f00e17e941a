"""What clips take of a row, and whether they fit; and which of them could not be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_pipelines.formats.targets import mentions_of, response_of
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.packing import RowCost
from data_pipelines.rows.settings import EvidenceShape, RowSettings
from data_pipelines.rows.text import Written
from o3jax.errors import UserError
from o3jax.models.batch import Failures

_ERROR_BYTES = 300
_LENGTH_STEP = 128  # tokens; attention kernels work in blocks of them
_SHARED = ("row_length", "evidence_shape.questions")  # what the questions of a clip take together


class Overrun(NamedTuple):
    """What clips have more of than a row has room for."""

    what: str
    needed: int
    limit: int
    field: str  # of the config

    def fits(self) -> int:
        """Returns a value of the field that has room for it."""
        step = _LENGTH_STEP if self.field == "row_length" else 1
        return -(-self.needed // step) * step


class DoesNotFitError(UserError):
    """All that clips have more of than a row has room for, in one sentence."""

    def __init__(self, name: str, overruns: Sequence[Overrun]):
        parts = [
            f"{o.needed} {o.what}, more than the {o.limit} of a row: raise config.{o.field} to {o.fits()}"
            for o in overruns
        ]
        fewer = any(o.field in _SHARED for o in overruns)
        remedy = " or lower config.questions_per_row" if fewer else ""
        super().__init__(f"{name} needs {'; and '.join(parts)}{remedy}")
        self.overruns = tuple(overruns)


def cost_of(s: RowSettings, clip: Clip, written: Written) -> RowCost:
    """Returns what a clip takes of a row.

    Raises:
        DoesNotFitError: if it has more of something than an empty row has room for.
    """
    check_row(s, [clip], [written])
    cost = RowCost(written.length, written.frame_pairs, len(clip.samples), patches=written.frames.patches)
    if s.evidence is None:
        return cost
    pairs, grid = _dense(s, clip)
    return dataclasses.replace(cost, dense_pairs=pairs, alike=grid)


def check_row(s: RowSettings, clips: Sequence[Clip], written: Sequence[Written]) -> None:
    """Raises a DoesNotFitError if the clips do not fit into a row, with everything that is too much."""
    tokens, frame_pairs = (sum(getattr(one, name) for one in written) for name in ("length", "frame_pairs"))
    patches = max(one.frames.patches for one in written)
    found = [
        Overrun("tokens", tokens, s.shape.length, "row_length"),
        Overrun("frame pairs", frame_pairs, s.shape.frame_pairs, "row_frame_pairs"),
        Overrun("patches in a frame", patches, s.shape.patches, "row_patches"),
    ]
    if s.evidence is not None:
        found += _evidence_overruns(s, s.evidence, clips)
    if over := [one for one in found if one.needed > one.limit]:
        raise DoesNotFitError(clips[0].samples[0].id, over)


def _evidence_overruns(s: RowSettings, e: EvidenceShape, clips: Sequence[Clip]) -> Iterator[Overrun]:
    """Yields what the evidence of clips takes of a row."""
    samples = [sample for clip in clips for sample in clip.samples]
    tokenizer = s.processor.tokenizer
    asked = max(len(tokenizer(tokenizer.quoted(sample.question))["input_ids"]) for sample in samples)
    dense = [_dense(s, clip) for clip in clips]
    yield Overrun("questions in its row", len(samples), e.questions, "evidence_shape.questions")
    yield Overrun("tokens in its question", asked, e.question_length, "evidence_shape.question_length")
    yield Overrun("dense frame pairs", sum(n for n, _ in dense), e.frame_pairs, "evidence_shape.frame_pairs")
    patches = max(h * w for _, (h, w) in dense)
    yield Overrun("patches in a dense frame", patches, e.patches, "evidence_shape.patches")
    if s.supervised:
        mentions = [mentions_of(sample, response_of(sample, s.box_step)) for sample in samples]
        boxes = max((len(m.boxes) for row in mentions for m in row if m is not None), default=0)
        intervals = max(len(sample.intervals) for sample in samples)
        yield Overrun("mentions", max(map(len, mentions)), e.mentions, "evidence_shape.mentions")
        yield Overrun("boxes at one mention", boxes, e.boxes, "evidence_shape.boxes")
        yield Overrun("intervals", intervals, e.intervals, "evidence_shape.intervals")


def _dense(s: RowSettings, clip: Clip) -> tuple[int, tuple[int, int]]:
    """Returns the frame pairs of a clip's dense stream, and their patches (high, wide)."""
    plan, video = s.dense_plan(clip), s.processor.video_config
    height, width = (side // video.patch_size for side in plan.size)
    return -(-len(plan.times_s) // video.temporal_patch_size), (height, width)


def failures_of(s: RowSettings, clips: Sequence[Clip], errors: Sequence[str]) -> Failures:
    """Returns which clips a row holds, and why they could not be read."""
    numbers = np.full(s.shape.clips, -1, np.int32)
    numbers[: len(clips)] = [clip.number for clip in clips]
    return Failures(numbers, as_bytes(errors, s.shape.clips, _ERROR_BYTES))


def as_bytes(texts: Sequence[str], rows: int, size: int) -> UInt8[np.ndarray, "rows size"]:
    """Returns texts as UTF-8, each cut or filled with zeros."""
    out = np.zeros((rows, size), np.uint8)
    for at, text in enumerate(texts):
        encoded = text.encode(errors="replace")[:size]
        out[at, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return out
