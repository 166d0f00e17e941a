"""What the evidence modules are trained on: the dense stream of a clip and the targets of its questions.

pointed_times     samples -> when the frames are that their boxes are read from
questions_of      clips and their tokens -> what is asked in a row, where its mentions are, and what is true
OpenCandidates    true intervals and times -> the pairs that the decoder may search, jittered anew each time
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float

from data_pipelines.formats.sample import Sample
from data_pipelines.formats.targets import mentions_of, response_of
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.settings import EvidenceShape, RowSettings
from data_pipelines.rows.text import Written
from o3jax.grounding import Grounding, Interval
from o3jax.inputs.dense import interval_mask
from o3jax.models.batch import EvidenceTargets, EvidenceTruth, Questions, Search, SupervisedBatch
from o3jax.prompts.mentions import mention_positions

_NEAR_S = 0.1  # how far a frame in training may be from the true time


def interval_of(sample: Sample, mention: Grounding) -> Interval | None:
    """Returns when a mention's object is visible, as far as the annotation tells; else None.

    Its own, if it tells one; else, of those that no other mention tells, the interval at the mention's place
    in the list where each mention has one, otherwise the only one that holds its time.
    """
    if mention.time_s is None or mention.interval is not None:
        return mention.interval
    others = {m.interval for m in sample.mentions}
    holding = [i for i in sample.intervals if i not in others and i[0] <= mention.time_s <= i[1]]
    if len(sample.intervals) == len(sample.mentions):
        own = sample.intervals[sample.mentions.index(mention)]
        return own if own in holding else None
    return holding[0] if len(holding) == 1 else None


def pointed_times(samples: Sequence[Sample], frames: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Returns the times of the frames that the samples' boxes are read from, one for each mention with a box.

    The frame is near the mention's time, as the one that a trained decoder points at is; the same one
    whenever the sample is read.

    Args:
        frames: the times of all frames of the video, seconds.
    """
    times = []
    for sample in samples:
        rng = np.random.default_rng(zlib.crc32(f"{sample.id} pointed".encode()))
        for mention in sample.mentions:
            if mention.time_s is not None and mention.boxes:
                near = mention.time_s + rng.uniform(-_NEAR_S, _NEAR_S)
                times.append(frames[np.abs(frames - near).argmin()])
    return np.array(times)


def truth_of(
    samples: Sequence[Sample], mentions: Sequence[Sequence[Grounding | None]], shape: EvidenceShape
) -> EvidenceTruth:
    """Returns what is true of the questions of a row, without a batch axis."""
    Q, M, K = shape.questions, shape.mentions, shape.boxes
    out = EvidenceTargets(
        time=np.zeros((Q, M), np.float32),
        has_time=np.zeros((Q, M), bool),
        interval=np.zeros((Q, M, 2), np.float32),
        has_interval=np.zeros((Q, M), bool),
        boxes=np.zeros((Q, M, K, 4), np.float32),
        has_box=np.zeros((Q, M, K), bool),
        judged=np.zeros((Q, M), bool),
    )
    intervals = np.full((Q, shape.intervals, 2), np.nan, np.float32)
    for q, (sample, row) in enumerate(zip(samples, mentions, strict=True)):
        for i, interval in enumerate(sample.intervals):
            intervals[q, i] = interval
        for m, mention in enumerate(row):
            if mention is None:
                continue
            if mention.time_s is not None:
                out.time[q, m], out.has_time[q, m] = mention.time_s, True
            interval = interval_of(sample, mention)
            if interval is not None:
                out.interval[q, m], out.has_interval[q, m] = interval, True
            for k, box in enumerate(mention.boxes):
                out.boxes[q, m, k], out.has_box[q, m, k] = box, True
            out.judged[q, m] = mention.time_s is not None or bool(mention.boxes)
    return EvidenceTruth(out, intervals)


def questions_of(
    s: RowSettings,
    clips: Sequence[Clip],
    written: Sequence[Written],
    errors: Sequence[str],
    starts: Sequence[Sequence[int]],
) -> tuple[Questions, EvidenceTruth]:
    """Returns what is asked about the clips of a row, where the mentions are, and what is true.

    Args:
        errors: why a clip could not be read; nothing is true of one that could not.
        starts: of each clip, the first slots of its responses in the row.
    """
    tokenizer, shape = s.processor.tokenizer, s.evidence
    row = Questions(
        ids=np.full((shape.questions, shape.question_length), -1, np.int32),
        mention_index=np.full((shape.questions, shape.mentions), -1, np.int32),
        clip=np.zeros(shape.questions, np.int32),
    )
    samples, mentions = [], []
    for number, (clip, one, error, begins) in enumerate(
        zip(clips, written, errors, starts, strict=True), start=1
    ):
        for sample, ids, start in zip(clip.samples, one.responses, begins, strict=True):
            q, found = len(samples), mention_positions(tokenizer, ids)
            put_question(row, q, sample, tokenizer)
            row.mention_index[q, : len(found)] = start + np.array(found, np.int32)
            row.clip[q] = number
            response = response_of(sample, s.box_step)
            known = [None] * len(found) if error else mentions_of(sample, response)
            samples.append(dataclasses.replace(sample, intervals=()) if error else sample)
            mentions.append(known)
    return row, truth_of(samples, mentions, shape)


def put_question(row: Questions, number: int, sample: Sample, tokenizer: Any) -> None:
    """Writes the tokens of a question into a row."""
    asked = tokenizer(tokenizer.quoted(sample.question))["input_ids"]
    row.ids[number, : len(asked)] = asked


@dataclasses.dataclass(frozen=True)
class OpenCandidates(grain.transforms.RandomMap):
    """Row -> row with `evidence.search` in the place of the intervals.

    The decoder may search the pairs in the true intervals, and at the times of the question's mentions, which
    may lie outside, opened by up to `jitter_s` at each side; or all where no interval is known; of a
    question's own clip alone.
    """

    jitter_s: float = 0.5

    def random_map(self, row: SupervisedBatch, rng: np.random.Generator) -> SupervisedBatch:
        dense, truth = row.inputs.dense, row.evidence
        valid = dense.length > 0
        inside = np.zeros((len(truth.intervals), len(valid)), bool)
        opened, known = inside.copy(), inside.copy()
        for q, (intervals, clip) in enumerate(zip(truth.intervals, row.inputs.questions.clip, strict=True)):
            own = valid & (dense.clip == clip)
            times = dense.times[own]
            intervals = intervals[~np.isnan(intervals[:, 0])]
            moments = truth.mentions.time[q][truth.mentions.has_time[q]]
            searched = np.concatenate([intervals, np.stack([moments, moments], -1)])
            moved = searched + rng.uniform(0, self.jitter_s, searched.shape) * [-1, 1]
            moved = [*searched, *moved]  # the time nearest to a short one's middle may be another than before
            inside[q, own] = interval_mask(intervals, times)
            opened[q, own] = interval_mask(moved, times) if len(intervals) else True
            known[q, own] = len(intervals) > 0
        truth = dataclasses.replace(truth, intervals=None, search=Search(inside, known, opened))
        return dataclasses.replace(row, evidence=truth)
